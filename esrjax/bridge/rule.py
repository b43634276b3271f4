"""`OptimizerPair`, one optimizer in optax and in `torch.optim`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax


@dataclass(frozen=True, kw_only=True)
class OptimizerPair:
    """One optimizer in both frameworks, with the same hyperparameters.

    Attributes:
        torch_name: Class name in `torch.optim`.
        torch_kwargs: Its keyword arguments, `lr` included.
        optax_tx: The same optimizer in optax.
        only_2d: Whether it updates 2-D parameters only, as Muon does.
        grad_scales: One optimizer step each, with the gradient times this factor; errors of the
            moment estimates show from the second step on.
    """

    torch_name: str
    torch_kwargs: Mapping[str, Any]
    optax_tx: optax.GradientTransformation
    only_2d: bool = False
    grad_scales: tuple[float, ...] = (1.0,)
