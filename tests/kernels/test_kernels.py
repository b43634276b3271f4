"""A kernel keeps the laws, whatever its block, and becomes code for what networks give it."""

import functools
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import ON_CPU

from esrjax.network import ops
from esrjax.testing import check_kernel
from esrjax.testing.operands import OPERANDS, REAL, SMALL, arrays, numbers, shapes

NAMES = tuple(OPERANDS)
BLOCKS = {  # so that little is much: many segments, several programs
    "selective_scan": {"rows": 128, "tokens": 4},
    "spab": {"columns": 64, "lines": 4},
    "gated_spab": {"columns": 64, "lines": 4},
}


def interpreted(name, block=None):
    return functools.partial(ops.kernel(name).call, block=block, interpret=ON_CPU)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_keeps_the_laws(name):
    check_kernel(ops.kernel(name), name, call=interpreted(name, BLOCKS.get(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_served_in_some_type(name):
    """What is refused the laws do not ask."""
    for sizes in SMALL[name]:
        given = [shapes(name, sizes, dtype) for dtype in ("float32", "bfloat16")]
        assert None in [ops.kernel(name).why_not(*each) for each in given]


@pytest.mark.parametrize(
    "name, sizes, block",
    [
        ("gated_residual", (1, 13, 23, 4), {"rows": 256}),
        ("window_attention", (1, 1, 1, 5, 7, 3, True), {"rows": 128, "keys": 3}),
        ("selective_scan", (1, 7, 3, 2), {"rows": 128, "tokens": 64}),
        ("gated_spab", (1, 3, 130, 5), {"columns": 128, "lines": 64}),
    ],
)
def test_the_block_changes_no_number(name, sizes, block):
    found = interpreted(name, block)(*arrays(name, sizes, jnp.float32))
    with jax.enable_x64(True), ops.body("reference"):
        wanted = getattr(ops, name)(*map(jnp.asarray, numbers(name, sizes)))
    allowed = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name, sizes", [(name, sizes) for name in REAL for sizes in REAL[name]])
def test_a_kernel_becomes_code_for_cuda_without_a_gpu(name, sizes, dtype):
    given = shapes(name, sizes, dtype)
    if (name, sizes[-1], dtype) == ("spab", 48, "float32"):
        assert "bytes of shared memory" in ops.kernel(name).why_not(*given)
        return
    assert ops.kernel(name).why_not(*given) is None
    traced = jax.jit(ops.kernel(name).call).trace(*given)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == (2 if name == "selective_scan" else 1)


def test_every_kernel_is_of_an_operation():
    found = {entry.name for entry in metadata.entry_points(group=ops.KERNELS)}
    assert found >= set(NAMES)
    assert all(callable(getattr(ops, name)) for name in NAMES)
