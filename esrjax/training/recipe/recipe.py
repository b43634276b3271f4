"""Schema of a recipe: method, hyperparameters, seed and stages of one training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import STRICT, NonNegativeInt
from esrjax.training.recipe.stage import InitFrom, PositiveInt, Stage


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Repeat:
    """A group of consecutive stages that runs several times: A B A B ...

    Attributes:
        stages: Names of the stages, in the order of the recipe.
        times: How often the group runs.
    """

    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    times: PositiveInt


@plain_dataclass(frozen=True, kw_only=True)
class StageRun:
    """One execution of a stage.

    Attributes:
        index: Position among all runs of the recipe, from 0.
        name: Name of the stage, with the repetition (`warm-up 2/3`) if it runs several times.
        stage: The stage as this run executes it.
    """

    index: int
    name: str
    stage: Stage


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One training of a method, in stages.

    Attributes:
        method: Name of the method.
        seed: Seed of weights, patches and augmentation.
        stage: The stages, in order.
        repeat: Groups of consecutive stages that run several times.
        hparams: Hyperparameters of the network, beyond the method's defaults.
        parallel: Data parallelism over devices: one jitted program over a mesh, or pmap.
    """

    method: str
    seed: NonNegativeInt
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]
    repeat: tuple[Repeat, ...] = ()
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parallel: Literal["jit", "pmap"] = "jit"

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        problems = [*self._duplicate_names(), *self._invalid_groups(), *self._unknown_stages()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _duplicate_names(self) -> list[str]:
        names = [stage.name for stage in self.stage]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        return (
            [f"stage names must be unique, duplicates: {', '.join(duplicates)}"]
            if duplicates
            else []
        )

    def _invalid_groups(self) -> list[str]:
        """Return errors for groups of `repeat` that are not consecutive or share a stage."""
        names = [stage.name for stage in self.stage]
        problems: list[str] = []
        for group in self.repeat:
            first = names.index(group.stages[0]) if group.stages[0] in names else 0
            if tuple(names[first : first + len(group.stages)]) != group.stages:
                problems.append(f"repeat: {', '.join(group.stages)} are not consecutive stages")
        grouped = [name for group in self.repeat for name in group.stages]
        if len(grouped) != len(set(grouped)):
            problems.append("repeat: a stage is in two groups")
        return problems

    def _unknown_stages(self) -> list[str]:
        """Return errors for references to stages that are not earlier ones."""
        problems: list[str] = []
        earlier: list[str] = []
        for stage in self.stage:
            init = stage.init_from.stage if isinstance(stage.init_from, InitFrom) else None
            teacher = stage.teacher and stage.teacher.stage
            for field_name, name in (("init_from", init), ("teacher", teacher)):
                if name is not None and name not in earlier:
                    names = ", ".join(earlier) or "none"
                    problems.append(
                        f"{stage.name}: {field_name} {name!r} is not an earlier stage "
                        f"(earlier stages: {names})"
                    )
            earlier.append(stage.name)
        return problems

    @property
    def runs(self) -> tuple[StageRun, ...]:
        """All executions of stages, in order.

        From its second repetition on, a stage starts from the weights of the run before it,
        whatever the first one started from.
        """
        repetitions: dict[str, int] = {}
        times = {name: group.times for group in self.repeat for name in group.stages}
        runs: list[StageRun] = []
        for stage in self._unroll():
            repetitions[stage.name] = repetition = repetitions.get(stage.name, 0) + 1
            total = stage.repeat * times.get(stage.name, 1)
            name = stage.name if total == 1 else f"{stage.name} {repetition}/{total}"
            resolved = (
                stage
                if repetition == 1
                else replace(stage, init_from="previous", reinit=(), prune=None)
            )
            runs.append(StageRun(index=len(runs), name=name, stage=resolved))
        return tuple(runs)

    def hparams_at(self, run: StageRun) -> dict[str, Any]:
        """Return the hyperparameters that the recipe sets for the network that `run` trains."""
        hparams = dict(self.hparams)
        for earlier in self.runs[: run.index + 1]:
            hparams |= earlier.stage.hparams
        return hparams

    def _unroll(self) -> list[Stage]:
        """Return the stages in order of execution, repetitions included."""
        unrolled: list[Stage] = []
        done: set[str] = set()
        for stage in self.stage:
            if stage.name in done:
                continue
            group = next((g for g in self.repeat if stage.name in g.stages), None)
            names = group.stages if group else (stage.name,)
            block = [s for s in self.stage if s.name in names for _ in range(s.repeat)]
            unrolled += block * (group.times if group else 1)
            done |= set(names)
        return unrolled

    @property
    def resume_key(self) -> "Recipe":
        """The recipe with the fields reset that may change when a run is resumed.

        Two recipes with equal keys train bit-identical weights.
        """
        return replace(self, stage=tuple(stage.resume_key for stage in self.stage))

    @property
    def sha256(self) -> str:
        """Hash of `resume_key`; independent of TOML formatting and omitted defaults."""
        return hashlib.sha256(to_json(self.resume_key).encode()).hexdigest()

    @property
    def total_steps(self) -> int:
        """Steps of all runs together; a stage in epochs counts 0 until `resolve_epochs`."""
        return sum(run.stage.steps or 0 for run in self.runs)


RECIPE = TypeAdapter(Recipe)


def to_json(recipe: Recipe) -> str:
    """Return the recipe as indented JSON, every default included."""
    return RECIPE.dump_json(recipe, indent=2).decode() + "\n"
