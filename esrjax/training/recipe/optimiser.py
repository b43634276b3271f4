"""What a stage says of its optimiser and of how the rate moves."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import STRICT, Count, NotNegative, Positive

Fraction = Annotated[float, Field(ge=0, lt=1)]
_BELONGS = (("restarts", "cosine"), ("milestones", "multistep"), ("every", "halving"))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimiser:
    """Adam, AdamW with decoupled decay, or MuAdamW; the defaults are PyTorch's.

    MuAdamW: matrices and convolution kernels by Muon at the rate `muon_lr`, with momentum
    `momentum`, all else by AdamW at `lr` (NTIRE 2026 report, VARH-AI, Eq. 13-15).
    """

    name: Literal["adam", "adamw", "muadamw"]
    lr: Positive
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    muon_lr: Positive | None = None
    momentum: Fraction = 0.95

    @model_validator(mode="after")
    def _agrees(self) -> "Optimiser":
        if (self.name == "muadamw") != (self.muon_lr is not None):
            raise ValueError("muon_lr belongs to the optimiser 'muadamw', which needs it")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Schedule:
    """How the rate moves with the step; of several rates, all alike.

    cosine: from the rate to `end_lr`, anew after every step in `restarts`, each time from the rate
    times its weight in `restart_weights`. multistep: times `gamma` at each of `milestones`.
    halving: times `gamma` after every `every` steps. warmup_steps: linear, from zero, before all
    else.
    """

    name: Literal["constant", "cosine", "multistep", "halving"] = "constant"
    end_lr: NotNegative = 0.0
    warmup_steps: Count = 0
    restarts: tuple[Count, ...] = ()
    restart_weights: tuple[Positive, ...] = ()
    milestones: tuple[Count, ...] = ()
    gamma: Positive = 0.5
    every: Count = 0

    @model_validator(mode="after")
    def _agrees(self) -> "Schedule":
        if self.restart_weights and len(self.restart_weights) != len(self.restarts) + 1:
            raise ValueError("restart_weights needs one weight more than there are restarts")
        for name, of in _BELONGS:
            if getattr(self, name) and self.name != of:
                raise ValueError(f"{name} belongs to the schedule '{of}', not to '{self.name}'")
        for name in ("restarts", "milestones"):
            steps: tuple[int, ...] = getattr(self, name)
            if list(steps) != sorted(set(steps)):
                raise ValueError(f"{name} must grow from one to the next")
        if self.name == "halving" and not self.every:
            raise ValueError("the schedule 'halving' needs `every`, the steps between two halvings")
        return self
