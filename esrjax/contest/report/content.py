"""Content of the report: a ranking as JSON-serializable data, every figure with its provenance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from esrjax.contest import table
from esrjax.contest.peers import baseline_runtime_ms
from esrjax.contest.rank import STATUSES, TRACKS, RankedEntry, Ranking, Track
from esrjax.contest.report import series
from esrjax.contest.report.columns import Column, visible_columns
from esrjax.contest.report.comparison import ImageComparison

Data = dict[str, Any]

_SCORE_LABELS: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
}


def build_content(
    ranking: Ranking, source: str, comparisons: Sequence[ImageComparison] = (), footer: str = ""
) -> Data:
    """Return the data that the page's script renders.

    Args:
        ranking: The ranking.
        source: Name of the file or folder that its rows were read from.
        comparisons: Images to compare.
        footer: Version and date, for the end of the page.
    """
    columns = visible_columns(ranking)
    return {
        "title": ranking.rules.name,
        "summary": _summary(ranking),
        "scale": table.describe_scale(ranking),
        "notes": list(ranking.notes),
        "footer": f"From {source}. {footer}".strip(),
        "columns": [vars(column) for column in columns],
        "scores": [{"key": track, "label": label} for track, label in _SCORE_LABELS.items()],
        "groups": _groups(ranking),
        "entries": [_entry_data(entry, ranking, columns, source) for entry in ranking.entries],
        "psnr_thresholds": _psnr_thresholds(ranking),
        "datasets": series.per_dataset_series(ranking.entries),
        "images": [comparison.as_dict() for comparison in comparisons],
    }


def _groups(ranking: Ranking) -> list[Data]:
    """The statuses that occur, each with the indices of its entries."""
    entries = ranking.entries
    return [
        {
            "status": status,
            "description": table.describe_status(status, ranking),
            "entries": [k for k, entry in enumerate(entries) if entry.status == status],
        }
        for status in STATUSES
        if ranking.with_status(status)
    ]


def _psnr_thresholds(ranking: Ranking) -> Data:
    """Column -> PSNR threshold, dB."""
    thresholds = ranking.rules.psnr_thresholds
    return (
        {"psnr_valid": thresholds.valid, "psnr_test": thresholds.test}
        if ranking.apply_thresholds
        else {}
    )


def _entry_data(
    entry: RankedEntry, ranking: Ranking, columns: Sequence[Column], source: str
) -> Data:
    figures = {c.key: c.cell(entry, source) for c in columns if c.value(entry.row) is not None}
    return {
        "team": entry.row.team,
        "method": entry.row.method,
        "status": entry.status,
        "waiver": entry.waiver,
        "rank": entry.rank("main"),
        "cells": {**figures, **{track: _score_cell(entry, track, ranking) for track in TRACKS}},
    }


def _score_cell(entry: RankedEntry, track: Track, ranking: Ranking) -> Data:
    """Cell of a score; its value for sorting is the logarithm, which never overflows."""
    return {
        "text": table.format_score(entry.score(track)),
        "value": entry.log_scores[track],
        "rank": entry.rank(track),
        "note": f"{_formula_text(entry, track, ranking)}; {_rank_text(entry, track, ranking)}",
    }


def _formula_text(entry: RankedEntry, track: Track, ranking: Ranking) -> str:
    """Equation 1 or 2 of the challenge report with the entry's figures."""
    row, reference, score = entry.row, ranking.reference, ranking.rules.score
    figures = {
        "runtime": (row.runtime_ms, baseline_runtime_ms(row, reference)),
        "params": (row.params_m, reference.params_m),
        "flops": (row.flops_g, reference.flops_g),
    }
    if track == "main":
        return " + ".join(
            f"{getattr(score.weights, name):g} · {table.format_score(entry.score(name))} ({name})"
            for name in TRACKS
            if name != "main"
        )
    value, baseline = figures[track]
    text = (
        table.format_score(entry.score(track))
        if math.isfinite(entry.score(track))
        else "over 1.8e308"
    )
    return f"exp({score.factor:g} · {value:.6g} / {baseline:.6g}) = {text}"


def _rank_text(entry: RankedEntry, track: Track, ranking: Ranking) -> str:
    if not entry.ranks:
        return "not ranked"
    return f"rank {entry.ranks[track]} of {len(ranking.with_status('ranked'))}"


def _summary(ranking: Ranking) -> str:
    """The outcome in two sentences."""
    ranked, count = len(ranking.with_status("ranked")), len(ranking.entries)
    first = min(ranking.entries, key=lambda entry: (entry.ranks is None, entry.log_scores["main"]))
    decimals = ranking.rules.score.decimals.runtime
    times = (first.row.runtime_ms, baseline_runtime_ms(first.row, ranking.reference))
    own, baseline = (f"{value:.{decimals}f}\u00a0ms" for value in times)
    methods = f"{count} method{'s' * (count != 1)}"
    return (
        f"{ranked or 'None'} of {methods} {'is' if ranked < 2 else 'are'} ranked. "
        f"{first.row.team} {'leads with' if ranked else 'has'} the lowest main score, "
        f"{table.format_score(first.score('main'))}, at {own}; the baseline takes {baseline}."
    )
