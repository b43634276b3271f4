"""What plugins and kernels must satisfy; third parties ask it in tests of three lines."""

from esrjax.testing.kernels import check_kernel
from esrjax.testing.methods import QUICK, MissingChex, check_method, verdicts
from esrjax.testing.verdict import Verdict

__all__ = ["QUICK", "MissingChex", "Verdict", "check_kernel", "check_method", "verdicts"]
