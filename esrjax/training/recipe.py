"""Schema of a recipe: stages with their data, loss, teacher, optimizer and schedule.

Strict pydantic dataclasses: unknown keys and conversions between types are errors. A recipe is read
by `esrjax.training.recipe_loader`; nothing here imports JAX.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from esrjax import registry
from esrjax.schema import (
    BY_TYPE,
    LIST,
    NUMBER,
    STRICT,
    STRING,
    TABLE,
    NonNegativeFloat,
    PositiveFloat,
    subschema,
)

# Steps are counted in int32, and JAX keeps 32 bits of a seed: others would be cut without a word.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
MAX_RUNS = 1000  # of stages, repetitions included
Fraction = Annotated[float, Field(ge=0, lt=1)]
Globs = tuple[str, ...]
StageWeights = Literal["ema", "raw"]  # the result of a stage, or the weights after its last step
Parallel = Literal["jit", "fsdp", "pmap"]

Augment = Literal["hflip", "vflip", "rot90", "rgb"]
PatchSize = tuple[PositiveInt, PositiveInt]  # height and width of an HR crop, pixels
PatchSizes = Annotated[tuple[PatchSize, ...], Field(min_length=1)]
DatasetNames = Annotated[tuple[str, ...], Field(min_length=1)]
DatasetWeights = Annotated[Mapping[str, PositiveFloat], Field(min_length=1)]

FeatureTerm = Literal["teacher_affinity", "teacher_features"]  # of intermediate features
DistillationTerm = Literal["teacher_l1", "teacher_mse", "teacher_edges", FeatureTerm]


def _check_loss_name(name: str) -> str:
    if name in get_args(DistillationTerm):
        return name
    return _check_name(registry.LOSS_GROUP, name, "loss")


def _check_name(group: str, name: str, noun: str) -> str:
    if name in registry.component_names(group):
        return name
    error = registry.unknown_component(group, name, noun)
    raise ValueError(f"{error.problem}: {error.rule}; {error.remedy}")


# An entry point of the group `esrjax.losses`, or a distillation term.
LossTerm = Annotated[str, AfterValidator(_check_loss_name)]
OptimizerName = Annotated[
    str, AfterValidator(lambda name: _check_name(registry.OPTIMIZER_GROUP, name, "optimizer"))
]
Breakpoints = Annotated[tuple[tuple[NonNegativeInt, NonNegativeFloat], ...], Field(min_length=2)]
# A number, or [[step, weight], ...]: piecewise linear between the breakpoints, constant outside.
LossWeight = Annotated[Annotated[PositiveFloat, NUMBER] | Annotated[Breakpoints, LIST], BY_TYPE]


# --- data ---


def _is_increasing(steps: Sequence[int]) -> bool:
    return list(steps) == sorted(set(steps))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PatchPhase:
    """One entry of `patch_schedule`: the patch sizes from a step of the stage on.

    Attributes:
        step: First step of the stage, from 0, that uses these sizes.
        hr_patch_sizes: (height, width) of the HR crops, pixels.
    """

    step: PositiveInt
    hr_patch_sizes: PatchSizes


_DATA_DEFAULTS = {"num_workers": 0, "cache_gib": 4.0}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Datasets, patches and augmentation of a stage.

    Attributes:
        datasets: Names or folders of datasets, or parts of them (`LSDIR[:10000]`, `LSDIR[20%]`).
            A list samples all images with equal probability; a table gives the relative weight
            with which patches are drawn from each dataset.
        hr_patch_sizes: (height, width) of the HR crops, pixels. One size is drawn per batch.
        patch_schedule: Curriculum: other patch sizes from given steps of the stage on.
        batch_size: Patches per step, over all devices and processes.
        augment: Augmentations, each applied to a patch with probability 1/2. hflip, vflip and rot90
            together give the 8 symmetries of the square; rgb shuffles the colour channels (Yoo et
            al., CVPR 2020, arXiv 2004.00448).
        hr_downscales: Factors below 1. Each adds a copy of every HR image, resized by bicubic, with
            the LR image recomputed from it.
        undersized: Images smaller than the largest patch raise an error, or are skipped.
        crop_on: Where patches are cropped: on the host, or on the device, which then keeps all
            images in its memory.
        num_workers: Processes of the host that crop patches; 0 uses threads of the main process.
        cache_gib: GiB of decoded images that the host keeps in memory, over all its workers; other
            images are read again whenever they are drawn.
    """

    datasets: Annotated[Annotated[DatasetNames, LIST] | Annotated[DatasetWeights, TABLE], BY_TYPE]
    hr_patch_sizes: PatchSizes
    patch_schedule: tuple[PatchPhase, ...] = ()
    batch_size: PositiveInt
    augment: tuple[Augment, ...] = ()
    hr_downscales: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    undersized: Literal["error", "skip"] = "error"
    crop_on: Literal["host", "device"] = "host"
    num_workers: NonNegativeInt = 0
    cache_gib: PositiveFloat = _DATA_DEFAULTS["cache_gib"]

    def __post_init__(self) -> None:
        if not _is_increasing([phase.step for phase in self.patch_schedule]):
            raise ValueError("patch_schedule: the steps must be strictly increasing")
        for name in ("num_workers", "cache_gib"):
            if self.crop_on == "device" and getattr(self, name) != _DATA_DEFAULTS[name]:
                raise ValueError(f'{name} requires crop_on = "host"')
        for name in ("datasets", "augment", "hr_downscales"):
            values: list[Any] = [*getattr(self, name)]
            if duplicates := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{name} has {', '.join(map(repr, duplicates))} more than once")

    @property
    def dataset_weights(self) -> dict[str, float | None]:
        """Dataset -> its relative weight; None where all images have equal probability."""
        if isinstance(self.datasets, Mapping):
            return dict(self.datasets)
        return dict.fromkeys(self.datasets)

    @property
    def all_patch_sizes(self) -> tuple[PatchSize, ...]:
        """The HR patch sizes of all phases, (height, width) in pixels."""
        later_sizes = [size for phase in self.patch_schedule for size in phase.hr_patch_sizes]
        return (*self.hr_patch_sizes, *later_sizes)

    def patch_sizes_at(self, step: int) -> tuple[PatchSize, ...]:
        """Return the candidate sizes for the batch of `step`, counted from 0 in the stage."""
        active = [phase.hr_patch_sizes for phase in self.patch_schedule if phase.step <= step]
        return active[-1] if active else self.hr_patch_sizes


# --- teacher, optimizer and schedule ---


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """The frozen network whose output and features the `teacher_` terms compare with.

    It is either the result of an earlier stage, or a method with a checkpoint.

    Attributes:
        stage: Name of an earlier stage whose final network is the teacher.
        method: Name of the teacher's method.
        checkpoint: Path or name of the teacher's weights.
        hparams: Hyperparameters of the network that the checkpoint needs, beyond the defaults.
        taps: Submodule of the student -> submodule of the teacher, by path (`block_1`), whose
            outputs the feature terms compare.
    """

    stage: str | None = None
    method: str | None = None
    checkpoint: str | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    taps: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.stage is not None and (self.method or self.checkpoint or self.hparams):
            raise ValueError("teacher takes `stage`, or `method` and `checkpoint`, not both")
        if self.stage is None and not (self.method and self.checkpoint):
            raise ValueError("teacher needs `stage`, or `method` and `checkpoint`")


_SCHEDULES_OF_FIELD = {
    "restarts": ("cosine",),
    "restart_weights": ("cosine",),
    "end_learning_rate": ("cosine",),
    "milestones": ("multistep",),
    "step_size": ("step",),
    "gamma": ("multistep", "step"),
}


_MOMENTUM = {"muadamw": 0.95, "lars": 0.9}  # default of each optimizer that has the field
_OPTIMIZERS_OF_FIELD = {
    "b1": ("adam", "adamw", "muadamw", "lamb"),
    "b2": ("adam", "adamw", "muadamw", "lamb"),
    "muon_learning_rate": ("muadamw",),
    "momentum": tuple(_MOMENTUM),
    "trust_coefficient": ("lars",),
}
_OPTIMIZERS = ("adam", "adamw", "muadamw", "lamb", "lars")  # those of esrjax


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    """Adam, AdamW, MuAdamW, LAMB, LARS or another registered optimizer.

    The defaults of Adam and AdamW are PyTorch's. MuAdamW is Muon for matrices and convolution
    kernels, and AdamW for all other parameters (NTIRE 2026 report, VARH-AI, Eq. 13-15). LAMB (You
    et al. 2019, arXiv 1904.00962) and LARS (You et al. 2017, arXiv 1708.03888) scale the update of
    each layer by a trust ratio.

    Attributes:
        name: adam, adamw, muadamw, lamb, lars, or another entry point of the group
            `esrjax.optimizers`, which reads the fields below that it has. The weight decay of adam
            and lars is added to the gradient (L2), that of the others to the update (decoupled);
            lamb and lars decay no vectors and scalars.
        learning_rate: Initial learning rate; of MuAdamW, that of its AdamW part.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Term added to the denominator, of lars that of the trust ratio.
        weight_decay: Coefficient of the weight decay.
        muon_learning_rate: Initial learning rate of Muon; required by muadamw, and by it only.
        momentum: Nesterov momentum of Muon, 0.95 by default, or momentum of lars, 0.9 by default.
        trust_coefficient: Factor of the trust ratio of lars, η in the paper.
    """

    name: OptimizerName
    learning_rate: PositiveFloat
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    muon_learning_rate: PositiveFloat | None = None
    momentum: Fraction | None = None
    trust_coefficient: PositiveFloat = 1e-3

    def __post_init__(self) -> None:
        if (self.name == "muadamw") != (self.muon_learning_rate is not None):
            raise ValueError("the optimizer muadamw, and it alone, requires muon_learning_rate")
        for name, optimizers in _OPTIMIZERS_OF_FIELD.items():
            is_default = getattr(self, name) == type(self).__dataclass_fields__[name].default
            if self.name in _OPTIMIZERS and self.name not in optimizers and not is_default:
                raise ValueError(f"{name} is a key of {', '.join(optimizers)}, not of {self.name}")
        if self.momentum is None:  # written out, as all defaults in recipe.json
            object.__setattr__(self, "momentum", _MOMENTUM.get(self.name))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Schedule:
    """Learning-rate schedule over the steps of a stage; MuAdamW's two rates follow the same one.

    All steps but `warmup_steps` are counted from the end of the warm-up.

    Attributes:
        name: constant; cosine: a half cosine to `end_learning_rate`, started again at each of
            `restarts`; multistep: multiplied by `gamma` at each of `milestones`; step: multiplied
            by `gamma` every `step_size` steps.
        end_learning_rate: Last value of a cosine.
        warmup_steps: Steps of a linear warm-up from zero.
        restarts: Steps at which the cosine starts again.
        restart_weights: Factor of the learning rate at the start of each cosine: one for the first
            and one per restart; all 1 by default.
        milestones: Steps of multistep.
        gamma: Factor of multistep and step.
        step_size: Interval of step, in steps.
    """

    name: Literal["constant", "cosine", "multistep", "step"] = "constant"
    end_learning_rate: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    restarts: tuple[PositiveInt, ...] = ()
    restart_weights: tuple[PositiveFloat, ...] = ()
    milestones: tuple[NonNegativeInt, ...] = ()
    gamma: PositiveFloat = 0.5
    step_size: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.restart_weights and len(self.restart_weights) != len(self.restarts) + 1:
            raise ValueError("restart_weights must have one element more than restarts")
        for name, schedules in _SCHEDULES_OF_FIELD.items():
            is_default = getattr(self, name) == type(self).__dataclass_fields__[name].default
            if self.name not in schedules and not is_default:
                names = " and ".join(map(repr, schedules))
                raise ValueError(f"{name} is a field of the schedule {names}, not of {self.name!r}")
        for name in ("restarts", "milestones"):
            if not _is_increasing(getattr(self, name)):
                raise ValueError(f"{name} must be strictly increasing")
        if self.name == "step" and not self.step_size:
            raise ValueError("the schedule 'step' needs `step_size`, its interval in steps")
        if self.name == "multistep" and not self.milestones:
            raise ValueError("the schedule 'multistep' needs `milestones`, its steps")


# --- stage ---


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InitFrom:
    """Initial weights of a stage: the result of an earlier stage, or a checkpoint.

    Attributes:
        stage: Name of an earlier stage.
        weights: "ema": the result of that stage; "raw": without averaging, after its last step.
        checkpoint: Path or name of a file of weights.
        method: Method of the checkpoint, if it is not the stage's.
        hparams: Hyperparameters of the network that the checkpoint needs, beyond the defaults.
    """

    stage: str | None = None
    weights: StageWeights = "ema"
    checkpoint: str | None = None
    method: str | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if (self.stage is None) == (self.checkpoint is None):
            raise ValueError("init_from takes `stage` or `checkpoint`, exactly one of them")
        if self.stage is not None and (self.method or self.hparams):
            raise ValueError(
                "init_from takes `method` and `hparams` only with `checkpoint`; a stage has its own"
            )
        if self.stage is None and self.weights == "raw":
            raise ValueError('init_from takes weights = "raw" only with `stage`')


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Prune:
    """Structured pruning of a wider network at the start of a stage.

    Attributes:
        criterion: Which channels stay: the first ones, or those with the largest L1 norm.
    """

    criterion: Literal["first", "l1"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoRA:
    """Low-rank adapters on convolutions; all other parameters are frozen but those of `train`.

    Later stages keep them as long as rank, alpha and target modules are equal; otherwise they are
    merged into the kernels first.

    Attributes:
        rank: Rank of the adapters.
        alpha: The product of the factors is scaled by `alpha / rank`.
        target_modules: Globs of the paths of the convolutions.
        train: Globs of parameters of the network that are trained beside the adapters: `*.bias`.
    """

    rank: PositiveInt
    alpha: PositiveFloat
    target_modules: Annotated[Globs, Field(min_length=1)] = ("*",)
    train: Globs = ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quantization:
    """Kernels of 8 bits, and inputs of 8 bits, of the convolutions of the network in deploy form.

    The result is stored with the ranges of the inputs: whatever loads it computes with 8 bits.
    A later stage without this key trains the same weights in float32.

    Attributes:
        exclude: Globs of the paths of convolutions that stay in float32.
    """

    exclude: Globs = ()


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
        ours: Whether the stage is not one of the source of the recipe, such as a paper.
        method: Method of the network, if it is not the recipe's; the last stage has the recipe's.
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
        hparams: Hyperparameters of the network from this stage on, in all stages of its method.
        prune: How wider initial weights are reduced to this network.
        form: "deploy" fuses the reparameterized branches first and trains the fused network.
        train_fused: Train the branches, but compute with the convolutions that they fuse to: the
            same loss and gradient at the cost of the deploy form.
        teacher: The teacher of the distillation terms.
        lora: Low-rank adapters to train instead of the kernels.
        quantization: Convolutions of 8 bits, rounded while they are trained.
        freeze: Globs of parameters that are not trained.
        ema: Decay of an exponential moving average of the weights, which then is the result. It
            starts at the initial weights of the stage.
        ema_warmup: Whether the decay of step t, from 0, is `min(ema, (1 + t) / (10 + t))`, as in
            TensorFlow: the average then covers the last tenth of the steps until that is as long
            as `ema` says, and forgets the initial weights within a hundred steps.
        validation: Dataset, interval and metric of the validation.
        select: The result is the last weights, or those with the best validation PSNR.
        precision: Precision of the network's arithmetic; weights, optimizer and loss stay float32.
        grad_accum_steps: Micro-batches into which a batch is split, to save memory.
        grad_clip_norm: Largest global norm of the gradient.
        repeat: How often the stage runs; each repetition starts from the result of the one before.
        save_every: Interval of checkpoints, in steps.
        unspecified: Paths of keys, or of tables, that the source of the recipe leaves open:
            `data.augment`. Their values are a choice of the recipe.
    """

    name: str
    ours: bool = False
    method: str | None = None
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
    quantization: Quantization | None = None
    freeze: Globs = ()
    ema: Fraction | None = None
    ema_warmup: bool = False
    validation: Validation | None = None
    select: Literal["last", "best"] = "last"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    grad_accum_steps: PositiveInt = 1
    grad_clip_norm: PositiveFloat | None = None
    repeat: PositiveInt = 1
    save_every: PositiveInt = 5000
    unspecified: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        teacher_terms = ", ".join(term for term in self.loss if term.startswith("teacher_"))
        has_feature_terms = any(term in get_args(FeatureTerm) for term in self.loss)
        has_taps = bool(self.teacher and self.teacher.taps)
        # By the schema: code and --set may take away a value, such as `epochs` or a term.
        unknown = [path for path in self.unspecified if not _is_known(path)]
        rules = {
            "needs either steps or epochs": (self.steps is None) != (self.epochs is None),
            'select = "best" needs `validation`': self.select == "last" or self.validation,
            f"{teacher_terms} need a `teacher`": self.teacher or not teacher_terms,
            "no term of the loss uses the teacher": not self.teacher or teacher_terms,
            f"{', '.join(get_args(FeatureTerm))} and `teacher.taps` need each other": (
                has_feature_terms == has_taps
            ),
            "ema_warmup needs `ema`": self.ema is not None or not self.ema_warmup,
            'train_fused needs form = "train"': self.form == "train" or not self.train_fused,
            'quantization needs form = "deploy"': not self.quantization or self.form == "deploy",
            "quantization is not possible with lora, heads or teacher.taps": (
                not self.quantization or not (self.lora or self.heads or has_taps)
            ),
            "schedule.end_learning_rate is above the learning rate that the cosine starts from": (
                self.schedule.end_learning_rate
                <= self.optimizer.learning_rate * min(self.schedule.restart_weights, default=1)
            ),
            "grad_accum_steps must divide data.batch_size": (
                self.data.batch_size % self.grad_accum_steps == 0
            ),
            f"unspecified: no such key: {', '.join(map(repr, unknown))}": not unknown,
            "unspecified is not for stages that are ours": not (self.ours and self.unspecified),
        }
        if problems := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError("; ".join(problems))

    @property
    def init_source(self) -> InitFrom | Literal["scratch", "previous"]:
        """`init_from`, with the name of a checkpoint wrapped in an `InitFrom`."""
        if isinstance(self.init_from, InitFrom) or self.init_from in ("scratch", "previous"):
            return self.init_from  # pyright: ignore[reportReturnType] # one of the two words
        return InitFrom(checkpoint=self.init_from)

    @property
    def raw_source(self) -> str | None:
        """Name of the stage from whose weights after the last step this one starts."""
        source = self.init_source
        return source.stage if isinstance(source, InitFrom) and source.weights == "raw" else None

    @property
    def ema_initial_share(self) -> float:
        """Share of the initial weights in the moving average after `steps`; 0 without either."""
        if self.ema is None or self.steps is None:
            return 0.0
        num_warmup = 0
        if self.ema_warmup:  # steps t whose decay (1 + t) / (10 + t) is below `ema`
            num_warmup = min(self.steps, max(0, math.ceil((10 * self.ema - 1) / (1 - self.ema))))
        # The product of these decays is num_warmup! · 9! / (num_warmup + 9)!
        share = math.factorial(9) / math.prod(num_warmup + k for k in range(1, 10))
        return share * self.ema ** (self.steps - num_warmup)

    @property
    def late_steps(self) -> list[tuple[str, int]]:
        """Path and step of what would change at a step that the stage does not reach."""
        if self.steps is None:
            return []
        schedule, phases = self.schedule, self.data.patch_schedule
        later = [*schedule.milestones, *[schedule.step_size] * bool(schedule.step_size)]
        steps = [("schedule", schedule.warmup_steps + step) for step in later]
        steps += [("data.patch_schedule", phase.step) for phase in phases]
        for term, weight in self.loss.items():
            if not isinstance(weight, int | float):
                # A ramp to the very end is not late.
                steps += [(f"loss.{term}", weight[-1][0])] * (weight[-1][0] > self.steps)
        return [(path, step) for path, step in steps if step >= self.steps]

    @property
    def resume_key(self) -> "Stage":
        """The stage with the fields reset that change only its speed and how often it is saved."""
        data = replace(self.data, crop_on="host", **_DATA_DEFAULTS)
        return replace(self, data=data, save_every=5000, unspecified=(), ours=False)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Key -> path or name of the checkpoint that the stage reads for it."""
        sources = {"init_from": self.init_source, "teacher": self.teacher}
        files = {key: getattr(source, "checkpoint", None) for key, source in sources.items()}
        return {key: file for key, file in files.items() if file}


def _is_known(path: str) -> bool:
    """Return whether a stage can have a value at `path`, such as `data.augment`."""
    *parents, key = path.split(".")
    if parents == ["loss"]:
        return key in (*get_args(DistillationTerm), *registry.component_names(registry.LOSS_GROUP))
    table = subschema(parents, _stage_schema())
    return key in table.get("properties", ()) or bool(table.get("additionalProperties"))


@functools.cache
def _stage_schema() -> dict[str, Any]:
    return TypeAdapter(Stage).json_schema()


# --- recipe ---


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
        hparams: Hyperparameters of the method's network, beyond its defaults.
        parallel: Data parallelism over devices: one jitted program over a mesh ("jit"), the same
            with parameters, moving average and optimizer sharded over the devices instead of
            replicated ("fsdp"), or pmap.
    """

    method: str
    seed: NonNegativeInt
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]
    repeat: tuple[Repeat, ...] = ()
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parallel: Parallel = "jit"

    def __post_init__(self) -> None:
        if problems := [*self._invalid_names(), *self._invalid_references()]:
            raise ValueError("; ".join(problems))
        times = {name: group.times for group in self.repeat for name in group.stages}
        num_runs = sum(stage.repeat * times.get(stage.name, 1) for stage in self.stage)
        if num_runs > MAX_RUNS:
            raise ValueError(f"repeat: {num_runs} runs of stages, at most {MAX_RUNS} are possible")

    def _invalid_names(self) -> Iterator[str]:
        """Yield errors of names: duplicates, and groups that overlap or are not consecutive."""
        names = [stage.name for stage in self.stage]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            yield f"stage names must be unique, duplicates: {', '.join(duplicates)}"
        if (last := self.stage[-1]).method not in (None, self.method):
            yield f"{last.name}: the last stage trains {self.method}, not {last.method}"
        for group in self.repeat:
            first = names.index(group.stages[0]) if group.stages[0] in names else 0
            if tuple(names[first : first + len(group.stages)]) != group.stages:
                yield f"repeat: {', '.join(group.stages)} are not consecutive stages"
        grouped = [name for group in self.repeat for name in group.stages]
        if len(grouped) != len(set(grouped)):
            yield "repeat: a stage is in two groups"

    def _invalid_references(self) -> Iterator[str]:
        """Yield an error for every reference to weights that do not exist before the stage."""
        for index, stage in enumerate(self.stage):
            is_new = stage.init_from == "scratch" or (stage.init_from == "previous" and not index)
            if is_new and (stage.prune or stage.reinit or stage.lora or stage.quantization):
                keys = "prune, reinit, lora and quantization"
                yield f"{stage.name}: {keys} change initial weights; there are none"
            earlier = [earlier_stage.name for earlier_stage in self.stage[:index]]
            init = stage.init_from.stage if isinstance(stage.init_from, InitFrom) else None
            teacher = stage.teacher and stage.teacher.stage
            for key, name in (("init_from", init), ("teacher", teacher)):
                if name is not None and name not in earlier:
                    names = f"(earlier stages: {', '.join(earlier) or 'none'})"
                    yield f"{stage.name}: {key} {name!r} is not an earlier stage {names}"
            source = next((s for s in self.stage[:index] if s.name == init), None)
            if source and stage.raw_source and not (source.ema or source.select == "best"):
                yield f'{stage.name}: weights = "raw" has no effect: {init!r} has no `ema`'

    def needs_raw_weights(self, stage: Stage) -> bool:
        """Return whether another stage starts from the weights after the last step of `stage`."""
        return stage.name in [other.raw_source for other in self.stage]

    @property
    def runs(self) -> tuple[StageRun, ...]:
        """All executions of stages, in order.

        From its second repetition on, a stage starts from the weights of the run before it,
        whatever the first one started from.
        """
        stages, runs = self._unroll(), list[StageRun]()
        names = [stage.name for stage in stages]
        for index, stage in enumerate(stages):
            repetition, total = names[: index + 1].count(stage.name), names.count(stage.name)
            name = stage.name if total == 1 else f"{stage.name} {repetition}/{total}"
            if repetition > 1:
                stage = replace(stage, init_from="previous", reinit=(), prune=None)
            runs.append(StageRun(index=index, name=name, stage=stage))
        return tuple(runs)

    def latest_run(self, index: int, name: str | None) -> StageRun:
        """Return the last run before run `index`, of the stage `name`, or of any if it is None.

        There is one: a recipe is refused when it is read if it refers to any but an earlier stage.
        """
        return [run for run in self.runs[:index] if name in (None, run.stage.name)][-1]

    def method_of(self, stage: Stage) -> str:
        """Return the name of the method whose network a stage trains."""
        return stage.method or self.method

    def hparams_at(self, run: StageRun) -> dict[str, Any]:
        """Return the hyperparameters that the recipe sets for the network that `run` trains."""
        method = self.method_of(run.stage)
        hparams = dict(self.hparams) if method == self.method else {}
        for earlier in self.runs[: run.index + 1]:
            if self.method_of(earlier.stage) == method:
                hparams |= earlier.stage.hparams
        return hparams

    def scale_at(self, run: StageRun) -> int:
        """Return the upscaling factor of the network that `run` trains."""
        return registry.get_method(self.method_of(run.stage)).scale_of(self.hparams_at(run))

    def _unroll(self) -> list[Stage]:
        """Return the stages in order of execution, repetitions included."""
        unrolled: list[Stage] = []
        for stage in self.stage:
            group = next((group for group in self.repeat if stage.name in group.stages), None)
            names, times = (group.stages, group.times) if group else ((stage.name,), 1)
            if stage.name == names[0]:  # the others of its group are unrolled with it
                block = [s for s in self.stage if s.name in names for _ in range(s.repeat)]
                unrolled += block * times
        return unrolled

    @property
    def resume_key(self) -> "Recipe":
        """The recipe with the fields reset that may change when a run is resumed.

        Two recipes with equal keys train bit-identical weights; if they differ in `parallel`, as
        with other numbers of devices, weights that differ by the order of sums.
        """
        stages = tuple(stage.resume_key for stage in self.stage)
        return replace(self, stage=stages, parallel="jit")

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
