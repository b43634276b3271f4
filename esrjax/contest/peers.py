"""Whether rows can be compared, and with which baseline."""

from collections.abc import Sequence

from esrjax.contest.rows import Row
from esrjax.contest.rules import Baseline, Rules
from esrjax.errors import UserError
from esrjax.schema import listing

_TRAITS = ("device", "conditions", "spec")


class MixedRows(UserError):
    """Rows that were not measured in the same way."""


class BaselineError(UserError):
    """No baseline to score against, or more than one."""


def is_baseline(row: Row, rules: Rules) -> bool:
    """Whether the row is the organisers' own entry."""
    return row.team == rules.baseline.team or row.method == rules.baseline.method


def baseline(rows: Sequence[Row], rules: Rules) -> Row:
    """The one row of the baseline, with costs that others can be divided by."""
    found = [r for r in rows if is_baseline(r, rules) and r.params_m > 0 and r.flops_g > 0]
    if len(found) == 1:
        return found[0]
    raise BaselineError(
        f"{len(found) or 'no'} usable rows of the baseline {rules.baseline.method!r}",
        rule="scores are ratios to one baseline, timed on the same machine in the same way",
        remedy=f"measure {rules.baseline.method!r} once beside the others, "
        "or, for times of the contest's own machine, take the published baseline",
    )


def baseline_ms(row: Row, reference: Row | Baseline) -> float:
    """The baseline's runtime that this row's is divided by: where it was timed in turn, that."""
    beside = None if isinstance(reference, Baseline) else row.baseline_ms
    return beside or reference.runtime_ms


def require_peers(rows: Sequence[Row], reference: Row | Baseline) -> None:
    """Raise `MixedRows`, saying who has what, unless all were measured in the same way."""
    device = reference.device or "unknown"
    found = [mixture for trait in _TRAITS if (mixture := _mixture(rows, trait))]
    if isinstance(reference, Baseline):
        strange = {row.device for row in rows} - {None, device}
        found += [f"device: {device} (published baseline), {other} (rows)" for other in strange]
    if not found:
        return
    raise MixedRows(
        f"the rows differ in {listing(found, 'respect')}",
        rule="one device, one way of timing and one metric in a ranking",
        remedy="measure all of them, the baseline too, in the same way on one machine",
    )


def _mixture(rows: Sequence[Row], trait: str) -> str | None:
    """`trait: value (methods), other value (methods)`, or None where all agree."""
    held: dict[str, list[str]] = {}
    for row in rows:
        held.setdefault(getattr(row, trait) or "unknown", []).append(row.method)
    said = [f"{value} ({', '.join(methods)})" for value, methods in sorted(held.items())]
    return f"{trait}: {', '.join(said)}" if len(said) > 1 else None
