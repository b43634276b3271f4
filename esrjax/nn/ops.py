"""Ops with more than one implementation: references in jax.numpy, and kernels of other packages.

The reference defines the op. Installed packages register kernels, faster implementations for one
platform, as entry points. A network calls an op and never chooses its implementation; the context
manager `ops.implementation("reference")` does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
from jax import Array

from esrjax.errors import NotFound, UserError, error_summary, log_note
from esrjax.nn.compilation import platform_dependent
from esrjax.nn.functional import (
    OP_PREFIX,
    at_least_f32,
    attention_from_logits,
    conv2d,
    counted_op,
    matmul,
)
from esrjax.nn.masking import apply_mask
from esrjax.nn.selective_scan import chunked_scan
from esrjax.registry import load_by_name

KERNEL_GROUP = "esrjax.kernels"  # the group of entry points; a name is that of an op
# "auto": a kernel where one supports the arguments and was measured to be faster on this device;
# one that cannot be loaded is not used, with a note.
# "reference": never a kernel. "kernel": a kernel, or `NotFound`. The choice is made while tracing.
# A JAX user context is part of every jit cache key, so that a trace made under one choice is not
# reused under another.
implementation = cast("Any", jax.make_user_context("auto"))
IMPLEMENTATIONS = ("auto", "reference", "kernel")
_OTHERS = 'other ops are not affected, and implementation "reference" uses no kernel'


# --- kernels -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A faster implementation of one op on one platform.

    Attributes:
        call: Takes the arguments of the op and returns its output.
        platform: "cuda", "tpu" or "cpu".
        unsupported_reason: Takes the arguments of the op (arrays or abstract ones); returns None
            if the kernel can run them on this device, else the reason.
        disabled_reason: Returns None if the kernel was measured to be faster than the reference on
            this device, else the reason why "auto" does not use it though it could run.
        differentiable: Whether `call` has a gradient of its own; otherwise the gradient of the
            reference is used.
    """

    call: Callable[..., Array]
    platform: str = "cuda"
    unsupported_reason: Callable[..., str | None] = lambda *args: None
    disabled_reason: Callable[[], str | None] = lambda: None
    differentiable: bool = False

    def wrong_platform_reason(self) -> str | None:
        """Return None on the kernel's platform, else a text that names both."""
        current = platform()
        return None if current == self.platform else f"requires {self.platform}, this is {current}"


def platform() -> str:
    """Return the default platform, by the name that kernels use: "cuda", not "gpu"."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


@functools.cache
def find_kernel(name: str) -> Kernel | None:
    """Return the installed kernel of the op `name`, or None.

    Raises:
        PluginError: Two packages register one, its name is not allowed, it cannot be imported, or
            it is no `Kernel`.
    """
    return load_by_name(KERNEL_GROUP, name, Kernel, "Kernel", _OTHERS)


def op(reference: Callable[..., Array]) -> Callable[..., Array]:
    """Make an op of its reference implementation; a kernel is registered under the function's name.

    `platform_dependent` keeps the reference for other platforms than the kernel's, so that one
    trace can be lowered for each of them.

    Args:
        reference: A function of arrays that returns one array.
    """
    name = reference.__name__

    @functools.wraps(reference)
    def call(*args: Array) -> Array:
        kernel = _select_kernel(name, args)
        if kernel is None:
            return reference(*args)
        kernel_fn = kernel.call
        if not kernel.differentiable:
            kernel_fn = with_reference_vjp(kernel_fn, reference)
        return platform_dependent(*args, default=reference, **{kernel.platform: kernel_fn})

    return counted_op()(call)


def with_reference_vjp(
    kernel_fn: Callable[..., Array], reference: Callable[..., Array]
) -> Callable[..., Array]:
    """Return `kernel_fn` with the gradient of a reference.

    The backward pass recomputes the reference from the inputs. As with every `custom_vjp`, there is
    no forward mode (`jax.jvp`).

    Args:
        kernel_fn: The implementation of the forward pass.
        reference: A function of the same arguments and values.
    """
    call = jax.custom_vjp(kernel_fn)
    call.defvjp(
        lambda *args: (kernel_fn(*args), args),
        lambda args, cotangent: jax.vjp(reference, *args)[1](cotangent),
    )
    return call


def has_kernel(fused_op: Callable[..., Array], operands: tuple[Array, ...]) -> bool:
    """Return whether a kernel would run an op on these operands, for `layers.FusedBlock`.

    Args:
        fused_op: An op of this module, or of another that `op` made.
        operands: Its arguments.

    Raises:
        NotFound: The implementation is "kernel", and no kernel can run the op.
    """
    name = fused_op.__name__.removeprefix(OP_PREFIX)
    return _select_kernel(name, operands) is not None


def _select_kernel(name: str, args: tuple[Array, ...]) -> Kernel | None:
    """Return the kernel that the current implementation uses for an op, None for the reference.

    Under "auto" the platform is not checked: on any other than the kernel's,
    `platform_dependent` in `op` runs the reference.
    """
    choice = implementation.value
    if choice not in IMPLEMENTATIONS:
        raise ValueError(f"Unknown implementation {choice!r}: use {', '.join(IMPLEMENTATIONS)}")
    if choice != "kernel":
        return None if choice == "reference" else _kernel_of_auto(name, args)
    kernel, reason = find_kernel(name), "none is installed"
    if kernel is not None:
        reason = kernel.unsupported_reason(*args) or kernel.wrong_platform_reason()
    if reason is None:
        return kernel
    raise NotFound(
        f"No kernel can run op {name!r}: {reason}",
        rule='implementation "kernel" needs a kernel for every op that is called',
        remedy='use implementation "auto", which falls back to the reference',
    )


def _kernel_of_auto(name: str, args: tuple[Array, ...]) -> Kernel | None:
    """Return the kernel that "auto" uses; one of a broken package is noted, and not used."""
    try:
        kernel = find_kernel(name)
        is_used = kernel and not (kernel.disabled_reason() or kernel.unsupported_reason(*args))
        return kernel if is_used else None
    except UserError as error:
        problem = f"{error.problem} ({error.location})"
    except Exception as error:
        problem = f"the kernel of op {name!r} raised {error_summary(error)}"
    log_note(f"{problem}; the reference implementation is used")
    return None


# --- reference implementations -------------------------------------------------------------------


@op
def gated_residual(x: Array, f: Array, w: Array, b: Array) -> Array:
    """Return `(x + f) · (W f + b)` for every pixel, with a 1x1 convolution `W`.

    Source: SPANV2's span attention, NTIRE 2026 report, Eq. 7.

    Args:
        x: Input of the block, `(N, h, w, C)`.
        f: Features of the block, `(N, h, w, C)`.
        w: Kernel `(1, 1, C, C)`.
        b: Bias `(C,)`.
    """
    return (x + f) * conv2d(f, w, b)


@op
def spab(
    u: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    w3: Array,
    b3: Array,
    mask: Array | None = None,
) -> Array:
    """Return `(r + u) · (sigmoid(r) − ½)`, with `r` three 3x3 convolutions of `u`, SiLUs between.

    Source: SPAN (arXiv:2311.12770), Eq. 3 to 5, as the released code has them.

    Args:
        u: Input of the block, `(N, h, w, C)`.
        w1, w2, w3: Kernels `(3, 3, C, C)`.
        b1, b2, b3: Biases `(C,)`.
        mask: `(h, w)`; pixels where it is 0 act as zero padding.
    """
    a = jax.nn.silu(_conv3x3(u, w1, b1, mask))
    r = _conv3x3(jax.nn.silu(_conv3x3(a, w2, b2, mask)), w3, b3, mask)
    return (r + u) * (jax.nn.sigmoid(r) - 0.5)


@op
def gated_spab(
    u: Array, w1: Array, w2: Array, w3: Array, w: Array, b: Array, mask: Array | None = None
) -> Array:
    """Return `(u + f) · (W f + b)`, with `f` three 3x3 convolutions of `u`, ReLUs between.

    Source: SPANV2, NTIRE 2026 report, Eq. 3 to 7.

    Args:
        u: Input of the block, `(N, h, w, C)`.
        w1, w2, w3: Kernels `(3, 3, C, C)`; these convolutions have no bias.
        w: Kernel `(1, 1, C, C)`.
        b: Bias `(C,)`.
        mask: `(h, w)`; pixels where it is 0 act as zero padding.
    """
    a = jax.nn.relu(_conv3x3(u, w1, None, mask))
    f = _conv3x3(jax.nn.relu(_conv3x3(a, w2, None, mask)), w3, None, mask)
    return (u + f) * conv2d(f, w, b)


def _conv3x3(x: Array, w: Array, b: Array | None, mask: Array | None) -> Array:
    return conv2d(apply_mask(x, mask), w, b, padding=(1, 1))


@op
def window_attention(q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None) -> Array:
    """Return `softmax(q kᵀ/√d + bias + mask) v` of every window and head, shaped as `q`.

    Logits and softmax are in float32 at least. Source: Swin Transformer (arXiv:2103.14030), Eq. 4.

    Args:
        q: Queries `(N, windows, heads, L, d)`.
        k: Keys `(N, windows, heads, K, d)`.
        v: Values `(N, windows, heads, K, d)`.
        bias: Relative position bias `(heads, L, K)`.
        mask: `(windows, L, K)`, added to the logits; None for none.
    """
    logits = at_least_f32(matmul(q * q.shape[-1] ** -0.5, k.mT)) + at_least_f32(bias)[None, None]
    logits = logits if mask is None else logits + at_least_f32(mask)[None, :, None]
    return attention_from_logits(logits, v)


@op
def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array) -> Array:
    """Return `y` of a selective state-space model, `(N, L, D)`.

        y_t = s_t c_t + d·x_t,  s_t = exp(delta_t a)·s_{t−1} + (delta_t·x_t) b_tᵀ,  s_0 = 0

    States are in float32 at least. Source: Mamba (arXiv:2312.00752), Algorithm 2, with `b`
    discretised as in its code (`delta·b`).

    Args:
        x: Tokens `(N, L, D)`.
        delta: Step sizes `(N, L, D)`, not negative.
        a: Rates of decay `(D, S)`, not positive.
        b: Input projections `(N, L, S)`.
        c: Output projections `(N, L, S)`.
        d: Skip connection `(D,)`.
    """
    dtype = x.dtype
    x, delta, a, b, c, d = map(at_least_f32, (x, delta, a, b, c, d))
    return (chunked_scan(delta * x, delta, a, b, c) + d[None, None] * x).astype(dtype)
