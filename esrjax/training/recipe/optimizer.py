"""Schema of a stage's optimizer and learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import STRICT, NonNegativeFloat, NonNegativeInt, PositiveFloat

Fraction = Annotated[float, Field(ge=0, lt=1)]
_SCHEDULE_OF_FIELD = (("restarts", "cosine"), ("milestones", "multistep"), ("step_size", "step"))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    """Adam, AdamW or MuAdamW; the defaults are PyTorch's.

    MuAdamW is Muon for matrices and convolution kernels, and AdamW for all other parameters (NTIRE
    2026 report, VARH-AI, Eq. 13-15).

    Attributes:
        name: The optimizer. The weight decay of adam is added to the gradient (L2), that of adamw
            and muadamw to the update (decoupled).
        learning_rate: Initial learning rate; of MuAdamW, that of its AdamW part.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Term added to the denominator.
        weight_decay: Coefficient of the weight decay.
        muon_learning_rate: Initial learning rate of Muon; required by muadamw, and by it only.
        momentum: Nesterov momentum of Muon.
    """

    name: Literal["adam", "adamw", "muadamw"]
    learning_rate: PositiveFloat
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    muon_learning_rate: PositiveFloat | None = None
    momentum: Fraction = 0.95

    @model_validator(mode="after")
    def _check(self) -> "Optimizer":
        if (self.name == "muadamw") != (self.muon_learning_rate is not None):
            raise ValueError(
                "muon_learning_rate is required by the optimizer 'muadamw', and only by it"
            )
        return self


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
    restarts: tuple[NonNegativeInt, ...] = ()
    restart_weights: tuple[PositiveFloat, ...] = ()
    milestones: tuple[NonNegativeInt, ...] = ()
    gamma: PositiveFloat = 0.5
    step_size: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check(self) -> "Schedule":
        if self.restart_weights and len(self.restart_weights) != len(self.restarts) + 1:
            raise ValueError("restart_weights must have one element more than restarts")
        for name, schedule in _SCHEDULE_OF_FIELD:
            if getattr(self, name) and self.name != schedule:
                raise ValueError(
                    f"{name} is a field of the schedule '{schedule}', not of '{self.name}'"
                )
        for name in ("restarts", "milestones"):
            steps: tuple[int, ...] = getattr(self, name)
            if list(steps) != sorted(set(steps)):
                raise ValueError(f"{name} must be strictly increasing")
        if self.name == "step" and not self.step_size:
            raise ValueError("the schedule 'step' needs `step_size`, its interval in steps")
        return self
