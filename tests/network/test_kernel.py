"""An operation has one kernel at most, and a bad package spoils its own alone."""

import jax.numpy as jnp
import pytest

from esrjax.network import ops
from esrjax.network.kernel import AmbiguousKernel, BrokenKernel, kernel

GOOD = """
from esrjax.network.ops import Kernel

KERNEL = Kernel(call=lambda x, f, w, b: x, platform="cpu")
OTHER = 3
"""


@pytest.fixture
def install(package):
    kernel.cache_clear()
    yield lambda name, source, entries: package(name, source, ops.KERNELS, entries)
    kernel.cache_clear()


def test_a_kernel_of_others_is_found(install):
    install("theirs", GOOD, {"new_operation": "KERNEL"})
    assert kernel("new_operation").platform == "cpu"
    assert kernel("gated_residual").platform == "cuda"


def test_two_kernels_of_one_operation_are_one_too_many(install, esrjax):
    install("theirs", GOOD, {"gated_residual": "KERNEL"})
    with pytest.raises(AmbiguousKernel) as caught:
        kernel("gated_residual")
    text = str(caught.value)
    assert "the operation 'gated_residual' has more than one kernel" in text
    assert "esrjax_kernels.gated_residual:KERNEL" in text and "theirs 1.0 (fake_theirs" in text
    assert kernel("selective_scan").platform == "cuda"
    assert "more than one kernel" in esrjax("doctor", "--json").json["kernels"]["gated_residual"]


@pytest.mark.parametrize(
    "source, what, reason",
    [
        ("1 / 0", "KERNEL", "importing it raised ZeroDivisionError: division by zero"),
        (GOOD, "OTHER", "it holds a int"),
    ],
)
def test_a_broken_package_is_named(install, source, what, reason):
    install("theirs", source, {"new_operation": what})
    with pytest.raises(BrokenKernel) as caught:
        kernel("new_operation")
    assert reason in str(caught.value) and "of theirs 1.0" in str(caught.value)


def test_a_contested_kernel_is_in_nobodys_way_who_wants_none(install):
    install("theirs", GOOD, {"gated_residual": "KERNEL"})
    given = [jnp.ones(shape) for shape in ((1, 2, 3, 7), (1, 2, 3, 7), (1, 1, 7, 7), (7,))]
    with ops.body("reference"):
        assert (ops.gated_residual(*given) == 16).all()
    with pytest.raises(AmbiguousKernel):
        ops.gated_residual(*given)
