"""What `rank` says beside its table: what would change it, and where a print differs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from esrjax.cli.tables import grid
from esrjax.contest.bootstrap import Spread, spreads
from esrjax.contest.disagreements import Comparison, Disagreement
from esrjax.contest.margins import STEP_MS, Margin, margins
from esrjax.contest.rank import TRACKS, Ranking
from esrjax.contest.scenarios import Move, Scenario, scenarios

_NO_SPREADS = (
    "No bootstrap: the runtimes are not means over pictures. Those that `esrjax eval ... -o ... "
    "--harness` takes are; `rank --harness` scores them."
)


@dataclass(frozen=True, kw_only=True)
class More:
    """What was asked for beside the table."""

    ranking: Ranking
    scenario: Scenario | None
    sensitivity: bool
    comparison: Comparison | None
    source: str  # name of the printed table

    def texts(self) -> Iterator[str]:
        """One after the other, as Markdown."""
        if self.scenario:
            yield scenario_text(self.scenario)
        if self.sensitivity:
            yield sensitivity_text(self.ranking)
        if self.comparison:
            yield comparison_text(self.comparison, self.source)

    def json(self) -> dict[str, Any]:
        """By name, those that were asked for."""
        told: dict[str, Any] = {}
        if self.scenario:
            told["what_if"] = scenario_json(self.scenario)
        if self.sensitivity:
            told["sensitivity"] = sensitivity_json(self.ranking)
        if self.comparison:
            told["against"] = comparison_json(self.comparison)
        return told


def sensitivity_text(ranking: Ranking) -> str:
    """Who passes by rounding, what moves which rank, how far ranks hold, what a step is worth."""
    held = spreads(ranking)
    parts = [
        _rounded(ranking),
        "Ranks that change\n\n" + "\n".join(map(scenario_text, scenarios(ranking))),
        _spreads(held) if held else _NO_SPREADS,
        _margins(margins(ranking)),
    ]
    return "\n\n".join(parts)


def sensitivity_json(ranking: Ranking) -> dict[str, Any]:
    """The same, for a program."""
    return {
        "scenarios": [scenario_json(each) for each in scenarios(ranking)],
        "bootstrap": [vars(each) for each in spreads(ranking)],
        "margins": [
            {**vars(each), "spare_mdb": dict(each.spare_mdb), "rounded": sorted(each.rounded)}
            for each in margins(ranking)
        ],
    }


def scenario_text(scenario: Scenario) -> str:
    """`- without ...: main: A 8 -> 7, B 9 -> 8; runtime: ...`."""
    tracks = {track: [m for m in scenario.moves if m.track == track] for track in TRACKS[::-1]}
    said = [f"{track}: {', '.join(map(_move, moves))}" for track, moves in tracks.items() if moves]
    return f"- **{scenario.name}**: {'; '.join(said) or 'none'}"


def scenario_json(scenario: Scenario) -> dict[str, Any]:
    """The same, for a program."""
    return {"name": scenario.name, "moves": [vars(move) for move in scenario.moves]}


def _move(move: Move) -> str:
    return f"{move.team} {move.before or 'unranked'} → {move.after or 'unranked'}"


def _rounded(ranking: Ranking) -> str:
    floors = ranking.rules.floors
    lines = [
        f"{each.team} ({name}: {_psnr(ranking, each, name):.4f} dB)"
        for each in margins(ranking)
        for name in sorted(each.rounded)
    ]
    digits = f"rounded to {floors.decimals} decimals"
    if not lines:
        return f"No method reaches a floor only because its PSNR is {digits}."
    return f"{len(lines)} reach a floor only because their PSNR is {digits}: {', '.join(lines)}."


def _psnr(ranking: Ranking, margin: Margin, name: str) -> float:
    least = getattr(ranking.rules.floors, name) - 0.5 * 10**-ranking.rules.floors.decimals
    return least + margin.spare_mdb[name] / 1000


def _spreads(held: Sequence[Spread]) -> str:
    cells = [
        ["rank", "team", "runtime, ms", "95 % interval", "main rank in 95 %", "keeps its rank"]
    ]
    cells += [
        [
            str(each.rank),
            each.team,
            f"{each.runtime_ms:.3f}",
            f"[{each.low_ms:.3f}, {each.high_ms:.3f}]",
            f"{each.best} to {each.worst}" if each.best < each.worst else str(each.best),
            f"{each.held:.1%}",
        ]
        for each in held
    ]
    return grid(cells, "How far ranks hold: the pictures drawn again, the same for all methods")


def _margins(held: Iterable[Margin]) -> str:
    head = [f"-{STEP_MS} ms", "to the rank above, ms", "to spare below, ms"]
    cells = [["team", *head, "spare on valid, mdB", "on test, mdB"]]
    cells += [
        [
            each.team,
            _cell(each.step and -100 * each.step, "+.2f", " %"),
            _cell(each.gain_ms and -each.gain_ms, "+.3f"),
            _cell(each.spare_ms, "+.3f"),
            *(_cell(each.spare_mdb.get(name), "+.1f") for name in ("valid", "test")),
        ]
        for each in held
    ]
    return grid(
        cells,
        "What a step is worth: the change of the main score, and how far to the next rank by "
        "runtime alone.\nPSNR is not scored; a floor is missed below 0 mdB",
    )


def _cell(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def comparison_text(comparison: Comparison, source: str) -> str:
    """How many cells agree, then every one that does not, with its reasons by number."""
    right, all_ = (sum(each[k] for each in comparison.agree.values()) for k in (0, 1))
    counts = ", ".join(f"{c} {good}/{of}" for c, (good, of) in comparison.agree.items())
    reasons = list(dict.fromkeys(r for d in comparison.disagreements for r in d.reasons))
    parts = [f"Against {source}: {right} of {all_} cells agree as printed ({counts})."]
    if comparison.strangers:
        alone = ", ".join(comparison.strangers)
        parts.append(f"In one of the two alone, so that ranks are not compared: {alone}.")
    if comparison.disagreements:
        head = ["team", "cell", "here", source, "difference", "why"]
        cells = [head, *(_disagreement(each, reasons) for each in comparison.disagreements)]
        parts.append(grid(cells, "Cells that differ, each with the fewest reasons that explain it"))
    parts += [f"({k}) {reason}" for k, reason in enumerate(reasons, start=1)]
    return "\n\n".join(parts)


def _disagreement(each: Disagreement, reasons: list[str]) -> list[str]:
    numbers = sorted(f"({1 + reasons.index(reason)})" for reason in each.reasons)
    is_rank = each.column.startswith("rank")
    difference = None if is_rank or each.difference is None else 100 * each.difference
    why = " ".join(numbers) or "not explained"
    here, there = each.here or "unranked", each.printed or "unranked"
    return [each.team, each.column, here, there, _cell(difference, "+.2f", " %"), why]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The same, for a program."""
    return {
        "agree": {column: list(counts) for column, counts in comparison.agree.items()},
        "disagreements": [
            {**vars(each), "difference": each.difference} for each in comparison.disagreements
        ],
        "strangers": comparison.strangers,
    }
