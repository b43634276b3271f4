"""Figures of methods that are otherwise: `METHOD:runtime=-0.5`."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from esrjax.contest.peers import is_baseline
from esrjax.contest.rank import Ranking
from esrjax.contest.rows import Row
from esrjax.contest.rules import Rules
from esrjax.contest.scenarios import Scenario, moves, swapped
from esrjax.errors import UserError
from esrjax.schema import listing, mistakes

# word -> unit, fields of Row
FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "runtime": ("ms", ("runtime_ms",)),
    "params": ("M", ("params_m",)),
    "flops": ("G", ("flops_g",)),
    "psnr": ("dB", ("psnr_valid", "psnr_test")),
    "psnr_valid": ("dB", ("psnr_valid",)),
    "psnr_test": ("dB", ("psnr_test",)),
}
_CHANGE = re.compile(r"(?P<method>.+):(?P<figure>\w+)=(?P<value>[+-]?\d+(\.\d*)?([eE][+-]?\d+)?)")


class BadChange(UserError):
    """A change that says nothing, or that no row can take."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure of a method, or of a team, that is `value`, or by `value` more where `added`."""

    method: str
    figure: str
    value: float
    added: bool

    def __str__(self) -> str:
        value = f"{self.value:+g}" if self.added else f"= {self.value:g}"
        return f"{self.method} {self.figure} {value} {FIGURES[self.figure][0]}"


def parse(texts: Iterable[str]) -> tuple[Change, ...]:
    """A number with a sign is added to what the row has, one without replaces it."""
    found = [(text, _CHANGE.fullmatch(text)) for text in texts]
    wrong = [text for text, match in found if not match or match["figure"] not in FIGURES]
    if wrong:
        raise BadChange(
            f"a change says nothing: {', '.join(map(repr, wrong))}",
            rule=f"it is METHOD:FIGURE=NUMBER, with FIGURE one of {', '.join(FIGURES)}",
            remedy="write METHOD:runtime=-0.5 for 0.5 ms less, METHOD:params=0.2 for 0.2 M in all",
        )
    return tuple(
        Change(
            method=match["method"],
            figure=match["figure"],
            value=float(match["value"]),
            added=match["value"][0] in "+-",
        )
        for _, match in found
        if match
    )


def changed(rows: Sequence[Row], changes: Iterable[Change], rules: Rules) -> tuple[Row, ...]:
    """The rows with the changes made, one after the other."""
    for change in changes:
        row = _find(rows, change.method)
        fields = FIGURES[change.figure][1]
        rows = swapped(rows, _with(row, change, fields))
        if is_baseline(row, rules) and "runtime_ms" in fields:
            beside = [_with(each, change, ("baseline_ms",)) for each in rows if each.baseline_ms]
            for each in beside:
                rows = swapped(rows, each)
    return tuple(rows)


def scenario(changes: Sequence[Change], before: Ranking, after: Ranking) -> Scenario:
    """What the changes did to the ranks."""
    name = f"What if {', '.join(map(str, changes))}"
    return Scenario(name=name, moves=moves(before, after))


def _find(rows: Sequence[Row], name: str) -> Row:
    """The one row whose method, or else whose team, is called that, whatever the case."""
    for names in ([row.method for row in rows], [row.team for row in rows]):
        found = [row for row, held in zip(rows, names, strict=True) if held.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
    known = {held.lower(): held for row in rows for held in (row.team, row.method)}
    near = difflib.get_close_matches(name.lower(), known, n=1)
    raise BadChange(
        f"no one row is that of {name!r}",
        rule=f"a method or a team of the ranking: {', '.join(row.method for row in rows)}",
        remedy=f"did you mean {known[near[0]]!r}?" if near else "name one of these",
    )


def _with(row: Row, change: Change, fields: Sequence[str]) -> Row:
    held = {name: getattr(row, name) for name in fields}
    if change.added and None in held.values():
        raise _impossible(change, [f"{name} is not known" for name in fields])
    new = {name: change.value + (held[name] if change.added else 0) for name in fields}
    try:
        return replace(row, **new)
    except ValidationError as error:
        raise _impossible(change, mistakes(error)) from None


def _impossible(change: Change, found: list[str]) -> BadChange:
    return BadChange(
        f"the row cannot take {str(change)!r}: {listing(found)}",
        rule="a runtime or a PSNR is above 0, params and FLOPs are not below it",
        remedy="change it by less, or say the value itself, without a sign",
    )
