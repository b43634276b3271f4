"""An optimiser that both sides have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One optimiser on both sides.

    theirs: its name in `torch.optim`. said: what it is made with there. ours: the same in optax.
    matrices: it moves only leaves with two axes. scales: a step for each, from PyTorch's gradient
    times this; moments show from the second.
    """

    theirs: str
    said: Mapping[str, Any]
    ours: optax.GradientTransformation
    matrices: bool = False
    scales: tuple[float, ...] = (1.0,)
