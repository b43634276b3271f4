"""The rules of a contest: what qualifies, what is scored, against which baseline."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.errors import UserError
from esrjax.schema import STRICT, Count, Positive, listing, mistakes

Run = Annotated[str, Field(pattern=r"^\d+-\d+$")]  # consecutive names of pictures


class UnknownRules(UserError):
    """Neither shipped rules nor a file."""


class RulesError(UserError):
    """A file that does not say rules."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Floors:
    """Mean PSNR in dB that a method must reach on both sets, once rounded to `decimals`.

    pictures: how many a set has. spec: the metric specification that the floors speak of.
    """

    valid: Positive
    test: Positive
    decimals: Count
    pictures: Count
    spec: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Waiver:
    """A team that is ranked whatever its PSNR."""

    team: str
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Note:
    """What a reader must know of a published figure of a team, and the figure it should be."""

    team: str
    flops_g: Positive
    instead_g: Positive | None = None
    text: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Weights:
    """What each score adds to the main score."""

    runtime: Positive
    flops: Positive
    params: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Decimals:
    """How the contest prints milliseconds, millions of parameters and 10⁹ multiply-adds."""

    runtime: Count
    params: Count
    flops: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Score:
    """`exp(factor · value / value of the baseline)` for each figure, and their weighted sum."""

    factor: Positive
    weights: Weights
    decimals: Decimals


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Baseline:
    """The organisers' own entry and its published figures; they belong to `device`."""

    team: str
    method: str
    runtime_ms: Positive
    params_m: Positive
    flops_g: Positive
    device: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Forbidden:
    """Sets that no network may be trained on, as globs that ignore case, and why."""

    sets: tuple[str, ...]
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Fairness:
    """What networks may be trained on. own: the contest's sets. extra: may others be used."""

    own: tuple[str, ...]
    extra: bool
    forbidden: tuple[Forbidden, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Program:
    """How the organisers' program times. warm_up: team -> passes before its loop.

    side: of the square LR picture of those passes, pixels.
    """

    side: Count
    warm_up: Mapping[str, Count]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Published:
    """What the printed runtimes are: means of `runs` print-outs with so many `decimals` each."""

    runs: Count
    decimals: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rules:
    """How a contest filters, scores and ranks. teams: number of a model -> team.

    order: `valid`, `test` -> the runs of pictures (`0801-0900`) in the organisers' lists.
    """

    name: str
    ties: Literal["shared, next skipped"]
    floors: Floors
    score: Score
    baseline: Baseline
    waived: tuple[Waiver, ...] = ()
    notes: tuple[Note, ...] = ()
    fairness: Fairness | None = None
    program: Program | None = None
    published: Published | None = None
    teams: Mapping[str, str]
    order: Mapping[str, tuple[Run, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def warm_up(self, team: str) -> int:
        """How many passes the organisers' program let a team make before its loop."""
        return self.program.warm_up.get(team, 0) if self.program else 0

    def pictures(self, name: str) -> tuple[str, ...]:
        """The names of the pictures of a set in the organisers' order; none where unknown."""
        return tuple(name for run in self.order.get(name, ()) for name in _names(run))

    def waiver(self, team: str) -> str | None:
        """Why a team is ranked whatever its PSNR, or None."""
        return next((each.reason for each in self.waived if each.team == team), None)

    def noted(self, team: str, flops_g: float) -> tuple[str, ...]:
        """What is to be said of a team that has this figure, exact or as printed."""
        decimals = self.score.decimals.flops
        return tuple(
            each.text
            for each in self.notes
            if each.team == team and round(each.flops_g, decimals) == round(flops_g, decimals)
        )


def _names(run: str) -> Iterator[str]:
    """`0801-0803` -> 0801, 0802, 0803."""
    first, _, last = run.partition("-")
    return (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))


def load(source: str | Path) -> Rules:
    """Rules that esrjax ships, by name (`ntire2026`), or those of a TOML file."""
    shipped = resources.files("esrjax_configs") / f"{source}.toml"
    file = shipped if shipped.is_file() else Path(source)
    if not file.is_file():
        raise UnknownRules(
            f"no rules called {str(source)!r}",
            rule="a name that esrjax ships, such as ntire2026, or a TOML file",
            remedy="check the name or the path",
        )
    return _parse(file.read_text("utf-8"), place=file.name)


def _parse(text: str, *, place: str) -> Rules:
    try:
        # by way of JSON, in which strict pydantic takes a list for a tuple
        return TypeAdapter(Rules).validate_json(json.dumps(tomllib.loads(text), default=str))
    except tomllib.TOMLDecodeError as error:
        found = [f"is not TOML: {error}"]
    except ValidationError as error:
        found = mistakes(error)
    raise RulesError(
        f"the rules have {listing(found)}",
        rule="every field of esrjax.contest.rules.Rules with its type, and no other",
        place=place,
        remedy="mend what is listed; ntire2026.toml is a complete example",
    )
