"""Conformance checks for plugins and kernels, for use in the tests of any package."""

from esrjax.testing.components import check_loss, check_metric, check_optimizer
from esrjax.testing.kernels import check_kernel
from esrjax.testing.methods import FAST_COMPILE, CheckResult, check_method, run_checks

__all__ = [
    "FAST_COMPILE",
    "CheckResult",
    "check_kernel",
    "check_loss",
    "check_method",
    "check_metric",
    "check_optimizer",
    "run_checks",
]
