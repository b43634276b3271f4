"""The steps of tools/gpu_run.py in JAX: the machine, the kernels, networks and training."""

import functools
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from esrjax_kernels import row_layout
from esrjax_kernels.row_layout import interpreter_params
from flax import nnx
from gpu_results import REHEARSAL, Record, Results, choose, median_ms
from jax import Array, lax

from esrjax import registry
from esrjax.nn import conv_lowering, ops
from esrjax.nn.reparam import deploy
from esrjax.testing.kernels import NETWORK_DIMS, OPERAND_SPECS, SMALL_DIMS, operand_arrays

CALLS = 20  # dependent calls in one program, so that the host's dispatch is not measured
IMAGE_SIZES = choose(((256, 256), (339, 510), (1080, 1920)), ((16, 24),))
IMAGE_SIZE = choose((339, 510), (16, 24))  # mean size of the challenge's LR images
NETWORKS = ("span", "spanv2", "rfdn_span", "hat")
DTYPES = ("float32", "bfloat16")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "triton", "numpy", "jax-cuda13-plugin")


# --- machine ---


def machine(results: Results) -> None:
    """Versions, the device, and its ceilings: copy bandwidth and matmuls."""
    versions = {name: _version(name) for name in PACKAGES}
    device = jax.devices()[0]
    results.add(
        name="machine",
        device=device.device_kind,
        capability=str(getattr(device, "compute_capability", None)),
        sms=getattr(device, "core_count", None),
        python=platform.python_version(),
        cpus=os.cpu_count(),
        memory=device.memory_stats(),
        nvidia_smi=_output(
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.max.sm,memory.total",
            "--format=csv,noheader",
        ),
        **versions,
    )
    n = choose(2**28, 2**12)
    results.attempt(lambda: _copy_bandwidth(n), name="copy", megabytes=8 * n / 1e6)
    side = choose(8192, 64)
    for dtype, precision in (
        ("bfloat16", "default"),
        ("float32", "tensorfloat32"),
        ("float32", "highest"),
    ):
        results.attempt(
            functools.partial(_matmul_speed, side, dtype, precision),
            name="matmul", dtype=dtype, precision=precision, side=side,
        )  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    process = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return process.stdout.strip() or process.stderr.strip()[:300]


def _copy_bandwidth(n: int) -> Record:
    timing = _time_chain(lambda x: x + 1, jnp.zeros(n, jnp.float32))
    return timing | {"tb_per_s": 8 * n / timing["ms"] / 1e9}


def _matmul_speed(side: int, dtype: str, precision: str) -> Record:
    w = jnp.eye(side, dtype=dtype)
    with jax.default_matmul_precision(precision):
        timing = _time_chain(lambda x: x @ w, jnp.ones((side, side), dtype))
    return timing | {"tflop_per_s": 2 * side**3 / timing["ms"] / 1e9}


def _time_chain(function: Callable[[Any], Any], x: Any, calls: int = choose(CALLS, 2)) -> Record:
    """Time `x = function(x)`, repeated in one program."""
    run = jax.jit(lambda x: lax.fori_loop(0, calls, lambda _, x: function(x), x))
    return median_ms(lambda: jax.block_until_ready(run(x)), calls)


# --- kernels ---


def kernels(results: Results) -> None:
    """Every kernel and dtype: whether it compiles, and its error; registers are in the log."""
    _check_kernels(results, "Lane")


def kernels_warpgroup(results: Results) -> None:
    """The same with the semantics of warpgroups, the default of newer versions of JAX."""
    _check_kernels(results, "Warpgroup")


def _check_kernels(results: Results, semantics: str) -> None:
    for name in OPERAND_SPECS:
        for dims in choose(NETWORK_DIMS, {n: d[:1] for n, d in SMALL_DIMS.items()})[name]:
            for dtype in DTYPES:
                print(f"== {name} {dims} {dtype} {semantics}", file=sys.stderr, flush=True)
                with _semantics(semantics):
                    results.attempt(
                        functools.partial(_kernel_error, name, dims, dtype),
                        name=name, dims=dims, dtype=dtype, semantics=semantics,
                    )  # fmt: skip


@contextmanager
def _semantics(name: str) -> Iterator[None]:
    """Lower the kernels with other semantics than they choose."""
    semantics, row_layout.SEMANTICS = row_layout.SEMANTICS, name
    try:
        yield
    finally:
        row_layout.SEMANTICS = semantics


def _kernel_error(name: str, dims: Any, dtype: str) -> Record:
    """Return the largest error of a kernel relative to the largest value of the reference.

    For a kernel with its own gradient, also the largest error of a gradient, except a mask's.
    """
    operands = operand_arrays(name, dims, dtype)
    kernel = ops.find_kernel(name)
    if reason := kernel.unsupported_reason(*operands):
        return {"unsupported": reason}
    casts = [x.astype(jnp.float32) for x in operands]
    with ops.implementation("reference"), jax.default_matmul_precision("highest"):
        expected = jax.jit(getattr(ops, name))(*casts)
    y = jax.jit(_kernel_call(name))(*operands)
    record = {"relative_error": _relative_error(y, expected), "finite": bool(jnp.isfinite(y).all())}
    if not kernel.differentiable:
        return record
    with ops.implementation("reference"), jax.default_matmul_precision("highest"):
        expected_grads = _grads(getattr(ops, name), casts)
    grads = _grads(_kernel_call(name), operands)
    errors = [_relative_error(*pair) for pair in zip(grads, expected_grads, strict=True)]
    return record | {"gradient_error": max(errors)}


def _grads(call: Callable[..., Array], operands: Any) -> Any:
    """Return the gradients of all operands but a mask, the fifth."""
    inputs, masks = operands[:4], operands[4:]
    loss = lambda *inputs: jnp.sum(jnp.sin(call(*inputs, *masks).astype(jnp.float32)))  # noqa: E731
    return jax.jit(jax.grad(loss, range(4)))(*inputs)


def _relative_error(actual: Array, expected: Array) -> float:
    actual, expected = (np.asarray(x.astype(jnp.float32)) for x in (actual, expected))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _kernel_call(name: str) -> Callable[..., Array]:
    """Return the kernel; in a rehearsal interpreted, because a CPU cannot run it."""
    call = ops.find_kernel(name).call
    if not REHEARSAL:
        return call
    return functools.partial(call, interpret=interpreter_params())


def kernel_times(results: Results) -> None:
    """Every kernel beside its reference, at the sizes of images; dependent calls in one program."""
    for name in OPERAND_SPECS:
        for dims in _dims_by_image(name):
            for dtype in DTYPES:
                for implementation in ("kernel", "reference"):
                    results.attempt(
                        functools.partial(_op_time, name, dims, dtype, implementation),
                        name=name, dims=dims, dtype=dtype, implementation=implementation,
                    )  # fmt: skip


def _dims_by_image(name: str) -> list[Any]:
    """Return the operands of an op for each image size: SPANV2's blocks, HAT's windows."""
    if REHEARSAL:
        return list(SMALL_DIMS[name][:1])
    dims: list[Any] = []
    for h, w in IMAGE_SIZES:
        windows = math.ceil(h / 16) * math.ceil(w / 16)
        dims += {
            "spab": [(1, h, w, 28)],
            "gated_spab": [(1, h, w, 32)],
            "gated_residual": [(1, h, w, 32)],
            "window_attention": [
                (1, windows, 6, 256, 256, 30, True),
                (1, windows, 6, 256, 576, 30, False),
                (1, 4 * windows, 6, 64, 64, 30, True),
            ],
            "selective_scan": [(1, h * w, 96, 8)],
        }[name]
    return dims


def _op_time(name: str, dims: Any, dtype: str, implementation: str) -> Record:
    x, *others = operand_arrays(name, dims, dtype)
    if implementation == "kernel":
        if reason := ops.find_kernel(name).unsupported_reason(x, *others):
            return {"unsupported": reason}
        return _time_chain(lambda x: _kernel_call(name)(x, *others), x)
    with ops.implementation("reference"):
        return _time_chain(lambda x: getattr(ops, name)(x, *others), x)


def attention(results: Results) -> None:
    """Attention of windows: kernel, XLA and cuDNN, forward and backward, with peak memory."""
    h, w = IMAGE_SIZE
    windows = math.ceil(h / 16) * math.ceil(w / 16)
    shapes = choose(
        {
            "HAT": (windows, 6, 256, 256, 30),
            "HAT, overlapping": (windows, 6, 256, 576, 30),
            "SwinIR": (4 * windows, 6, 64, 64, 30),
        },
        {"tiny": (2, 2, 9, 11, 8)},
    )
    for title, shape in shapes.items():
        for dtype in DTYPES:
            for engine in ("kernel", "reference", "xla", "cudnn"):
                for pass_ in ("forward", "backward"):
                    results.attempt(
                        functools.partial(_attention_time, shape, dtype, engine, pass_),
                        title=title, shape=shape, dtype=dtype, engine=engine, **{"pass": pass_},
                    )  # fmt: skip


def _attention_time(shape: Any, dtype: str, engine: str, pass_: str) -> Record:
    windows, heads, num_queries, num_keys, depth = shape
    dims = (1, windows, heads, num_queries, num_keys, depth, False)
    q, k, v, bias = operand_arrays("window_attention", dims, dtype)

    def attend(q: Array, k: Array, v: Array, bias: Array) -> Array:
        if engine in ("xla", "cudnn"):  # (batch, tokens, heads, depth)
            pad = -depth % 8 if engine == "cudnn" else 0  # cuDNN takes multiples of 8
            padded = (jnp.pad(x[0].swapaxes(1, 2), ((0, 0),) * 3 + ((0, pad),)) for x in (q, k, v))
            y = jax.nn.dot_product_attention(
                *padded, bias=bias[None], scale=depth**-0.5, implementation=engine
            )
            return y[..., :depth].swapaxes(1, 2)[None]
        if engine == "kernel" and REHEARSAL:
            return _kernel_call("window_attention")(q, k, v, bias)
        with ops.implementation(engine):
            return ops.window_attention(q, k, v, bias)

    def forward(q: Array) -> Array:
        return attend(q, k, v, bias)

    def backward(q: Array) -> Array:  # with all gradients, so that none is optimized away
        loss = lambda *operands: attend(*operands).astype(jnp.float32).sum()  # noqa: E731
        dq, *others = jax.grad(loss, range(4))(q, k, v, bias)
        return dq + 1e-6 * sum(jnp.sum(grad) for grad in others).astype(dq.dtype)

    function = forward if pass_ == "forward" else backward
    compiled = jax.jit(function).lower(q).compile()
    plan = compiled.memory_analysis()
    return _time_chain(function, q) | {"temporary_mib": plan and plan.temp_size_in_bytes / 2**20}


# --- networks ---


def networks(results: Results) -> None:
    """Networks at the challenge's mean image size, in both dtypes and both implementations."""
    for name in NETWORKS:
        for dtype in DTYPES:
            for implementation in ("reference", "kernel"):
                results.attempt(
                    functools.partial(_network_time, name, dtype, implementation),
                    name=name, dtype=dtype, implementation=implementation, image_size=IMAGE_SIZE,
                )  # fmt: skip


def spanv2(results: Results) -> None:
    """SPANV2 under the XLA flags of this process, with the gate as a convolution and as a dot."""
    for dtype in DTYPES:
        for gate in ("conv", "dot"):
            results.attempt(
                functools.partial(_network_time, "spanv2", dtype, "reference", gate),
                name="spanv2", dtype=dtype, gate=gate, flags=os.environ.get("XLA_FLAGS", ""),
            )  # fmt: skip


def _network_time(name: str, dtype: str, implementation: str, gate: str = "conv") -> Record:
    method = registry.get_method(name)
    hparams = choose({}, dict(method.get_test_hparams()))
    net = deploy(method.build(**hparams))
    net.eval()
    graphdef, state = nnx.split(net)
    state = jax.tree.map(lambda leaf: _cast_float(leaf, dtype), state)
    lr = jnp.asarray(np.random.default_rng(0).random((1, *IMAGE_SIZE, 3)), dtype)

    def step(lr: Array) -> Array:  # the next input depends on the output, and is nearly the same
        sr = nnx.merge(graphdef, state)(lr)
        return lr + 1e-6 * sr[:, : lr.shape[1], : lr.shape[2]].astype(lr.dtype)

    if implementation == "kernel" and REHEARSAL:
        return {"unsupported": "a CPU runs no kernels"}
    with ops.implementation(implementation), _gate(gate):
        timing = _time_chain(step, lr, choose(10, 2))
    stats = jax.devices()[0].memory_stats() or {}
    return timing | {"peak_mib": stats.get("peak_bytes_in_use", 0) / 2**20}


def _cast_float(leaf: Any, dtype: str) -> Any:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


@contextmanager
def _gate(form: str) -> Iterator[None]:
    """Compute 1x1 convolutions as they are, or as matmuls, whose epilogue XLA fuses."""
    conv = conv_lowering.platform_conv2d

    def as_dot(x: Array, w: Array, **options: Any) -> Array:
        is_dot = w.shape[:2] == (1, 1) and options["groups"] == 1 and options["stride"] == 1
        return x @ w[0, 0] if is_dot else conv(x, w, **options)

    conv_lowering.platform_conv2d = as_dot if form == "dot" else conv
    try:
        yield
    finally:
        conv_lowering.platform_conv2d = conv


# --- training ---


def training(results: Results) -> None:
    """Training steps as `esrjax train` compiles them: L1, Adam, patches of 64x64 LR pixels."""
    for name, batches in choose(
        {"spanv2": (16, 64, 256, 1024), "hat": (16, 64)}, {"spanv2": (2,)}
    ).items():
        for precision in ("fp32", "bf16"):
            for batch in batches:
                results.attempt(
                    functools.partial(_training_time, name, batch, precision),
                    name=name, batch=batch, precision=precision,
                )  # fmt: skip


def _training_time(name: str, batch: int, precision: str) -> Record:
    from dataclasses import replace

    from esrjax.training import recipe_loader, train_state
    from esrjax.training.distributed import DataParallel
    from esrjax.training.stage_trainer import make_stage_optimizer
    from esrjax.training.train_state import Objective

    side = choose(64, 8)
    method = registry.get_method(name)
    stage = replace(
        recipe_loader.load("quick").stage[0], ema=None, ema_warmup=False, precision=precision
    )
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(method.build(), stage, optimizer)
    objective = Objective(graphdef=graphdef, stage=stage, data_range=method.data_range)
    devices = DataParallel.for_batch(1)
    step = devices.compile_step(objective, optimizer)
    rng = np.random.default_rng(0)
    images = [
        jax.device_put(rng.integers(0, 256, (batch, s, s, 3), np.uint8)) for s in (side, 4 * side)
    ]
    carry, calls = [devices.replicate(state)], choose(5, 2)

    def run() -> None:
        for _ in range(calls):
            carry[0], loss = step(carry[0], None, *images)
        jax.block_until_ready((carry[0], loss))

    timing = median_ms(run, calls)
    stats = jax.devices()[0].memory_stats() or {}
    return timing | {
        "lr_side": side,
        "patches_per_s": round(batch / timing["ms"] * 1e3, 1),
        "peak_mib": stats.get("peak_bytes_in_use", 0) / 2**20,
    }


# --- profile ---


def profile(results: Results) -> None:
    """Nsight Compute on one block and the race checker on the smallest, where installed."""
    code = (
        "import jax, gpu_steps as g; from esrjax.testing.kernels import operand_arrays as o;"
        "x = o('gated_spab', {dims}, 'bfloat16');"
        "jax.block_until_ready(jax.jit(g._kernel_call('gated_spab'))(*x))"
    )
    tools = {
        "ncu": (["ncu", "--set", "basic", "--kernel-name", "regex:gated_spab"], (1, 339, 510, 32)),
        "compute-sanitizer": (["compute-sanitizer", "--tool", "racecheck"], (1, 8, 64, 16)),
    }
    for name, (command, dims) in tools.items():
        if shutil.which(command[0]) is None:
            results.add(name=name, missing=f"{command[0]} is not installed")
            continue
        call = [*command, sys.executable, "-c", code.format(dims=dims)]
        results.attempt(lambda call=call: {"output": _output(*call)}, name=name)
