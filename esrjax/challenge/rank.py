"""Scores and ranks of rows under the rules of a challenge, as pure functions.

With the checks that rows can be compared, and the baseline that scores are relative to.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from esrjax.challenge.results import Row, credited_team
from esrjax.challenge.rules import Baseline, Rules
from esrjax.errors import RankingError
from esrjax.schema import bullet_list

Track = Literal["runtime", "params", "flops", "main"]
BaselineSource = Literal["measured", "published"]
Figures = Literal["exact", "printed"]
TRACKS: tuple[Track, ...] = ("runtime", "params", "flops", "main")

_MAX_RATIO = 500  # to the baseline's figure; units are mistaken by factors of at least 1000

# ranked: has ranks. no_psnr: no PSNR on the challenge's own splits to compare with the thresholds.
# below_threshold: below a PSNR threshold. baseline: the organisers' own entry.
Status = Literal["ranked", "no_psnr", "below_threshold", "baseline"]
STATUSES: tuple[Status, ...] = ("ranked", "no_psnr", "below_threshold", "baseline")


@dataclass(frozen=True, kw_only=True)
class RankedEntry:
    """One method in a ranking.

    Attributes:
        row: Its figures.
        status: Whether it is ranked, and if not, why.
        below_threshold: Splits on which its PSNR is below the threshold.
        waiver: Why it is ranked in spite of that, or None.
        log_scores: Track -> logarithm of its score; the score itself overflows a float for a method
            with 355 times the baseline's runtime.
        ranks: Track -> rank, None if it is not ranked.
    """

    row: Row
    status: Status
    below_threshold: frozenset[str]
    waiver: str | None
    log_scores: Mapping[Track, float]
    ranks: Mapping[Track, int] | None = None

    def score(self, track: Track) -> float:
        """Return the score in a track; infinity if it overflows a float."""
        try:
            return math.exp(self.log_scores[track])
        except OverflowError:
            return math.inf

    def rank(self, track: Track) -> int | None:
        """Return the rank in a track, or None if the entry is not ranked."""
        return self.ranks[track] if self.ranks else None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry for JSON, without per-image figures and provenance.

        An infinite score and the ranks of an unranked method are None.
        """
        scores = {f"score_{track}": self.score(track) for track in TRACKS}
        finite = {key: score if math.isfinite(score) else None for key, score in scores.items()}
        ranks = {f"rank_{track}": self.rank(track) for track in TRACKS}
        status = {"ranked": self.status == "ranked", "status": self.status}
        left_out = ("series", "provenance")
        figures = {key: value for key, value in vars(self.row).items() if key not in left_out}
        return {"team": self.row.team, **finite, **ranks, **status, **figures}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All entries, ordered by status and then by main score.

    Attributes:
        rules: Rules of the challenge.
        reference: Figures that the scores are relative to: a row, or the published baseline.
        entries: The entries in order.
        apply_thresholds: Whether entries must reach the PSNR thresholds.
        figures: Whether scores are computed from exact figures, or from figures rounded as printed
            in the published table.
    """

    rules: Rules
    reference: Row | Baseline
    entries: tuple[RankedEntry, ...]
    apply_thresholds: bool = True
    figures: Figures = "exact"

    @property
    def baseline_source(self) -> BaselineSource:
        """Whether scores are relative to a measured or to the published baseline."""
        return "published" if isinstance(self.reference, Baseline) else "measured"

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all entries, in their order."""
        return tuple(entry.row for entry in self.entries)

    def with_status(self, status: Status) -> tuple[RankedEntry, ...]:
        """Return the entries of one status, in order."""
        return tuple(entry for entry in self.entries if entry.status == status)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on waivers, published figures, an unknown PSNR, who measured, and units."""
        remarks = [
            f"{entry.row.team}: {text}."
            for entry in self.entries
            for text in (entry.waiver, *self.rules.notes_for(entry.row.team, entry.row.flops_g))
            if text
        ]
        return (*remarks, *_unknown_notes(self), *_measurer_notes(self), *_unit_notes(self))


def _unknown_notes(ranking: Ranking) -> Iterator[str]:
    """Yield for each split the entries whose PSNR is known on the other split only."""
    for split in ranking.rules.psnr_thresholds.by_split:
        entries = [e for e in ranking.entries if e.status != "baseline" and e.row.psnr_by_split]
        rows = [entry.row for entry in entries if split not in entry.row.psnr_by_split]
        names = [f"{row.team}, {row.method}" for row in rows]
        if names:
            yield (
                f"PSNR on {split} is unknown of {'; '.join(names)}: no rank until the organisers "
                "compute it from the SR images, by esrjax submit score."
            )


def _measurer_notes(ranking: Ranking) -> Iterator[str]:
    """Yield who measured the runtimes, unless it was one for all, or no source tells."""
    teams: dict[str | None, list[str]] = {}
    for row in ranking.rows:
        teams.setdefault(row.measured_by, []).append(row.team)
    if len(teams) > 1:
        texts = (
            name
            if name and names == [name]
            else f"{name or 'not recorded'} (of {', '.join(names)})"
            for name, names in teams.items()
        )
        yield (
            f"Runtimes were measured by several parties: {'; '.join(texts)}. On different machines "
            "they are not comparable, and neither are their scores."
        )


def _unit_notes(ranking: Ranking) -> Iterator[str]:
    """Yield a question for every figure that may have another unit than that of its column."""
    published, row = ranking.rules.baseline, ranking.reference
    references = {  # a runtime depends on the device
        "runtime_ms": ("ms", row.runtime_ms),
        "params_m": ("10⁶ parameters", published.params_m),
        "flops_g": ("10⁹ FLOPs", published.flops_g),
    }
    for row in ranking.rows:
        for name, (unit, reference) in references.items():
            value = getattr(row, name)
            if value and not 1 / _MAX_RATIO < value / reference < _MAX_RATIO:
                ratio = f"{value / reference:.3g} times the baseline's {reference:.3g}"
                yield f"{row.team}, {row.method}: is the unit right? {value:g} {unit}, {ratio}."
        for split, psnr in row.psnr_by_split.items():
            if not 10 <= psnr <= 60:
                yield f"{row.team}, {row.method}: is the unit right? {psnr:g} dB on {split}."


def rank(
    rows: Iterable[Row],
    rules: Rules,
    *,
    baseline_source: BaselineSource = "measured",
    figures: Figures = "exact",
    apply_thresholds: bool = True,
) -> Ranking:
    """Score all rows, and rank those that qualify.

    Args:
        rows: Figures of the methods, the baseline among them.
        rules: Rules of the challenge.
        baseline_source: Scores are relative to the baseline's row, or to its published figures.
        figures: Score exact figures, or figures rounded as printed in the published table.
        apply_thresholds: Rank only methods that reach the PSNR thresholds; otherwise all but the
            baseline are ranked.

    Raises:
        RankingError: The rows have no usable baseline, or several, or were not measured alike.
    """
    rows = [round_figures(row, rules) if figures == "printed" else row for row in rows]
    reference = rules.baseline if baseline_source == "published" else find_baseline(rows, rules)
    check_comparable(rows, reference)
    unranked = [_score_row(row, reference, rules, apply_thresholds) for row in rows]
    field = [entry for entry in unranked if entry.status == "ranked"]
    scores: dict[Track, list[float]] = {
        track: sorted(entry.log_scores[track] for entry in field) for track in TRACKS
    }
    entries = [_with_ranks(e, scores) if e.status == "ranked" else e for e in unranked]
    return Ranking(
        rules=rules,
        reference=reference,
        entries=tuple(sorted(entries, key=_sort_key)),
        apply_thresholds=apply_thresholds,
        figures=figures,
    )


def rerank(ranking: Ranking, **changes: Any) -> Ranking:
    """Rank again with some arguments of `rank` changed; all others stay as in `ranking`."""
    names = ("rows", "rules", "baseline_source", "figures", "apply_thresholds")
    return rank(**{name: getattr(ranking, name) for name in names} | changes)


def round_figures(row: Row, rules: Rules) -> Row:
    """Return the row with runtime, parameters and FLOPs rounded as in the published table.

    Raises:
        RankingError: The runtime is 0 with so few decimals.
    """
    decimals = rules.score.decimals
    runtime_ms = round(row.runtime_ms, decimals.runtime)
    if not runtime_ms:
        raise RankingError(
            f"The runtime of {row.method!r} is {row.runtime_ms:g} ms",
            rule=f"printed figures have {decimals.runtime} decimals, and a runtime is not 0",
            remedy="score the exact figures: --figures exact",
        )
    return replace(
        row,
        runtime_ms=runtime_ms,
        params_m=round(row.params_m, decimals.params),
        flops_g=round(row.flops_g, decimals.flops),
    )


def _score_row(
    row: Row, reference: Row | Baseline, rules: Rules, apply_thresholds: bool
) -> RankedEntry:
    """Entry with status and scores, still without ranks."""
    thresholds, psnrs = rules.psnr_thresholds, row.psnr_by_split if apply_thresholds else {}
    below = frozenset(
        split
        for split, psnr in psnrs.items()
        if round(psnr, thresholds.decimals) < thresholds.by_split[split]
    )
    waiver = rules.waiver_reason(row.team) if below else None
    if is_baseline(row, rules):
        status = "baseline"
    elif below and not waiver:
        status = "below_threshold"
    else:
        status = "no_psnr" if apply_thresholds and len(psnrs) < 2 else "ranked"
    return RankedEntry(
        row=row,
        status=status,
        below_threshold=below,
        waiver=waiver,
        log_scores=_log_scores(row, reference, rules),
    )


def compared_figures(row: Row, reference: Row | Baseline) -> dict[Track, tuple[float, float]]:
    """Return for each track but the main one a row's figure, and the baseline's to score it by."""
    return {
        "runtime": (row.runtime_ms, baseline_runtime_ms(row, reference)),
        "params": (row.params_m, reference.params_m),
        "flops": (row.flops_g, reference.flops_g),
    }


def _log_scores(row: Row, reference: Row | Baseline, rules: Rules) -> dict[Track, float]:
    """Equations 1 and 2 of the challenge report, as logarithms."""
    factor, weights = rules.score.factor, rules.score.weights
    logs: dict[Track, float] = {
        track: factor * value / baseline
        for track, (value, baseline) in compared_figures(row, reference).items()
    }
    # Log-sum-exp: with the largest term factored out, no term overflows.
    largest = max(logs.values())
    terms = (getattr(weights, track) * math.exp(log - largest) for track, log in logs.items())
    return {**logs, "main": largest + math.log(sum(terms))}


def _with_ranks(entry: RankedEntry, scores: Mapping[Track, Sequence[float]]) -> RankedEntry:
    """Ranks count from 1; equal scores share the better rank, and the next one is skipped.

    Args:
        entry: One of the field.
        scores: Track -> logarithms of the scores of the field, in ascending order.
    """
    ranks = {t: 1 + bisect_left(scores[t], entry.log_scores[t]) for t in TRACKS}
    return replace(entry, ranks=ranks)


def _sort_key(entry: RankedEntry) -> tuple[int, float, str, str]:
    row = entry.row
    return STATUSES.index(entry.status), entry.log_scores["main"], row.team, row.method


# --- baseline and comparability ---


def is_baseline(row: Row, rules: Rules) -> bool:
    """Return whether the row is the organisers' own entry: their method, not with own weights."""
    teams = (rules.baseline.team, credited_team(rules.baseline.team, "shipped"))
    is_their_method = row.team in teams or row.method == rules.baseline.method
    return is_their_method and row.weights_origin != "own"


def find_baseline(rows: Sequence[Row], rules: Rules) -> Row:
    """Return the row of the baseline; its parameters and FLOPs are not 0.

    Raises:
        RankingError: No such row, or several.
    """
    candidates = [r for r in rows if is_baseline(r, rules) and min(r.params_m, r.flops_g) >= 1e-9]
    if len(candidates) == 1:
        return candidates[0]
    raise RankingError(
        f"{len(candidates) or 'No'} usable rows of the baseline {rules.baseline.method!r}",
        rule="scores are ratios to one baseline, timed on the same machine in the same way",
        remedy=f"measure {rules.baseline.method!r} once, together with the others, "
        "or use --baseline published for runtimes of the organisers' own machine",
    )


def baseline_runtime_ms(row: Row, reference: Row | Baseline) -> float:
    """Return the baseline's runtime that a row is scored against, ms.

    It is the one timed interleaved with the row's method, where there is one; else that of
    `reference`, the baseline's own row or its published figures.
    """
    interleaved_ms = None if isinstance(reference, Baseline) else row.baseline_ms
    return interleaved_ms or reference.runtime_ms


def check_comparable(rows: Sequence[Row], reference: Row | Baseline) -> None:
    """Raise `RankingError`, listing the differences, unless all rows were measured alike."""
    device, problems = reference.device or "unknown", list[str]()
    values = {  # field -> (its value, method) of every row that has one
        name: [(getattr(row, name) or "unknown", row.method) for row in rows]
        for name in ("device", "conditions", "spec")
    }
    for row in rows:
        for title, sha256 in row.images_sha256.items():
            values.setdefault(f"images of {title}", []).append((sha256[:8], row.method))
    for name, pairs in values.items():
        methods_of: dict[str, list[str]] = {}
        for value, method in pairs:
            methods_of.setdefault(value, []).append(method)
        if len(methods_of) > 1:
            texts = (f"{value} ({', '.join(m)})" for value, m in sorted(methods_of.items()))
            problems.append(f"{name}: {', '.join(texts)}")
    if isinstance(reference, Baseline):
        other_devices = {row.device for row in rows} - {None, device}
        problems += [f"device: {device} (published baseline), {d} (rows)" for d in other_devices]
    if problems:
        raise RankingError(
            f"The rows are not comparable: {bullet_list(problems, 'difference')}",
            rule="all rows of a ranking have one device, one way of timing, one metric, and the "
            "same images under the name of a dataset",
            remedy="measure all of them, the baseline too, in the same way on one machine",
        )
