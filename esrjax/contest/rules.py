"""The rules of a contest: what qualifies, what is scored, against which baseline."""

import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.errors import UserError
from esrjax.schema import STRICT, Count, Positive, listing, mistakes


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
    """What a reader must know of a published figure of a team."""

    team: str
    flops_g: Positive
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
class Rules:
    """How a contest filters, scores and ranks. teams: number of a model -> team."""

    name: str
    ties: Literal["shared, next skipped"]
    floors: Floors
    score: Score
    baseline: Baseline
    waived: tuple[Waiver, ...] = ()
    notes: tuple[Note, ...] = ()
    teams: Mapping[str, str]

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
