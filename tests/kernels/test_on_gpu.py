"""Kernels compiled and run: `make test-gpu` on a GPU. Elsewhere these are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.network import ops
from esrjax.network.reparam import deploy
from esrjax.testing import check_kernel
from esrjax.testing.kernels import CLOSE
from esrjax.testing.operands import OPERANDS, REAL, arrays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]
IN_TF32 = {"float32": 5e-3, "bfloat16": 2e-2}
NAMES = {name: IN_TF32 if "spab" in name else CLOSE for name in OPERANDS}


def assert_close(found, wanted, share):
    found, wanted = (np.asarray(each, np.float64) for each in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=share * np.abs(wanted).max())


def exact():
    """The reference, without the TF32 that a GPU's default precision allows."""
    return ops.body("reference"), jax.default_matmul_precision("highest")


@pytest.mark.parametrize("name, close", NAMES.items())
def test_a_compiled_kernel_keeps_the_laws(name, close):
    check_kernel(ops.kernel(name), name, close=close)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name, sizes", [(name, sizes) for name in REAL for sizes in REAL[name]])
def test_a_compiled_kernel_gives_what_the_reference_gives(name, sizes, dtype):
    operands, op = arrays(name, sizes, dtype), getattr(ops, name)
    if reason := ops.kernel(name).why_not(*operands):
        pytest.skip(reason)
    reference, highest = exact()
    with reference, highest:
        wanted = op(*(each.astype(jnp.float32) for each in operands))
    with ops.body("kernel"):
        assert_close(op(*operands), wanted, NAMES[name][dtype])


@pytest.mark.parametrize("what", ["picture", "gradient"])
@pytest.mark.parametrize("method", ["span", "spanv2"])
def test_a_network_gives_the_same_with_kernels(method, what):
    net = deploy(registry.plain(method).build())
    lr = jnp.asarray(np.random.default_rng(0).random((2, 37, 53, 3)), jnp.float32)
    run = {"picture": net, "gradient": jax.grad(lambda lr: jnp.sum(jnp.sin(net(lr))))}[what]
    reference, highest = exact()
    with reference, highest:
        wanted = run(lr)
    with ops.body("kernel"):
        assert_close(run(lr), wanted, 1e-2)
