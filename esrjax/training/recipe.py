"""What a training can say: frozen dataclasses are the schema, TOML is the value."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from esrjax.errors import UserError
from esrjax.schema import STRICT, Count, NotNegative, Positive, listing, mistakes

Term = Literal["l1", "mse", "charbonnier", "fft", "gradient"]
Augment = Literal["hflip", "vflip", "rot90"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0)]


class UnknownRecipe(UserError):
    """Neither a shipped recipe nor a file."""


class RecipeError(UserError):
    """A file that does not say a recipe."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Where patches come from.

    sets: names or folders of pictures. patches: (height, width) of HR crops, pixels; one of the
    shapes is drawn for every batch. augment: each is applied or not, at random. small: what
    becomes of pictures that are smaller than the largest patch.
    """

    sets: Annotated[tuple[str, ...], Field(min_length=1)]
    patches: Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1)]
    batch: Annotated[int, Field(gt=0)]
    augment: tuple[Augment, ...] = ()
    small: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimiser:
    """Adam, or AdamW with decoupled decay; the defaults are PyTorch's, the decay is always said."""

    name: Literal["adam", "adamw"]
    lr: Positive
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Schedule:
    """How the rate moves with the step.

    cosine: from the rate to `end_lr`, anew after every step in `restarts`, each time from the rate
    times its weight in `restart_weights`. multistep: times `gamma` at each of `milestones`.
    warmup_steps: linear, from zero, before all else.
    """

    name: Literal["constant", "cosine", "multistep"] = "constant"
    end_lr: NotNegative = 0.0
    warmup_steps: Count = 0
    restarts: tuple[Count, ...] = ()
    restart_weights: tuple[Positive, ...] = ()
    milestones: tuple[Count, ...] = ()
    gamma: Positive = 0.5

    @model_validator(mode="after")
    def _agrees(self) -> "Schedule":
        if self.restart_weights and len(self.restart_weights) != len(self.restarts) + 1:
            raise ValueError("restart_weights needs one weight more than there are restarts")
        for name, of in (("restarts", "cosine"), ("milestones", "multistep")):
            steps: tuple[int, ...] = getattr(self, name)
            if steps and self.name != of:
                raise ValueError(f"{name} belongs to the schedule '{of}', not to '{self.name}'")
            if list(steps) != sorted(set(steps)):
                raise ValueError(f"{name} must grow from one to the next")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validation:
    """How often which set is scored, under which metric spec."""

    set: str
    every: Annotated[int, Field(gt=0)]
    spec: str = "ntire"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """One training from start to end.

    start: from fresh weights, or from what the stage before has left. loss: weights of the terms.
    ema: decay of the moving average that is kept instead of the last weights. save_every: steps
    between checkpoints.
    """

    name: str
    steps: Annotated[int, Field(gt=0)]
    data: Data
    loss: Annotated[Mapping[Term, Positive], Field(min_length=1)]
    optimiser: Optimiser
    schedule: Schedule = Schedule()
    start: Literal["new", "previous"] = "previous"
    ema: Fraction | None = None
    validate: Validation | None = None
    save_every: Annotated[int, Field(gt=0)] = 5000


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A method, its sizes, a seed, and the stages of its training in order."""

    method: str
    seed: Count
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _named_apart(self) -> "Recipe":
        names = [stage.name for stage in self.stage]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage names must differ, found twice: {', '.join(twice)}")
        return self

    @property
    def sha256(self) -> str:
        """Of all that the recipe says, whatever the spelling."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    @property
    def steps(self) -> int:
        """Of all stages together."""
        return sum(stage.steps for stage in self.stage)


RECIPE = TypeAdapter(Recipe)


def load(source: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name (`quick`), or that of a .toml or resolved .json file.

    changes: `stage.0.optimiser.lr=2e-4`, applied before anything is checked.
    """
    file = _file(source)
    try:
        text = file.read_text("utf-8")
        said = json.loads(text) if file.name.endswith(".json") else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise _wrong([f"the file cannot be read: {error}"], str(source)) from error
    return parse(_changed(said, changes, str(source)), str(source))


def parse(said: Mapping[str, Any], place: str = "the recipe") -> Recipe:
    """A recipe from plain data, or one error with all its mistakes."""
    try:
        # by way of JSON, in which strict pydantic takes a list for a tuple
        return RECIPE.validate_json(json.dumps(said, default=str))
    except ValidationError as error:
        raise _wrong(mistakes(error, RECIPE), place) from None


def to_json(recipe: Recipe) -> str:
    """The recipe with every default written out."""
    return RECIPE.dump_json(recipe, indent=2).decode() + "\n"


def _file(source: str | Path) -> Any:
    shipped = resources.files("esrjax_configs") / f"{source}.toml"
    file = shipped if shipped.is_file() else Path(source)
    if file.is_file():
        return file
    names = sorted(p.name.removesuffix(".toml") for p in resources.files("esrjax_configs").iterdir()
                   if p.name.endswith(".toml"))  # fmt: skip
    raise UnknownRecipe(
        f"there is no recipe {str(source)!r}",
        rule=f"a recipe is a .toml file, or one that esrjax ships: {', '.join(names)}",
        remedy="check the path or the name",
    )


def _changed(said: dict[str, Any], changes: Sequence[str], place: str) -> dict[str, Any]:
    """`said` with every `path=value` put in; a value is TOML, or else a word."""
    problems: list[str] = []
    for change in changes:
        path, equals, value = change.partition("=")
        problem = _put(said, path.split("."), _value(value)) if equals else "is not path=value"
        problems += [f"--set {change} {problem}"] if problem else []
    if problems:
        raise _wrong(problems, place)
    return said


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(said: Any, path: list[str], value: Any) -> str | None:
    """Set what lies at `path`; the complaint where there is no such place."""
    *way, last = path
    for step in way:
        if isinstance(said, list):
            if not (step.isdigit() and int(step) < len(said)):  # pyright: ignore[reportUnknownArgumentType]
                return f"has no place: {step!r} is not one of {len(said)} positions"  # pyright: ignore[reportUnknownArgumentType]
            said = said[int(step)]
        elif isinstance(said, dict):
            said = said.setdefault(step, {})
        else:
            return f"has no place: what is above {step!r} is a value"
    if not isinstance(said, dict):
        return f"has no place: {last!r} names nothing there"
    said[last] = value
    return None


def _wrong(found: list[str], place: str) -> RecipeError:
    return RecipeError(
        f"the recipe has {listing(found)}",
        rule="every field of esrjax.training.recipe.Recipe with its type, and no other",
        place=place,
        remedy="mend what is listed; configs/quick.toml is a complete example",
    )
