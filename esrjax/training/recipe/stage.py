"""Schema of a stage: one training from initial to final weights."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import BY_TYPE, STRICT, STRING, TABLE, PositiveFloat
from esrjax.training.recipe.data import Data
from esrjax.training.recipe.objective import (
    FEATURE_TERMS,
    DistillationTerm,
    LossTerm,
    LossWeight,
    TeacherConfig,
)
from esrjax.training.recipe.optimizer import Fraction, Optimizer, Schedule

PositiveInt = Annotated[int, Field(gt=0)]
Globs = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InitFrom:
    """Initial weights of a stage: the result of an earlier stage, or a checkpoint.

    Attributes:
        stage: Name of an earlier stage.
        checkpoint: Path or name of a file of weights.
        method: Method of the checkpoint, if it is not the recipe's.
        hparams: Hyperparameters of the network that the checkpoint needs, beyond the defaults.
    """

    stage: str | None = None
    checkpoint: str | None = None
    method: str | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @model_validator(mode="after")
    def _check(self) -> "InitFrom":
        if (self.stage is None) == (self.checkpoint is None):
            raise ValueError("init_from takes `stage` or `checkpoint`, exactly one of them")
        if self.stage is not None and (self.method or self.hparams):
            raise ValueError(
                "init_from takes `method` and `hparams` only with `checkpoint`; a stage has its own"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prune:
    """Structured pruning of a wider network at the start of a stage.

    Attributes:
        criterion: Which channels stay: the first ones, or those with the largest L1 norm.
    """

    criterion: Literal["first", "l1"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoRA:
    """Low-rank adapters on convolutions; they alone are trained.

    Later stages keep them as long as their `lora` is equal; otherwise they are merged into the
    kernels first.

    Attributes:
        rank: Rank of the adapters.
        alpha: The product of the factors is scaled by `alpha / rank`.
        target_modules: Globs of the paths of the convolutions.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    target_modules: Annotated[Globs, Field(min_length=1)] = ("*",)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Validation:
    """Validation during a stage.

    Attributes:
        dataset: Name or folder of the dataset, or a part of it.
        every: Interval in steps; the last step is always scored.
        spec: Name of the metric spec (`esrjax metrics list`).
        patience: The stage ends after this many consecutive scores without improvement.
    """

    dataset: str
    every: PositiveInt
    spec: str = "ntire"
    patience: PositiveInt | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """One training from initial to final weights.

    Attributes:
        name: Unique name within the recipe.
        steps: Length in optimizer steps; either this or `epochs`.
        epochs: Length in epochs, in each of which every image is cropped once.
        data: Datasets, patches and augmentation.
        loss: Term -> its weight, constant or piecewise linear over the steps.
        heads: Path of a further output of the network -> its weight. Every image term is also
            computed for that output, against HR resized to its size, and added with that weight.
        optimizer: The optimizer.
        schedule: The learning-rate schedule.
        init_from: Initial weights: "scratch", "previous" (the result of the stage before), a table,
            or any other string: the path or name of a checkpoint.
        reinit: Globs of parameters that `init_from` lacks and that keep their initialization.
        hparams: Hyperparameters of the network from this stage on.
        prune: How wider initial weights are reduced to this network.
        form: "deploy" fuses the reparameterized branches first and trains the fused network.
        train_fused: Train the branches, but compute with the convolutions that they fuse to: the
            same loss and gradient at the cost of the deploy form.
        teacher: The teacher of the distillation terms.
        lora: Low-rank adapters to train instead of the weights.
        freeze: Globs of parameters that are not trained.
        ema: Decay of an exponential moving average of the weights, which then is the result.
        validation: Dataset, interval and metric of the validation.
        select: The result is the last weights, or those with the best validation PSNR.
        precision: Precision of the network's arithmetic; weights, optimizer and loss stay float32.
        grad_accum_steps: Micro-batches into which a batch is split, to save memory.
        grad_clip_norm: Largest global norm of the gradient.
        repeat: How often the stage runs; each repetition starts from the result of the one before.
        save_every: Interval of checkpoints, in steps.
    """

    name: str
    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    data: Data
    loss: Annotated[Mapping[LossTerm, LossWeight], Field(min_length=1)]
    heads: Mapping[str, PositiveFloat] = field(default_factory=dict[str, float])
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    init_from: Annotated[Annotated[str, STRING] | Annotated[InitFrom, TABLE], BY_TYPE] = "previous"
    reinit: Globs = ()
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prune: Prune | None = None
    form: Literal["train", "deploy"] = "train"
    train_fused: bool = False
    teacher: TeacherConfig | None = None
    lora: LoRA | None = None
    freeze: Globs = ()
    ema: Fraction | None = None
    validation: Validation | None = None
    select: Literal["last", "best"] = "last"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    grad_accum_steps: PositiveInt = 1
    grad_clip_norm: PositiveFloat | None = None
    repeat: PositiveInt = 1
    save_every: PositiveInt = 5000

    @model_validator(mode="after")
    def _check(self) -> "Stage":
        problems = [
            complaint
            for holds, complaint in (
                ((self.steps is None) != (self.epochs is None), "needs either steps or epochs"),
                (self.select == "last" or self.validation, 'select = "best" needs `validation`'),
                (
                    self.teacher or not self._teacher_terms,
                    f"{self._teacher_terms} need a `teacher`",
                ),
                (not self.teacher or self._teacher_terms, "no term of the loss uses the teacher"),
                (
                    self._taps_match_loss,
                    f"{', '.join(FEATURE_TERMS)} and `teacher.taps` need each other",
                ),
                (
                    self.data.batch_size % self.grad_accum_steps == 0,
                    "grad_accum_steps must divide data.batch_size",
                ),
            )
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def _teacher_terms(self) -> str:
        """Names of the loss terms that need a teacher, comma-separated."""
        return ", ".join(term for term in self.loss if term.startswith("teacher_"))

    @property
    def _taps_match_loss(self) -> bool:
        feature_terms: set[DistillationTerm] = set(FEATURE_TERMS)
        return bool(feature_terms & set(self.loss)) == bool(self.teacher and self.teacher.taps)

    @property
    def init_source(self) -> InitFrom | Literal["scratch", "previous"]:
        """`init_from`, with the name of a checkpoint wrapped in an `InitFrom`."""
        if isinstance(self.init_from, InitFrom) or self.init_from in ("scratch", "previous"):
            return self.init_from  # pyright: ignore[reportReturnType] # one of the two words
        return InitFrom(checkpoint=self.init_from)

    @property
    def resume_key(self) -> "Stage":
        """The stage with the fields reset that change only its speed and how often it is saved."""
        data = replace(self.data, crop_on="host", num_workers=0, cache_gib=4.0)
        return replace(self, data=data, save_every=5000)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Paths or names of the checkpoints that the stage reads."""
        init = self.init_source.checkpoint if isinstance(self.init_source, InitFrom) else None
        return tuple(file for file in (init, self.teacher and self.teacher.checkpoint) if file)
