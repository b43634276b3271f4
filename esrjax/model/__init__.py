"""A method with weights: what users call on pictures."""

from esrjax.model.fusion import Fusion
from esrjax.model.limits import BadWindows, PictureTooSmall, require_side, require_windows
from esrjax.model.model import Model
from esrjax.model.opening import (
    BadEnsemble,
    Files,
    NoWeights,
    open_method,
    open_model,
    require_ensemble,
    sizes_of,
)

__all__ = [
    "BadEnsemble",
    "BadWindows",
    "Files",
    "Fusion",
    "Model",
    "NoWeights",
    "PictureTooSmall",
    "open_method",
    "open_model",
    "require_ensemble",
    "require_side",
    "require_windows",
    "sizes_of",
]
