"""Kernels compiled and run: `make test-gpu` on a GPU. Elsewhere these are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from operands import REAL, SMALL, arrays

from esrjax import registry
from esrjax.network import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]
CLOSE = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest number


def assert_close(found, wanted, dtype="float32"):
    found, wanted = (np.asarray(each, np.float64) for each in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE[dtype] * np.abs(wanted).max())


@pytest.fixture
def precise():
    """The reference without TF32, which a GPU's default precision allows."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name, sizes", SMALL + REAL)
def test_a_compiled_kernel_gives_what_the_reference_gives(precise, name, sizes, dtype):
    operands, op = arrays(name, sizes, dtype), getattr(ops, name)
    with ops.body("reference"):
        wanted = op(*(each.astype(jnp.float32) for each in operands))
    with ops.body("kernel"):
        assert_close(op(*operands), wanted, dtype)


@pytest.mark.parametrize("what", ["picture", "gradient"])
def test_a_network_gives_the_same_with_kernels(precise, what):
    net = registry.plain("spanv2").build()
    lr = jnp.asarray(np.random.default_rng(0).random((2, 37, 53, 3)), jnp.float32)
    run = {"picture": net, "gradient": jax.grad(lambda lr: jnp.sum(jnp.sin(net(lr))))}[what]
    with ops.body("reference"):
        wanted = run(lr)
    with ops.body("kernel"):
        assert_close(run(lr), wanted)
