"""Further output of `rank`: what-if, sensitivity, and differences from a published table."""

from collections.abc import Iterable
from typing import Any

from esrjax.challenge.published_table import CellDiff, TableDiff
from esrjax.challenge.rank import TRACKS, Ranking
from esrjax.challenge.sensitivity import (
    STEP_MS,
    Margin,
    RankChange,
    RankStability,
    Scenario,
    all_scenarios,
    compute_margins,
    rank_stability,
)
from esrjax.challenge.table import escape_markdown
from esrjax.cli.output import markdown_table, number_text

_NO_BOOTSTRAP = (
    "No bootstrap: the runtimes are not means over images. `esrjax eval ... -o ... "
    "--protocol-timing` measures such runtimes, and `esrjax rank --protocol-timing` scores them."
)


def scenario_text(scenario: Scenario) -> str:
    """`- **without ...**: main: A 8 → 7, B 9 → 8; runtime: ...`."""
    tracks = {t: [c for c in scenario.rank_changes if c.track == t] for t in TRACKS[::-1]}
    texts = [f"{track}: {', '.join(map(_change, cs))}" for track, cs in tracks.items() if cs]
    return f"- **{escape_markdown(scenario.name)}**: {'; '.join(texts) or 'none'}"


def _change(change: RankChange) -> str:
    before, after = change.before or "unranked", change.after or "unranked"
    return f"{escape_markdown(change.team)} {before} → {after}"


# --- sensitivity -------------------------------------------------------------------------------


def sensitivity_text(ranking: Ranking) -> str:
    """Return who passes by rounding, what changes ranks, their stability, and margins."""
    stability, margins = rank_stability(ranking), compute_margins(ranking)
    parts = [
        _passes_by_rounding(ranking, margins),
        "Changes of ranks\n\n" + "\n".join(map(scenario_text, all_scenarios(ranking))),
        _stability_table(stability) if stability else _NO_BOOTSTRAP,
        _margins_table(margins),
    ]
    return "\n\n".join(parts)


def sensitivity_json(ranking: Ranking) -> dict[str, Any]:
    """Return what `sensitivity_text` prints, for `print_json`."""
    return {
        "scenarios": all_scenarios(ranking),
        "bootstrap": rank_stability(ranking),
        "margins": compute_margins(ranking),
    }


def _passes_by_rounding(ranking: Ranking, margins: Iterable[Margin]) -> str:
    thresholds = ranking.rules.psnr_thresholds
    rounding = f"is rounded to {thresholds.decimals} decimals"
    rounded: list[str] = []
    for margin in margins:
        for split in sorted(margin.passes_by_rounding):
            lowest = getattr(thresholds, split) - 0.5 * 10**-thresholds.decimals
            psnr = lowest + margin.psnr_margin_mdb[split] / 1000
            rounded.append(f"{escape_markdown(margin.team)} ({split}: {psnr:.4f} dB)")
    if not rounded:
        return f"No method reaches a PSNR threshold only because its PSNR {rounding}."
    names = ", ".join(rounded)
    return f"{len(rounded)} reach a PSNR threshold only because their PSNR {rounding}: {names}."


def _stability_table(stability: Iterable[RankStability]) -> str:
    cells = [["rank", "team", "runtime, ms", "95 % interval", "95 % of main ranks", "same rank"]]
    for row in stability:
        is_certain = row.best_rank == row.worst_rank
        ranks = str(row.best_rank) if is_certain else f"{row.best_rank} to {row.worst_rank}"
        interval = f"[{row.low_ms:.3f}, {row.high_ms:.3f}]"
        runtime, fraction = f"{row.runtime_ms:.3f}", f"{row.same_rank_fraction:.1%}"
        cells.append([str(row.rank), row.team, runtime, interval, ranks, fraction])
    title = "Stability of ranks: bootstrap over images, the same images for all methods"
    return markdown_table(cells, title)


def _margins_table(margins: Iterable[Margin]) -> str:
    head = [f"score for -{STEP_MS} ms", "to the next rank, ms", "slack to the rank below, ms"]
    cells = [["team", *head, "PSNR margin on valid, mdB", "on test, mdB"]]
    cells += [
        [
            margin.team,
            number_text(margin.score_drop and -100 * margin.score_drop, "+.2f", " %"),
            number_text(margin.speedup_to_next_ms and -margin.speedup_to_next_ms, "+.3f"),
            number_text(margin.slack_ms, "+.3f"),
            *(
                number_text(margin.psnr_margin_mdb.get(split), "+.1f")
                for split in ("valid", "test")
            ),
        ]
        for margin in margins
    ]
    title = (
        f"Margins: the change of the main score when a method is {STEP_MS} ms faster, and the "
        "distance to the next rank by runtime alone.\nPSNR is not scored; below 0 mdB it misses "
        "the threshold"
    )
    return markdown_table(cells, title)


# --- comparison with a published table ---------------------------------------------------------


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
        teams = ", ".join(map(escape_markdown, comparison.unmatched_teams))
        parts.append(f"Only in one of the two tables, so ranks are not compared: {teams}.")
    if comparison.cell_diffs:
        head = ["team", "cell", "computed", source, "difference", "reasons"]
        cells = [head, *(_diff_cells(diff, reasons) for diff in comparison.cell_diffs)]
        title = "Cells that differ, each with the fewest reasons that explain it"
        parts.append(markdown_table(cells, title))
    parts += [f"({number}) {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join(parts)


def _diff_cells(diff: CellDiff, reasons: list[str]) -> list[str]:
    labels = " ".join(sorted(f"({1 + reasons.index(reason)})" for reason in diff.reasons))
    relative = None if diff.column.startswith("rank") else diff.relative_difference
    percent = number_text(relative and 100 * relative, "+.2f", " %")
    computed, published = diff.computed or "unranked", diff.published or "unranked"
    explanation = labels or "not explained"
    return [diff.team, diff.column, computed, published, percent, explanation]


def comparison_json(comparison: TableDiff) -> dict[str, Any]:
    """Return the differences from a published table, for `print_json`."""
    diffs = [
        {**vars(diff), "relative_difference": diff.relative_difference}
        for diff in comparison.cell_diffs
    ]
    return {**vars(comparison), "cell_diffs": diffs}
