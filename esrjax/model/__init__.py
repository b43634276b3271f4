"""Models: methods and ensembles with weights, called on images."""

from esrjax.model.fusion import EnsembleModel
from esrjax.model.limits import BadWindows, ImageTooSmall, check_min_side, check_windows
from esrjax.model.model import Model
from esrjax.model.opening import (
    BadEnsemble,
    CheckpointPaths,
    NoWeights,
    check_ensemble,
    member_hparams,
    open_method,
    open_model,
)

__all__ = [
    "BadEnsemble",
    "BadWindows",
    "CheckpointPaths",
    "EnsembleModel",
    "ImageTooSmall",
    "Model",
    "NoWeights",
    "check_ensemble",
    "check_min_side",
    "check_windows",
    "member_hparams",
    "open_method",
    "open_model",
]
