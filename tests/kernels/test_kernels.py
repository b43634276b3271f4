"""A kernel gives the reference's numbers, has its gradient, and becomes code for CUDA."""

import functools
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import ON_CPU
from operands import REAL, SMALL, arrays, shapes

from esrjax.network import ops
from esrjax.network.ops import Kernel

CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest number
NAMES = ("gated_residual", "window_attention", "selective_scan")
TINY = {
    "gated_residual": (1, 2, 2, 4),
    "window_attention": (1, 2, 2, 4, 6, 3, True),
    "selective_scan": (1, 5, 3, 2),
}
BLOCKS = {"selective_scan": {"rows": 128, "tokens": 4}}  # so that few tokens are many segments


def interpreted(name, block=None):
    return functools.partial(
        ops.kernel(name).call, block=block or BLOCKS.get(name), interpret=ON_CPU
    )


def exact(name, operands):
    """The reference in double precision."""
    with jax.enable_x64(True), ops.body("reference"):
        given = [jnp.asarray(np.asarray(each, np.float64)) for each in operands]
        return np.asarray(getattr(ops, name)(*given))


def assert_close(found, wanted, dtype):
    found = np.asarray(found, np.float64)
    allowed = CLOSE[jnp.dtype(dtype).name] * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("name, sizes", SMALL)
def test_a_kernel_gives_what_the_reference_gives(name, sizes):
    operands = arrays(name, sizes, jnp.float32)
    assert ops.kernel(name).why_not(*operands) is None
    assert_close(interpreted(name)(*operands), exact(name, operands), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_takes_bfloat16_and_computes_in_float32(name):
    operands = arrays(name, TINY[name], jnp.bfloat16)
    found = interpreted(name)(*operands)
    assert found.dtype == jnp.bfloat16
    assert_close(found, exact(name, operands), jnp.bfloat16)


@pytest.mark.parametrize(
    "name, sizes, block",
    [
        ("gated_residual", (1, 13, 23, 4), {"rows": 256}),
        ("window_attention", (1, 1, 1, 5, 7, 3, True), {"rows": 128, "keys": 3}),
        ("selective_scan", (1, 7, 3, 2), {"rows": 128, "tokens": 64}),
    ],
)
def test_the_block_changes_no_number(name, sizes, block):
    operands = arrays(name, sizes, jnp.float32)
    assert_close(interpreted(name, block)(*operands), exact(name, operands), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_references(name, monkeypatch):
    operands = arrays(name, TINY[name], jnp.float32)
    kernel = Kernel(call=interpreted(name), platform="cpu")
    monkeypatch.setattr(ops, "kernel", lambda _: kernel)

    def slopes(body):
        loss = lambda *given: jnp.sum(jnp.sin(getattr(ops, name)(*given)))  # noqa: E731
        with ops.body(body):
            return jax.grad(loss, tuple(range(len(operands))))(*operands)

    for ours, wanted in zip(slopes("kernel"), slopes("reference"), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name, sizes", REAL)
def test_a_kernel_becomes_code_for_cuda_without_a_gpu(name, sizes, dtype):
    given = shapes(name, sizes, dtype)
    assert ops.kernel(name).why_not(*given) is None
    traced = jax.jit(ops.kernel(name).call).trace(*given)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == (2 if name == "selective_scan" else 1)


def test_every_kernel_is_of_an_operation():
    found = {entry.name for entry in metadata.entry_points(group=ops.KERNELS)}
    assert found >= set(NAMES)
    assert all(callable(getattr(ops, name)) for name in NAMES)
