"""Schema of a stage's loss: terms, their weights, and the teacher of the distillation terms."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import (
    BY_TYPE,
    LIST,
    NUMBER,
    STRICT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
)

ImageTerm = Literal["l1", "mse", "charbonnier", "fft", "gradient", "laplacian"]
DistillationTerm = Literal[
    "teacher_l1", "teacher_mse", "teacher_edges", "teacher_affinity", "teacher_features"
]
LossTerm = Literal[ImageTerm, DistillationTerm]
FEATURE_TERMS: tuple[DistillationTerm, ...] = (
    "teacher_affinity",
    "teacher_features",
)  # compare intermediate features, not images

Breakpoints = Annotated[tuple[tuple[NonNegativeInt, NonNegativeFloat], ...], Field(min_length=2)]
# A number, or [[step, weight], ...]: piecewise linear between the breakpoints, constant outside.
LossWeight = Annotated[Annotated[PositiveFloat, NUMBER] | Annotated[Breakpoints, LIST], BY_TYPE]


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

    @model_validator(mode="after")
    def _check(self) -> "TeacherConfig":
        if self.stage is not None and (self.method or self.checkpoint or self.hparams):
            raise ValueError("teacher takes `stage`, or `method` and `checkpoint`, not both")
        if self.stage is None and not (self.method and self.checkpoint):
            raise ValueError("teacher needs `stage`, or `method` and `checkpoint`")
        return self
