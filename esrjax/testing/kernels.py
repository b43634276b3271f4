"""Conformance checks that every kernel must pass, and the operands that they run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrjax.errors import PluginError
from esrjax.nn import ops
from esrjax.nn.functional import OP_PREFIX
from esrjax.nn.ops import Kernel
from esrjax.testing.methods import assert_all_pass, run_check

Distribution = Literal["any", "small", "positive", "negative", "mask", "valid_region"]
OperandSpec = tuple[tuple[int, ...], Distribution]  # shape, and how values are drawn
Dims = tuple[Any, ...]  # arguments of one of the functions below
Operands = Sequence[Any]
PLATFORMS = ("cpu", "cuda", "tpu")
RTOL = {"float32": 1e-5, "bfloat16": 2e-2}  # relative to the largest value of the reference


def spab(n: int, h: int, w: int, channels: int, masked: bool = False) -> list[OperandSpec]:
    """`u, w1, b1, w2, b2, w3, b3`, with `masked` also `mask`."""
    conv: list[OperandSpec] = [((3, 3, channels, channels), "small"), ((channels,), "any")]
    return [((n, h, w, channels), "any"), *3 * conv, *_mask(h, w, masked)]


def gated_spab(n: int, h: int, w: int, channels: int, masked: bool = False) -> list[OperandSpec]:
    """`u, w1, w2, w3, w, b`, with `masked` also `mask`."""
    conv: list[OperandSpec] = [((3, 3, channels, channels), "small")]
    gate: list[OperandSpec] = [((1, 1, channels, channels), "small"), ((channels,), "any")]
    return [((n, h, w, channels), "any"), *3 * conv, *gate, *_mask(h, w, masked)]


def _mask(h: int, w: int, masked: bool) -> list[OperandSpec]:
    return [((h, w), "valid_region")] if masked else []


def gated_residual(n: int, h: int, w: int, channels: int) -> list[OperandSpec]:
    """`x, f, w, b`."""
    x: OperandSpec = ((n, h, w, channels), "any")
    return [x, x, ((1, 1, channels, channels), "any"), ((channels,), "any")]


def window_attention(
    n: int, windows: int, heads: int, queries: int, keys: int, depth: int, masked: bool
) -> list[OperandSpec]:
    """`q, k, v, bias`, with `masked` also `mask`."""
    q: OperandSpec = ((n, windows, heads, queries, depth), "any")
    k: OperandSpec = ((n, windows, heads, keys, depth), "any")
    mask: list[OperandSpec] = [((windows, queries, keys), "mask")] if masked else []
    return [q, k, k, ((heads, queries, keys), "any"), *mask]


def selective_scan(n: int, tokens: int, channels: int, states: int) -> list[OperandSpec]:
    """`x, delta, a, b, c, d`, with delta >= 0 and a <= 0, so that the recurrence is stable."""
    per_channel, per_state = (n, tokens, channels), (n, tokens, states)
    return [
        (per_channel, "any"), (per_channel, "positive"), ((channels, states), "negative"),
        (per_state, "any"), (per_state, "any"), ((channels,), "any"),
    ]  # fmt: skip


OPERAND_SPECS: Mapping[str, Callable[..., list[OperandSpec]]] = {
    spec.__name__: spec
    for spec in (spab, gated_spab, gated_residual, window_attention, selective_scan)
}

# For tests, the smallest first: odd sides, few rows, sizes that fill no tile, batches, masks.
SMALL_DIMS: Mapping[str, tuple[Dims, ...]] = {
    "spab": ((1, 2, 3, 4), (1, 9, 6, 4), (1, 3, 131, 28, True)),
    "gated_spab": ((1, 2, 3, 4), (1, 3, 6, 48), (2, 2, 70, 5, True)),
    "gated_residual": (
        (1, 2, 2, 4), (1, 2, 3, 5), (2, 5, 7, 16), (1, 13, 11, 28), (2, 3, 3, 48), (1, 3, 5, 52),
    ),
    "window_attention": (
        (1, 2, 2, 4, 6, 3, True), (2, 2, 3, 9, 11, 5, False), (1, 4, 2, 64, 64, 10, True),
        (1, 2, 1, 150, 20, 30, True),
    ),
    "selective_scan": ((1, 5, 3, 2), (2, 11, 40, 16), (1, 8, 130, 3)),
}  # fmt: skip

# Those of published networks, at 256x256 LR where the size of the image matters.
NETWORK_DIMS: Mapping[str, tuple[Dims, ...]] = {
    "spab": ((1, 256, 256, 28), (1, 256, 256, 32), (1, 256, 256, 48)),  # SPAN, SPANF, SPAN of 2024
    "gated_spab": ((1, 256, 256, 32),),  # SPANV2
    "gated_residual": tuple((1, 256, 256, channels) for channels in (16, 28, 32, 48, 52)),
    "window_attention": (
        (1, 64, 6, 64, 64, 10, True),  # SwinIR, lightweight
        (1, 64, 6, 64, 64, 30, True),  # SwinIR
        (1, 16, 6, 256, 256, 30, True),  # HAT
        (1, 16, 6, 256, 576, 30, False),  # HAT, overlapping cross-attention
    ),
    "selective_scan": ((1, 4096, 360, 16), (1, 65536, 96, 8)),
}

_SAMPLERS: Mapping[Distribution, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "any": lambda rng, shape: rng.standard_normal(shape),
    # 1 / sqrt(fan-in), so that outputs have unit variance
    "small": lambda rng, shape: rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5,
    "positive": lambda rng, shape: rng.random(shape),
    "negative": lambda rng, shape: -3 * rng.random(shape),
    # -100 is what shifted-window attention adds to logits across windows
    "mask": lambda rng, shape: np.where(rng.random(shape) < 0.3, -100.0, 0.0),
    # 1 on the image, 0 on the last row and column, which are padding
    "valid_region": lambda rng, shape: np.pad(np.ones([side - 1 for side in shape]), (0, 1)),
}


def operand_shapes(name: str, dims: Dims, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of the operands of operation `name`, for tracing without values."""
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, _ in OPERAND_SPECS[name](*dims)]


def operand_arrays(name: str, dims: Dims, dtype: Any) -> list[Array]:
    """Return random operands of operation `name` as JAX arrays."""
    return [jnp.asarray(operand, dtype) for operand in random_operands(name, dims)]


def random_operands(name: str, dims: Dims) -> list[Any]:
    """Return random operands of operation `name` as float64 NumPy arrays, with a fixed seed."""
    rng = np.random.default_rng(0)
    specs = OPERAND_SPECS[name](*dims)
    return [_SAMPLERS[distribution](rng, shape) for shape, distribution in specs]


# --- checks of a kernel --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _KernelFixture:
    """What every check receives; `call` is None where the kernel cannot run on this machine."""

    kernel: Kernel
    operation: Callable[..., Array]
    samples: Sequence[Operands]
    call: Callable[..., Array] | None
    rtol: Mapping[str, float]

    def reference(self, *operands: Any) -> Array:
        """Return the result of the operation's reference implementation."""
        with ops.implementation("reference"):
            return self.operation(*operands)

    def cast_samples(self) -> list[Operands]:
        """Return the samples in every dtype that has a tolerance."""
        return [_cast(sample, dtype) for sample in self.samples for dtype in self.rtol]

    def all_operands(self) -> list[Operands]:
        """Return the samples, and what a kernel may reject but must not get wrong.

        That is: float16, and mixed dtypes.
        """
        sample = self.samples[0]
        mixed = [*_cast(sample[:1], "float32"), *_cast(sample[1:], "bfloat16")]
        return [*self.cast_samples(), _cast(sample, "float16"), mixed]

    def supported(self, operand_lists: Sequence[Operands]) -> list[Operands]:
        """Return those of the operands that the kernel accepts."""
        return [o for o in operand_lists if self.kernel.unsupported_reason(*o) is None]

    def error(self, result: Any, reference: Any, slack: float = 1) -> str | None:
        """Return the relative error if it exceeds the tolerance of the result's dtype."""
        tolerance = slack * self.rtol.get(result.dtype.name, max(self.rtol.values()))
        result, reference = (np.asarray(array, np.float64) for array in (result, reference))
        error = float(np.abs(result - reference).max() / max(np.abs(reference).max(), 1e-30))
        return None if error <= tolerance else f"a relative error of {error:.1e} (> {tolerance:g})"


def check_kernel(
    kernel: Kernel,
    operation: str | Callable[..., Array],
    *,
    samples: Sequence[Operands] | None = None,
    call: Callable[..., Array] | None = None,
    rtol: Mapping[str, float] = RTOL,
) -> None:
    """Check that a kernel is a correct implementation of an operation.

    Args:
        kernel: The kernel.
        operation: The name of one of `esrjax.nn.ops`, or an operation of your own.
        samples: Lists of operands (float64 arrays), the smallest first; required for an operation
            of your own.
        call: How the kernel is run on this machine if it is not its platform, for instance in an
            interpreter. Without it, values and gradients are checked on its platform only.
        rtol: dtype -> tolerance, relative to the largest value of the reference. Samples are tested
            in these dtypes.

    Raises:
        AssertionError: With every check that fails, and a remedy.
        PluginError: If `samples` are required.
    """
    name = operation if isinstance(operation, str) else operation.__name__.removeprefix(OP_PREFIX)
    if samples is None and name not in SMALL_DIMS:
        raise PluginError(
            f"No sample operands for operation {name!r}",
            rule=f"there are sample operands for {', '.join(SMALL_DIMS)}",
            remedy="name one of these, or pass samples, the smallest first",
        )
    if samples is None:
        samples = [random_operands(name, dims) for dims in SMALL_DIMS[name]]
    fixture = _KernelFixture(
        kernel=kernel,
        operation=getattr(ops, operation) if isinstance(operation, str) else operation,
        samples=samples,
        call=call or (None if kernel.wrong_platform_reason() else kernel.call),
        rtol=rtol,
    )
    results = [run_check(check, remedy, fixture) for check, remedy in CHECKS.items()]
    assert_all_pass("the kernel", results)


def _platform_is_known(fixture: _KernelFixture) -> None:
    """Its platform is one that JAX compiles for."""
    platform = fixture.kernel.platform
    assert platform in PLATFORMS, f"{platform!r} is none of {', '.join(PLATFORMS)}"


def _reasons_are_strings(fixture: _KernelFixture) -> None:
    """`unsupported_reason` (of shapes and dtypes) and `disabled_reason` return None or a reason."""
    for reason in (*_unsupported_reasons(fixture), fixture.kernel.disabled_reason()):
        assert reason is None or (isinstance(reason, str) and reason), f"returns {reason!r}"


def _supports_some_samples(fixture: _KernelFixture) -> None:
    """It supports some of the samples."""
    reasons = "; ".join(map(str, dict.fromkeys(_unsupported_reasons(fixture))))
    assert fixture.supported(fixture.cast_samples()), f"supports none: {reasons}"


def _unsupported_reasons(fixture: _KernelFixture) -> list[Any]:
    operand_lists = map(_shapes, fixture.all_operands())
    return [fixture.kernel.unsupported_reason(*operands) for operands in operand_lists]


def _lowers_for_its_platform(fixture: _KernelFixture) -> None:
    """What it supports lowers for its platform."""
    for operands in fixture.supported(fixture.all_operands()):
        traced = jax.jit(fixture.kernel.call).trace(*_shapes(operands))
        traced.lower(lowering_platforms=(fixture.kernel.platform,))


def _values_equal_the_reference(fixture: _KernelFixture) -> None:
    """Its results equal the reference's in shape, dtype and value."""
    if fixture.call is None:
        return
    for operands in fixture.supported(fixture.all_operands()):
        operand_text = ", ".join(map(_format, operands))
        result = fixture.call(*operands)
        expected = jax.eval_shape(fixture.reference, *operands)
        assert _format(result) == _format(expected), (
            f"for {operand_text} it returns {_format(result)}, the reference {_format(expected)}"
        )
        with jax.enable_x64(True):
            error = fixture.error(result, fixture.reference(*_cast(operands, "float64")))
        assert error is None, f"for {operand_text} it has {error}"


def _gradients_equal_the_reference(fixture: _KernelFixture) -> None:
    """Its gradients equal the reference's, for the first sample that it supports."""
    operands = next(iter(fixture.supported(fixture.cast_samples())), None)
    if fixture.call is None or operands is None:
        return
    argnums = [i for i, x in enumerate(operands) if jnp.issubdtype(x.dtype, jnp.floating)]
    kernel_call = fixture.call
    if not fixture.kernel.differentiable:  # it uses the reference's gradient, as in `ops`
        kernel_call = ops.with_reference_vjp(kernel_call, fixture.reference)

    def grads(fn: Callable[..., Array], args: Operands) -> Sequence[Array]:
        loss = lambda *args: jnp.sum(jnp.sin(fn(*args)))  # noqa: E731
        return jax.grad(loss, argnums)(*args)

    with jax.default_matmul_precision("highest"):
        kernel_grads = grads(kernel_call, operands)
    with jax.enable_x64(True):
        reference_grads = grads(fixture.reference, _cast(operands, "float64"))
    for argnum, grad, reference_grad in zip(argnums, kernel_grads, reference_grads, strict=True):
        error = fixture.error(grad, reference_grad, slack=10)
        assert error is None, f"the gradient of operand {argnum} has {error}"


CHECKS: Mapping[Callable[[_KernelFixture], None], str] = {  # each with its remedy
    _platform_is_known: "correct Kernel.platform",
    _reasons_are_strings: "return None, or a text that says what is not supported",
    _supports_some_samples: "accept more shapes and dtypes, or pass samples that it supports",
    _lowers_for_its_platform: "reject in unsupported_reason what cannot be compiled",
    _values_equal_the_reference: "correct it, or reject these operands in unsupported_reason",
    _gradients_equal_the_reference: "correct its gradient, or set differentiable=False",
}


def _cast(operands: Operands, dtype: str) -> list[Any]:
    """Cast floating-point operands, and leave others unchanged."""
    return [
        jnp.asarray(np.asarray(operand, np.float64), dtype)
        if jnp.issubdtype(operand.dtype, jnp.floating)
        else jnp.asarray(operand)
        for operand in operands
    ]


def _shapes(operands: Operands) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]


def _format(array: Any) -> str:
    return f"{array.dtype.name}{list(array.shape)}"
