"""Comparability of rows, and the baseline that their scores are relative to."""

from collections.abc import Sequence

from esrjax.contest.rows import Row
from esrjax.contest.rules import Baseline, Rules
from esrjax.errors import UserError
from esrjax.schema import bullet_list

_CONDITIONS = ("device", "conditions", "spec")


class MixedRows(UserError):
    """Raised when rows differ in device, timing conditions or metric specification."""


class BaselineError(UserError):
    """Raised when the rows have no usable baseline, or more than one."""


def is_baseline(row: Row, rules: Rules) -> bool:
    """Return whether the row is the organisers' own entry."""
    return row.team == rules.baseline.team or row.method == rules.baseline.method


def find_baseline(rows: Sequence[Row], rules: Rules) -> Row:
    """Return the row of the baseline; its parameters and FLOPs are positive.

    Raises:
        BaselineError: No such row, or several.
    """
    candidates = [r for r in rows if is_baseline(r, rules) and r.params_m > 0 and r.flops_g > 0]
    if len(candidates) == 1:
        return candidates[0]
    raise BaselineError(
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
    """Raise `MixedRows`, listing the differences, unless all rows were measured alike."""
    device = reference.device or "unknown"
    problems = [difference for name in _CONDITIONS if (difference := _difference(rows, name))]
    if isinstance(reference, Baseline):
        other_devices = {row.device for row in rows} - {None, device}
        problems += [f"device: {device} (published baseline), {d} (rows)" for d in other_devices]
    if not problems:
        return
    raise MixedRows(
        f"The rows are not comparable: {bullet_list(problems, 'difference')}",
        rule="all rows of a ranking have one device, one way of timing and one metric",
        remedy="measure all of them, the baseline too, in the same way on one machine",
    )


def _difference(rows: Sequence[Row], name: str) -> str | None:
    """`name: value (methods), other value (methods)`, or None if all rows agree."""
    methods_of: dict[str, list[str]] = {}
    for row in rows:
        methods_of.setdefault(getattr(row, name) or "unknown", []).append(row.method)
    values = [f"{value} ({', '.join(methods)})" for value, methods in sorted(methods_of.items())]
    return f"{name}: {', '.join(values)}" if len(values) > 1 else None
