"""Kernels compiled and run on a GPU (`make test-gpu`); skipped elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.nn import ops
from esrjax.nn.reparam import deploy
from esrjax.testing import check_kernel
from esrjax.testing.kernels import NETWORK_DIMS, OPERAND_SPECS, RTOL, operand_arrays

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]
TF32_RTOL = {"float32": 5e-3, "bfloat16": 2e-2}
TF32_OPS = ("spab", "gated_spab", "window_attention")
RTOLS = {name: TF32_RTOL if name in TF32_OPS else RTOL for name in OPERAND_SPECS}


def assert_close(actual, expected, rtol):
    actual, expected = (np.asarray(array, np.float64) for array in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def exact_reference():
    """The reference implementation without the TF32 that a GPU's default precision allows."""
    return ops.implementation("reference"), jax.default_matmul_precision("highest")


@pytest.mark.parametrize("name, rtol", RTOLS.items())
def test_compiled_kernel_passes_all_checks(name, rtol):
    check_kernel(ops.find_kernel(name), name, rtol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name, dims", [(name, dims) for name in NETWORK_DIMS for dims in NETWORK_DIMS[name]]
)
def test_compiled_kernel_equals_the_reference(name, dims, dtype):
    operands, op = operand_arrays(name, dims, dtype), getattr(ops, name)
    if reason := ops.find_kernel(name).unsupported_reason(*operands):
        pytest.skip(reason)
    reference, highest_precision = exact_reference()
    with reference, highest_precision:
        expected = op(*(operand.astype(jnp.float32) for operand in operands))
    with ops.implementation("kernel"):
        assert_close(op(*operands), expected, RTOLS[name][dtype])


@pytest.mark.parametrize("quantity", ["image", "gradient"])
@pytest.mark.parametrize("method", ["span", "spanv2"])
def test_network_with_kernels_equals_the_reference(method, quantity):
    net = deploy(registry.get_method(method).build())
    lr = jnp.asarray(np.random.default_rng(0).random((2, 37, 53, 3)), jnp.float32)
    run = {"image": net, "gradient": jax.grad(lambda lr: jnp.sum(jnp.sin(net(lr))))}[quantity]
    reference, highest_precision = exact_reference()
    with reference, highest_precision:
        expected = run(lr)
    with ops.implementation("kernel"):
        assert_close(run(lr), expected, 1e-2)
