"""Discovery of kernels: at most one for an op, and a broken package affects its own ops only."""

import jax.numpy as jnp
import pytest

from esrjax.network import ops
from esrjax.network.kernel import AmbiguousKernel, BrokenKernel, find_kernel

GOOD = """
from esrjax.network.ops import Kernel

KERNEL = Kernel(call=lambda x, f, w, b: x, platform="cpu")
OTHER = 3
"""


@pytest.fixture
def install(package):
    find_kernel.cache_clear()
    yield lambda name, source, entries: package(name, source, ops.KERNEL_GROUP, entries)
    find_kernel.cache_clear()


def test_kernel_of_another_package_is_found(install):
    install("theirs", GOOD, {"new_operation": "KERNEL"})
    assert find_kernel("new_operation").platform == "cpu"
    assert find_kernel("gated_residual").platform == "cuda"


def test_two_kernels_of_one_op_are_reported(install, esrjax):
    install("theirs", GOOD, {"gated_residual": "KERNEL"})
    with pytest.raises(AmbiguousKernel) as caught:
        find_kernel("gated_residual")
    text = str(caught.value)
    assert "'gated_residual' has more than one kernel" in text
    assert "esrjax_kernels.gated_residual:KERNEL" in text and "theirs 1.0 (fake_theirs" in text
    assert find_kernel("selective_scan").platform == "cuda"
    assert "more than one kernel" in esrjax("doctor", "--json").json["kernels"]["gated_residual"]


@pytest.mark.parametrize(
    "source, attribute, reason",
    [
        ("1 / 0", "KERNEL", "importing it raised ZeroDivisionError: division by zero"),
        (GOOD, "OTHER", "it is a int"),
    ],
)
def test_broken_package_is_reported(install, source, attribute, reason):
    install("theirs", source, {"new_operation": attribute})
    with pytest.raises(BrokenKernel) as caught:
        find_kernel("new_operation")
    assert reason in str(caught.value) and "of theirs 1.0" in str(caught.value)


def test_reference_runs_in_spite_of_ambiguous_kernels(install):
    install("theirs", GOOD, {"gated_residual": "KERNEL"})
    operands = [jnp.ones(shape) for shape in ((1, 2, 3, 7), (1, 2, 3, 7), (1, 1, 7, 7), (7,))]
    with ops.implementation("reference"):
        assert (ops.gated_residual(*operands) == 16).all()
    with pytest.raises(AmbiguousKernel):
        ops.gated_residual(*operands)
