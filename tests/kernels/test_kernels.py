"""Kernels pass `check_kernel` in the interpreter for any configuration, and compile for CUDA."""

import functools
import threading
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_kernels import attention_tiles, tuning
from esrjax_kernels.fused_conv3 import balanced_rows
from esrjax_kernels.row_layout import interpreter_params

from esrjax.nn import ops
from esrjax.testing import check_kernel
from esrjax.testing.kernels import (
    NETWORK_DIMS,
    OPERAND_SPECS,
    SMALL_DIMS,
    operand_arrays,
    operand_shapes,
    random_operands,
)

NAMES = tuple(OPERAND_SPECS)
CONFIGS = {  # small, so that small operands have many chunks and programs
    "selective_scan": {"rows": 128, "chunk_len": 4},
    "spab": {"rows": 8},
}


@pytest.fixture(autouse=True, scope="module")
def threads_compile_once():
    """Compile a kernel once, not for every warpgroup and program, as the interpreter does."""
    compiled, lock = {}, threading.Lock()

    def run(jaxpr, consts, *args):
        with lock:
            if id(jaxpr) not in compiled:
                function = jax.jit(lambda *args: jax.core.eval_jaxpr(jaxpr, args[0], *args[1:]))
                compiled[id(jaxpr)] = jaxpr, function.lower(consts, *args).compile()
        compiled[id(jaxpr)][1](consts, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax._src.pallas.mosaic.interpret.thread_map._run_jaxpr", run)
        yield


def interpreted(name, config=None):
    return functools.partial(
        ops.find_kernel(name).call, config=config, interpret=interpreter_params()
    )


# Indices of SMALL_DIMS: several programs, groups of channels or tiles, batches, masks.
FAST_SAMPLES = {
    "spab": 1,
    "gated_spab": 2,
    "gated_residual": 2,
    "window_attention": 0,
    "selective_scan": 1,
}


@pytest.mark.parametrize("name", NAMES)
def test_kernel_passes_all_checks(name):
    """For one sample in both dtypes; the slow test has all of them."""
    samples = [random_operands(name, SMALL_DIMS[name][FAST_SAMPLES[name]])]
    kernel, call = ops.find_kernel(name), interpreted(name, CONFIGS.get(name))
    check_kernel(kernel, name, samples=samples, call=call)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_kernel_passes_all_checks_for_every_sample(name):
    check_kernel(ops.find_kernel(name), name, call=interpreted(name, CONFIGS.get(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_is_supported_in_some_dtype(name):
    """Because `check_kernel` skips operands that are not supported."""
    for dims in SMALL_DIMS[name]:
        operand_lists = [operand_shapes(name, dims, dtype) for dtype in ("float32", "bfloat16")]
        assert None in [
            ops.find_kernel(name).unsupported_reason(*operands) for operands in operand_lists
        ]


@pytest.mark.parametrize(
    "name, dims, config",
    [
        ("gated_residual", (1, 13, 23, 4), {"rows": 256}),
        ("selective_scan", (1, 7, 3, 2), {"rows": 128, "chunk_len": 64}),
        ("gated_spab", (1, 11, 6, 4), {"rows": 0}),
        ("spab", (1, 13, 6, 4, True), {"rows": 5}),
    ],
)
def test_values_do_not_depend_on_the_configuration(name, dims, config):
    actual = interpreted(name, config)(*operand_arrays(name, dims, jnp.float32))
    with jax.enable_x64(True), ops.implementation("reference"):
        expected = getattr(ops, name)(*map(jnp.asarray, random_operands(name, dims)))
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# Several windows and blocks a program, the last program with fewer; keys in three groups.
@pytest.mark.parametrize(
    "dims, dtype, max_smem_bytes",
    [
        ((2, 3, 1, 70, 130, 5, True), "float32", 70_000),
        ((1, 5, 2, 9, 70, 30, False), "bfloat16", 0),
    ],
)
def test_gradients_of_window_attention(monkeypatch, dims, dtype, max_smem_bytes):
    monkeypatch.setattr(tuning, "num_sms", lambda: 2)
    monkeypatch.setattr(attention_tiles, "MAX_SMEM_BYTES", max_smem_bytes)
    *operands, mask = [*operand_arrays("window_attention", dims, dtype), None][:5]

    def grads(call, operands, mask):
        loss = lambda *args: jnp.sum(jnp.sin(call(*args, mask)))  # noqa: E731
        return jax.grad(loss, range(4))(*operands)

    actual = grads(interpreted("window_attention", {"sm_programs": 2}), operands, mask)
    with jax.enable_x64(True), ops.implementation("reference"):
        cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(np.float64(x)))
        expected = grads(ops.window_attention, cast(operands), cast(mask))
    for grad, expected_grad in zip(actual, expected, strict=True):
        tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * np.abs(expected_grad).max()
        np.testing.assert_allclose(np.float64(grad), expected_grad, rtol=0, atol=tolerance)


# The second dtype of a shape is among the slow tests where another shape has it.
@pytest.mark.parametrize(
    "name, dims, dtype",
    [
        pytest.param(name, dims, dtype, marks=pytest.mark.slow if is_slow else ())
        for name in NETWORK_DIMS
        for index, dims in enumerate(NETWORK_DIMS[name])
        for dtype, is_slow in (
            ("float32", index % 2 == 1),
            ("bfloat16", index % 2 == 0 and len(NETWORK_DIMS[name]) > 1),
        )
    ],
)
def test_kernel_compiles_for_cuda_without_a_gpu(name, dims, dtype):
    operands = operand_shapes(name, dims, dtype)
    if (name, dims[-1], dtype) == ("spab", 48, "float32"):
        assert "bytes of shared memory" in ops.find_kernel(name).unsupported_reason(*operands)
        return
    assert ops.find_kernel(name).unsupported_reason(*operands) is None
    function = call = ops.find_kernel(name).call
    count = {"selective_scan": 2}.get(name, 1)
    if name == "window_attention" and dims[3] > 64:  # HAT's, with the gradients
        count = 3
        function = lambda *args: jax.vjp(lambda *fs: call(*fs, *args[4:]), *args[:4])[1](args[0])  # noqa: E731
    traced = jax.jit(function).trace(*operands)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == count


@pytest.mark.parametrize(
    "n, h, w, rows", [(1, 339, 510, 27), (1, 256, 256, 10), (1, 5, 64, 5), (8, 256, 256, 86)]
)
def test_balanced_rows_fill_the_device(n, h, w, rows):
    assert balanced_rows(n, h, w, num_sms=132) == rows


def test_every_operation_has_a_kernel():
    installed = {entry.name for entry in metadata.entry_points(group=ops.KERNEL_GROUP)}
    assert installed >= set(NAMES)
    assert all(callable(getattr(ops, name)) for name in NAMES)
