"""What a report says: a ranking as plain data, every figure with its text and its origin."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from esrjax.contest import table
from esrjax.contest.peers import baseline_ms
from esrjax.contest.rank import STANDINGS, TRACKS, Line, Ranking, Track
from esrjax.contest.report import series
from esrjax.contest.report.columns import Column, columns
from esrjax.contest.report.comparison import Comparison

Data = dict[str, Any]

_SCORES: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
}


def content(
    ranking: Ranking, source: str, comparisons: Sequence[Comparison] = (), made: str = ""
) -> Data:
    """The data of a page. source: what the rows were read from. made: by what, and when."""
    shown = columns(ranking)
    return {
        "title": ranking.rules.name,
        "lede": _lede(ranking),
        "scale": table.scale(ranking),
        "notes": list(ranking.notes),
        "made": f"From {source}. {made}".strip(),
        "columns": [vars(column) for column in shown],
        "scores": [{"key": track, "label": label} for track, label in _SCORES.items()],
        "groups": _groups(ranking),
        "lines": [_line(line, ranking, shown, source) for line in ranking.lines],
        "floors": _floors(ranking),
        "sets": series.sets(ranking.lines),
        "pictures": [picture.data() for picture in comparisons],
    }


def _groups(ranking: Ranking) -> list[Data]:
    lines = ranking.lines
    return [
        {
            "standing": standing,
            "meaning": table.meaning(standing, ranking),
            "lines": [k for k, line in enumerate(lines) if line.standing == standing],
        }
        for standing in STANDINGS
        if ranking.of(standing)
    ]


def _floors(ranking: Ranking) -> Data:
    """Column -> the PSNR that it must reach."""
    floors = ranking.rules.floors
    return {"psnr_valid": floors.valid, "psnr_test": floors.test} if ranking.floors else {}


def _line(line: Line, ranking: Ranking, shown: Sequence[Column], source: str) -> Data:
    figures = {c.key: c.cell(line, source) for c in shown if c.value(line.row) is not None}
    return {
        "team": line.row.team,
        "method": line.row.method,
        "standing": line.standing,
        "waived": line.waived,
        "rank": line.place("main"),
        "cells": {**figures, **{track: _score(line, track, ranking) for track in TRACKS}},
    }


def _score(line: Line, track: Track, ranking: Ranking) -> Data:
    """Sorted by its logarithm, which is finite where the score is not."""
    return {
        "text": table.printed(line.score(track)),
        "value": line.logs[track],
        "rank": line.place(track),
        "note": f"{_worked(line, track, ranking)}; {_placed(line, track, ranking)}",
    }


def _worked(line: Line, track: Track, ranking: Ranking) -> str:
    """How a score comes about, in figures: equations 1 and 2 of the report."""
    row, of, score = line.row, ranking.reference, ranking.rules.score
    pairs = {
        "runtime": (row.runtime_ms, baseline_ms(row, of)),
        "params": (row.params_m, of.params_m),
        "flops": (row.flops_g, of.flops_g),
    }
    if track == "main":
        return " + ".join(
            f"{getattr(score.weights, name):g} · {table.printed(line.score(name))} ({name})"
            for name in TRACKS
            if name != "main"
        )
    value, base = pairs[track]
    text = table.printed(line.score(track)) if math.isfinite(line.score(track)) else "over 1.8e308"
    return f"exp({score.factor:g} · {value:.6g} / {base:.6g}) = {text}"


def _placed(line: Line, track: Track, ranking: Ranking) -> str:
    if not line.ranks:
        return "not ranked"
    return f"rank {line.ranks[track]} of {len(ranking.of('ranked'))}"


def _lede(ranking: Ranking) -> str:
    """The outcome in two sentences."""
    ranked, count = len(ranking.of("ranked")), len(ranking.lines)
    first = min(ranking.lines, key=lambda line: (line.ranks is None, line.logs["main"]))
    decimals = ranking.rules.score.decimals.runtime
    times = (first.row.runtime_ms, baseline_ms(first.row, ranking.reference))
    own, base = (f"{value:.{decimals}f}\u00a0ms" for value in times)
    methods = f"{count} method{'s' * (count != 1)}"
    return (
        f"{ranked or 'None'} of {methods} {'is' if ranked < 2 else 'are'} ranked. "
        f"{first.row.team} {'leads with' if ranked else 'has'} the lowest main score, "
        f"{table.printed(first.score('main'))}, at {own}; the baseline takes {base}."
    )
