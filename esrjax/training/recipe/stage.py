"""One training from start to end, as data."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import BY_KIND, STRICT, TABLE, WORD, Positive
from esrjax.training.recipe.data import Data
from esrjax.training.recipe.objective import OF_TAPS, Lesson, Teacher, Term, Weight
from esrjax.training.recipe.optimiser import Fraction, Optimiser, Schedule

Times = Annotated[int, Field(gt=0)]
Globs = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Start:
    """Weights to start from: what a stage has left, or a file, of another method if one is named.

    sizes: the arguments of the network that the file's tensors need.
    """

    stage: str | None = None
    file: str | None = None
    method: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _one(self) -> "Start":
        if (self.stage is None) == (self.file is None):
            raise ValueError("a start is a stage or a file")
        if self.stage is not None and (self.method or self.sizes):
            raise ValueError("`method` and `sizes` belong to a file; a stage knows its own")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prune:
    """Which channels of a wider network are kept: the first, or those of the largest weights."""

    keep: Literal["first", "l1"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoRA:
    """Low-rank adapters, scaled by `alpha / rank`, on the convolutions that match a glob.

    They alone are trained. They stay while the stages that follow say the same, and are merged
    into the kernels when one does not.
    """

    rank: Times
    alpha: Positive
    where: Annotated[Globs, Field(min_length=1)] = ("*",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validation:
    """How often which set is scored, under which metric spec.

    patience: the stage ends after so many scores in a row that are no better than the best.
    """

    set: str
    every: Times
    spec: str = "ntire"
    patience: Times | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """One training from start to end.

    steps or epochs: how long; in an epoch every picture is cropped once. loss: weights of the
    terms. heads: further outputs of the network by path -> the weight with which every picture
    term also counts for them, against the HR picture resized to theirs.
    start: from fresh weights, from what the stage before has left, or from a file or another stage
    (`Start`; a bare word is a file). fresh: globs of what the start lacks and is left as
    initialised. network: sizes from this stage on. prune: how a wider start becomes narrower.
    form: "deploy" merges the branches first and trains the thin network. fused: the branches are
    trained, but pictures go through the layers that they fuse to: the same loss and gradient with
    the work of the thin network.
    freeze: globs of weights that do not move. ema: decay of the moving average that is kept instead
    of the last weights. keep: the last weights, or those that validated best.
    precision: of the network's arithmetic; weights and losses stay float32. accumulate: parts in
    which a batch goes through the network. clip: largest norm of the gradient.
    repeat: how often the stage runs, each time from what the time before has left.
    save_every: steps between checkpoints.
    """

    name: str
    steps: Times | None = None
    epochs: Times | None = None
    data: Data
    loss: Annotated[Mapping[Term, Weight], Field(min_length=1)]
    heads: Mapping[str, Positive] = field(default_factory=dict[str, float])
    optimiser: Optimiser
    schedule: Schedule = Schedule()
    start: Annotated[Annotated[str, WORD] | Annotated[Start, TABLE], BY_KIND] = "previous"
    fresh: Globs = ()
    network: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prune: Prune | None = None
    form: Literal["train", "deploy"] = "train"
    fused: bool = False
    teacher: Teacher | None = None
    lora: LoRA | None = None
    freeze: Globs = ()
    ema: Fraction | None = None
    validate: Validation | None = None
    keep: Literal["last", "best"] = "last"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    accumulate: Times = 1
    clip: Positive | None = None
    repeat: Times = 1
    save_every: Times = 5000

    @model_validator(mode="after")
    def _agrees(self) -> "Stage":
        problems = [
            complaint
            for holds, complaint in (
                ((self.steps is None) != (self.epochs is None), "say either steps or epochs"),
                (self.keep == "last" or self.validate, 'keep = "best" needs `validate`'),
                (self.teacher or not self._lessons, f"{self._lessons} need a `teacher`"),
                (not self.teacher or self._lessons, "the teacher is in no term of the loss"),
                (self._taps_agree, f"{', '.join(OF_TAPS)} and `teacher.taps` need each other"),
                (self.data.batch % self.accumulate == 0, "accumulate must divide data.batch"),
            )
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def _lessons(self) -> str:
        """The terms that need a teacher."""
        return ", ".join(term for term in self.loss if term.startswith("teacher_"))

    @property
    def _taps_agree(self) -> bool:
        asked: set[Lesson] = set(OF_TAPS)
        return bool(asked & set(self.loss)) == bool(self.teacher and self.teacher.taps)

    @property
    def origin(self) -> Start | Literal["new", "previous"]:
        """Where its weights come from, a bare file name as a `Start`."""
        if isinstance(self.start, Start) or self.start in ("new", "previous"):
            return self.start  # pyright: ignore[reportReturnType] # one of the two words
        return Start(file=self.start)

    @property
    def essence(self) -> "Stage":
        """Without what only says how fast its batches come and how often it is saved."""
        data = replace(self.data, feed="host", workers=0, memory=4.0)
        return replace(self, data=data, save_every=5000)

    @property
    def files(self) -> tuple[str, ...]:
        """Of weights that it needs."""
        start = self.origin.file if isinstance(self.origin, Start) else None
        return tuple(file for file in (start, self.teacher and self.teacher.weights) if file)
