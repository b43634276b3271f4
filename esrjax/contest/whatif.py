"""What-if changes of figures, such as `METHOD:runtime=-0.5`, and their effect on the ranks."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from esrjax.contest.peers import is_baseline
from esrjax.contest.rank import Ranking
from esrjax.contest.rows import Row
from esrjax.contest.rules import Rules
from esrjax.contest.scenarios import Scenario, rank_changes, replace_row
from esrjax.errors import UserError
from esrjax.schema import bullet_list, format_errors

# Name of a figure -> its unit, and the fields of Row that it stands for.
FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "runtime": ("ms", ("runtime_ms",)),
    "params": ("M", ("params_m",)),
    "flops": ("G", ("flops_g",)),
    "psnr": ("dB", ("psnr_valid", "psnr_test")),
    "psnr_valid": ("dB", ("psnr_valid",)),
    "psnr_test": ("dB", ("psnr_test",)),
}
_CHANGE = re.compile(r"(?P<method>.+):(?P<figure>\w+)=(?P<value>[+-]?\d+(\.\d*)?([eE][+-]?\d+)?)")


class InvalidChange(UserError):
    """Raised when a change is malformed, names no row, or gives a figure that is not possible."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one figure.

    Attributes:
        method: Method or team whose figure changes.
        figure: One of `FIGURES`.
        value: New value, or the difference to the old one, in the unit of the figure.
        is_relative: Whether `value` is a difference.
    """

    method: str
    figure: str
    value: float
    is_relative: bool

    def __str__(self) -> str:
        value = f"{self.value:+g}" if self.is_relative else f"= {self.value:g}"
        return f"{self.method} {self.figure} {value} {FIGURES[self.figure][0]}"


def parse_changes(texts: Iterable[str]) -> tuple[Change, ...]:
    """Parse changes.

    Args:
        texts: `METHOD:FIGURE=NUMBER`; a number with a sign is added to the figure, one without a
            sign replaces it.

    Raises:
        InvalidChange: A text has another form, or the figure is unknown.
    """
    parsed = [(text, _CHANGE.fullmatch(text)) for text in texts]
    invalid = [text for text, match in parsed if not match or match["figure"] not in FIGURES]
    if invalid:
        raise InvalidChange(
            f"Invalid change: {', '.join(map(repr, invalid))}",
            rule=f"it is METHOD:FIGURE=NUMBER, with FIGURE one of {', '.join(FIGURES)}",
            remedy="write METHOD:runtime=-0.5 to subtract 0.5 ms, METHOD:params=0.2 to set 0.2 M",
        )
    return tuple(
        Change(
            method=match["method"],
            figure=match["figure"],
            value=float(match["value"]),
            is_relative=match["value"][0] in "+-",
        )
        for _, match in parsed
        if match
    )


def apply_changes(rows: Sequence[Row], changes: Iterable[Change], rules: Rules) -> tuple[Row, ...]:
    """Return the rows with all changes applied, in order.

    A change of the baseline's runtime also changes the runtimes of the baseline that were measured
    interleaved with other methods.

    Raises:
        InvalidChange: A change names no row, or gives a figure that is not possible.
    """
    for change in changes:
        row = _find_row(rows, change.method)
        fields = FIGURES[change.figure][1]
        rows = replace_row(rows, _apply(row, change, fields))
        if is_baseline(row, rules) and "runtime_ms" in fields:
            updated = [_apply(row, change, ("baseline_ms",)) for row in rows if row.baseline_ms]
            for row in updated:
                rows = replace_row(rows, row)
    return tuple(rows)


def what_if_scenario(changes: Sequence[Change], before: Ranking, after: Ranking) -> Scenario:
    """Return the effect of changes on the ranks as a scenario."""
    name = f"What if {', '.join(map(str, changes))}"
    return Scenario(name=name, rank_changes=rank_changes(before, after))


def _find_row(rows: Sequence[Row], name: str) -> Row:
    """The one row with this method, or else with this team; the case does not matter."""
    for names in ([row.method for row in rows], [row.team for row in rows]):
        matches = [row for row, n in zip(rows, names, strict=True) if n.lower() == name.lower()]
        if len(matches) == 1:
            return matches[0]
    known = {n.lower(): n for row in rows for n in (row.team, row.method)}
    similar = difflib.get_close_matches(name.lower(), known, n=1)
    raise InvalidChange(
        f"Unknown or ambiguous method {name!r}",
        rule=f"a method or a team of the ranking: {', '.join(row.method for row in rows)}",
        remedy=f"did you mean {known[similar[0]]!r}?" if similar else "name one of these",
    )


def _apply(row: Row, change: Change, fields: Sequence[str]) -> Row:
    old = {name: getattr(row, name) for name in fields}
    if change.is_relative and None in old.values():
        raise _impossible(change, [f"{name} is unknown" for name in fields])
    new = {name: change.value + (old[name] if change.is_relative else 0) for name in fields}
    try:
        return replace(row, **new)
    except ValidationError as error:
        raise _impossible(change, format_errors(error)) from None


def _impossible(change: Change, problems: list[str]) -> InvalidChange:
    return InvalidChange(
        f"Cannot apply {str(change)!r}: {bullet_list(problems)}",
        rule="runtime and PSNR are positive, params and FLOPs are not negative",
        remedy="change it by less, or give the value itself, without a sign",
    )
