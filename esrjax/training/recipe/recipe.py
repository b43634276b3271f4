"""A whole training, as data."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass as plain
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import STRICT, Count
from esrjax.training.recipe.stage import Stage, Start, Times


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Repeat:
    """Stages that follow each other, run in turn so many times."""

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    times: Times


@plain(frozen=True, kw_only=True)
class Run:
    """One stage at one of its turns. index: among all runs. name: the stage's, with the turn."""

    index: int
    name: str
    stage: Stage


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A method, its sizes, a seed, and the stages of its training in order.

    repeat: groups of neighbouring stages that are run several times over. parallel: how a batch is
    spread over devices, by one jitted program or by pmap.
    """

    method: str
    seed: Count
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]
    repeat: tuple[Repeat, ...] = ()
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parallel: Literal["jit", "pmap"] = "jit"

    @model_validator(mode="after")
    def _agrees(self) -> "Recipe":
        problems = [*self._twice(), *self._scattered(), *self._unknown()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _twice(self) -> list[str]:
        names = [stage.name for stage in self.stage]
        twice = sorted({name for name in names if names.count(name) > 1})
        return [f"stage names must differ, found twice: {', '.join(twice)}"] if twice else []

    def _scattered(self) -> list[str]:
        """Groups that are no neighbours, or share a stage."""
        names = [stage.name for stage in self.stage]
        problems: list[str] = []
        for group in self.repeat:
            first = names.index(group.stages[0]) if group.stages[0] in names else 0
            if tuple(names[first : first + len(group.stages)]) != group.stages:
                problems.append(f"repeat: {', '.join(group.stages)} are not stages in a row")
        grouped = [name for group in self.repeat for name in group.stages]
        if len(grouped) != len(set(grouped)):
            problems.append("repeat: a stage is in two groups")
        return problems

    def _unknown(self) -> list[str]:
        """Names of stages that do not come earlier."""
        problems: list[str] = []
        earlier: list[str] = []
        for stage in self.stage:
            start = stage.start.stage if isinstance(stage.start, Start) else None
            teacher = stage.teacher and stage.teacher.stage
            for what, name in (("start", start), ("teacher", teacher)):
                if name is not None and name not in earlier:
                    known = ", ".join(earlier) or "none"
                    problems.append(
                        f"{stage.name}: the {what} {name!r} is no earlier stage (earlier: {known})"
                    )
            earlier.append(stage.name)
        return problems

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every stage as often as it runs, in order.

        After its first turn a stage goes on from what was left, whatever it started from.
        """
        turns: dict[str, int] = {}
        times = {name: group.times for group in self.repeat for name in group.stages}
        runs: list[Run] = []
        for stage in self._unrolled():
            turns[stage.name] = turn = turns.get(stage.name, 0) + 1
            of = stage.repeat * times.get(stage.name, 1)
            name = stage.name if of == 1 else f"{stage.name} {turn}/{of}"
            said = stage if turn == 1 else replace(stage, start="previous", fresh=(), prune=None)
            runs.append(Run(index=len(runs), name=name, stage=said))
        return tuple(runs)

    def sizes_at(self, run: Run) -> dict[str, Any]:
        """The arguments of the network that `run` trains."""
        sizes = dict(self.sizes)
        for each in self.runs[: run.index + 1]:
            sizes |= each.stage.network
        return sizes

    def _unrolled(self) -> list[Stage]:
        """The stages in the order of their turns."""
        unrolled: list[Stage] = []
        done: set[str] = set()
        for stage in self.stage:
            if stage.name in done:
                continue
            group = next((g for g in self.repeat if stage.name in g.stages), None)
            names = group.stages if group else (stage.name,)
            round_ = [s for s in self.stage if s.name in names for _ in range(s.repeat)]
            unrolled += round_ * (group.times if group else 1)
            done |= set(names)
        return unrolled

    @property
    def essence(self) -> "Recipe":
        """What moves the weights: without what may change from one start of a run to the next."""
        return replace(self, stage=tuple(stage.essence for stage in self.stage))

    @property
    def sha256(self) -> str:
        """Of all that moves the weights, whatever the spelling."""
        return hashlib.sha256(to_json(self.essence).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """Of all runs together, once epochs are counted as steps."""
        return sum(run.stage.steps or 0 for run in self.runs)


RECIPE = TypeAdapter(Recipe)


def to_json(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    return RECIPE.dump_json(recipe, indent=2).decode() + "\n"
