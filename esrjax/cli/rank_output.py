"""Further output of `rank`: what-if, sensitivity, and differences from a published table."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esrjax.challenge.rank import TRACKS, Ranking
from esrjax.challenge.sensitivity import (
    STEP_MS,
    CellDiff,
    Margin,
    RankChange,
    RankStability,
    Scenario,
    TableDiff,
    all_scenarios,
    compute_margins,
    rank_stability,
)
from esrjax.cli.output import markdown_table

_NO_BOOTSTRAP = (
    "No bootstrap: the runtimes are not means over images. `esrjax eval ... -o ... "
    "--protocol-timing` measures such runtimes, and `esrjax rank --protocol-timing` scores them."
)


@dataclass(frozen=True, kw_only=True)
class RankExtras:
    """Everything that `rank` prints besides the table.

    Attributes:
        ranking: The ranking.
        scenario: The changed ranks of --what-if; None if not requested.
        sensitivity: Whether --sensitivity is requested.
        comparison: The differences from the table of --against; None if not requested.
        source: The file name of that table.
    """

    ranking: Ranking
    scenario: Scenario | None
    sensitivity: bool
    comparison: TableDiff | None
    source: str

    def texts(self) -> Iterator[str]:
        """Yield each requested part as Markdown."""
        if self.scenario:
            yield scenario_text(self.scenario)
        if self.sensitivity:
            yield sensitivity_text(self.ranking)
        if self.comparison:
            yield comparison_text(self.comparison, self.source)

    def as_dict(self) -> dict[str, Any]:
        """Return the requested parts as plain data, by option."""
        extras: dict[str, Any] = {}
        if self.scenario:
            extras["what_if"] = scenario_json(self.scenario)
        if self.sensitivity:
            extras["sensitivity"] = sensitivity_json(self.ranking)
        if self.comparison:
            extras["against"] = comparison_json(self.comparison)
        return extras


def sensitivity_text(ranking: Ranking) -> str:
    """Return who passes by rounding, what changes ranks, their stability, and margins."""
    stability = rank_stability(ranking)
    parts = [
        _passes_by_rounding(ranking),
        "Changes of ranks\n\n" + "\n".join(map(scenario_text, all_scenarios(ranking))),
        _stability_table(stability) if stability else _NO_BOOTSTRAP,
        _margins_table(compute_margins(ranking)),
    ]
    return "\n\n".join(parts)


def sensitivity_json(ranking: Ranking) -> dict[str, Any]:
    """Return what `sensitivity_text` prints as plain data."""
    return {
        "scenarios": [scenario_json(scenario) for scenario in all_scenarios(ranking)],
        "bootstrap": [vars(stability) for stability in rank_stability(ranking)],
        "margins": [
            {
                **vars(margin),
                "psnr_margin_mdb": dict(margin.psnr_margin_mdb),
                "passes_by_rounding": sorted(margin.passes_by_rounding),
            }
            for margin in compute_margins(ranking)
        ],
    }


def scenario_text(scenario: Scenario) -> str:
    """`- **without ...**: main: A 8 → 7, B 9 → 8; runtime: ...`."""
    tracks = {t: [c for c in scenario.rank_changes if c.track == t] for t in TRACKS[::-1]}
    texts = [f"{track}: {', '.join(map(_change, cs))}" for track, cs in tracks.items() if cs]
    return f"- **{scenario.name}**: {'; '.join(texts) or 'none'}"


def scenario_json(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario as plain data."""
    changes = [vars(change) for change in scenario.rank_changes]
    return {"name": scenario.name, "rank_changes": changes}


def _change(change: RankChange) -> str:
    return f"{change.team} {change.before or 'unranked'} → {change.after or 'unranked'}"


def _passes_by_rounding(ranking: Ranking) -> str:
    rounded = [
        f"{margin.team} ({split}: {_psnr(ranking, margin, split):.4f} dB)"
        for margin in compute_margins(ranking)
        for split in sorted(margin.passes_by_rounding)
    ]
    rounding = f"is rounded to {ranking.rules.psnr_thresholds.decimals} decimals"
    if not rounded:
        return f"No method reaches a PSNR threshold only because its PSNR {rounding}."
    names = ", ".join(rounded)
    return f"{len(rounded)} reach a PSNR threshold only because their PSNR {rounding}: {names}."


def _psnr(ranking: Ranking, margin: Margin, split: str) -> float:
    thresholds = ranking.rules.psnr_thresholds
    lowest = getattr(thresholds, split) - 0.5 * 10**-thresholds.decimals
    return lowest + margin.psnr_margin_mdb[split] / 1000


def _stability_table(stability: Sequence[RankStability]) -> str:
    cells = [["rank", "team", "runtime, ms", "95 % interval", "95 % of main ranks", "same rank"]]
    cells += [
        [
            str(row.rank),
            row.team,
            f"{row.runtime_ms:.3f}",
            f"[{row.low_ms:.3f}, {row.high_ms:.3f}]",
            f"{row.best_rank} to {row.worst_rank}"
            if row.best_rank < row.worst_rank
            else str(row.best_rank),
            f"{row.same_rank_fraction:.1%}",
        ]
        for row in stability
    ]
    return markdown_table(
        cells, "Stability of ranks: bootstrap over images, the same images for all methods"
    )


def _margins_table(margins: Iterable[Margin]) -> str:
    head = [f"score for -{STEP_MS} ms", "to the next rank, ms", "slack to the rank below, ms"]
    cells = [["team", *head, "PSNR margin on valid, mdB", "on test, mdB"]]
    cells += [
        [
            margin.team,
            _cell(margin.score_drop and -100 * margin.score_drop, "+.2f", " %"),
            _cell(margin.speedup_to_next_ms and -margin.speedup_to_next_ms, "+.3f"),
            _cell(margin.slack_ms, "+.3f"),
            *(_cell(margin.psnr_margin_mdb.get(split), "+.1f") for split in ("valid", "test")),
        ]
        for margin in margins
    ]
    return markdown_table(
        cells,
        f"Margins: the change of the main score when a method is {STEP_MS} ms faster, and the "
        "distance to the next rank by runtime alone.\nPSNR is not scored; below 0 mdB it misses "
        "the threshold",
    )


def _cell(value: float | None, format: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{format}}{unit}"


def comparison_text(comparison: TableDiff, source: str) -> str:
    """Return how many cells agree, then every cell that differs, with numbered reasons.

    Args:
        comparison: The differences.
        source: The file name of the published table.
    """
    equal, total = (sum(counts[k] for counts in comparison.agreement.values()) for k in (0, 1))
    counts = ", ".join(f"{column} {n}/{of}" for column, (n, of) in comparison.agreement.items())
    reasons = list(dict.fromkeys(r for diff in comparison.cell_diffs for r in diff.reasons))
    parts = [f"Against {source}: {equal} of {total} cells agree as printed ({counts})."]
    if comparison.unmatched_teams:
        teams = ", ".join(comparison.unmatched_teams)
        parts.append(f"Only in one of the two tables, so ranks are not compared: {teams}.")
    if comparison.cell_diffs:
        head = ["team", "cell", "computed", source, "difference", "reasons"]
        cells = [head, *(_diff_cells(diff, reasons) for diff in comparison.cell_diffs)]
        parts.append(
            markdown_table(cells, "Cells that differ, each with the fewest reasons that explain it")
        )
    parts += [f"({number}) {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join(parts)


def _diff_cells(diff: CellDiff, reasons: list[str]) -> list[str]:
    labels = sorted(f"({1 + reasons.index(reason)})" for reason in diff.reasons)
    is_rank = diff.column.startswith("rank")
    relative = None if is_rank else diff.relative_difference
    percent = None if relative is None else 100 * relative
    return [
        diff.team,
        diff.column,
        diff.computed or "unranked",
        diff.published or "unranked",
        _cell(percent, "+.2f", " %"),
        " ".join(labels) or "not explained",
    ]


def comparison_json(comparison: TableDiff) -> dict[str, Any]:
    """Return the differences from a published table as plain data."""
    return {
        "agreement": {column: list(counts) for column, counts in comparison.agreement.items()},
        "cell_diffs": [
            {**vars(diff), "relative_difference": diff.relative_difference}
            for diff in comparison.cell_diffs
        ],
        "unmatched_teams": comparison.unmatched_teams,
    }
