"""What a stage says of its aim: terms, their weights, and the teacher that some of them need."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import BY_KIND, LIST, NUMBER, STRICT, Count, NotNegative, Positive

PictureTerm = Literal["l1", "mse", "charbonnier", "fft", "gradient", "laplacian"]
Lesson = Literal[
    "teacher_l1", "teacher_mse", "teacher_edges", "teacher_affinity", "teacher_features"
]
Term = Literal[PictureTerm, Lesson]
OF_TAPS: tuple[Lesson, ...] = (
    "teacher_affinity",
    "teacher_features",
)  # compare parts, not pictures

Knots = Annotated[tuple[tuple[Count, NotNegative], ...], Field(min_length=2)]
# A number, or [[step, weight], ...] with straight lines in between and constant outside.
Weight = Annotated[Annotated[Positive, NUMBER] | Annotated[Knots, LIST], BY_KIND]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Teacher:
    """A frozen network whose output, and whose parts, the `teacher_` terms look at.

    Either what a stage has left, by its name, or a method with a file of weights and the sizes
    that they need. taps: part of the student -> part of the teacher, by path (`block_1`).
    """

    stage: str | None = None
    method: str | None = None
    weights: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    taps: Mapping[str, str] = field(default_factory=dict[str, str])

    @model_validator(mode="after")
    def _one(self) -> "Teacher":
        if self.stage is not None and (self.method or self.weights or self.sizes):
            raise ValueError("a teacher is a stage, or a method with weights, not both")
        if self.stage is None and not (self.method and self.weights):
            raise ValueError("a teacher needs `stage`, or `method` and `weights`")
        return self
