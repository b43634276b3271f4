"""Operations: a reference body that is the meaning, and perhaps a faster one from elsewhere.

A network calls an operation and never chooses its body. `with ops.body("reference"):` does.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
from jax import Array, lax

from esrjax.errors import UserError
from esrjax.network.canvas import zeroed
from esrjax.network.kernel import KERNELS as KERNELS
from esrjax.network.kernel import Kernel as Kernel
from esrjax.network.kernel import kernel as kernel
from esrjax.network.recurrence import recurrence
from esrjax.network.words import PREFIX, attend, conv2d, matmul, single, word

# "auto": a kernel where one fits and is proved faster. "reference": never a kernel. "kernel": a
# kernel or an error. A user context, so that it is part of every jit cache key.
body = cast("Any", jax.make_user_context("auto"))
BODIES = ("auto", "reference", "kernel")


class NoKernel(UserError):
    """`body("kernel")` was asked for where no kernel can serve."""


def op(reference: Callable[..., Array]) -> Callable[..., Array]:
    """An operation on arrays with the given reference body; kernels find it by its name."""
    name = reference.__name__

    @functools.wraps(reference)
    def call(*args: Array) -> Array:
        chosen = _chosen(name, args)
        if chosen is None:
            return reference(*args)
        fast = with_gradient(chosen.call, None if chosen.differentiable else reference)
        return lax.platform_dependent(*args, default=reference, **{chosen.platform: fast})

    return word()(call)


def with_gradient(
    fast: Callable[..., Array], reference: Callable[..., Array] | None
) -> Callable[..., Array]:
    """`fast` with the gradient of `reference`, or with its own where there is none."""
    if reference is None:
        return fast
    call = jax.custom_vjp(fast)
    call.defvjp(
        lambda *args: (fast(*args), args),
        lambda args, cotangent: jax.vjp(reference, *args)[1](cotangent),
    )
    return call


def whole(
    operation: Callable[..., Array], operands: tuple[Array, ...], parts: Callable[[], Array]
) -> Array:
    """`operation(*operands)` where a kernel serves it; else `parts()`, which gives the same.

    For an operation that is a block of layers: those can be watched, counted by their paths and
    adapted, the inside of an operation can not.
    """
    chosen = _chosen(operation.__name__.removeprefix(PREFIX), operands)
    return parts() if chosen is None else operation(*operands)


def _chosen(name: str, args: tuple[Array, ...]) -> Kernel | None:
    if body.value not in BODIES:
        raise ValueError(f"the body is one of {', '.join(BODIES)}; not {body.value!r}")
    if body.value == "reference":
        return None
    candidate = kernel(name)
    if body.value == "kernel":
        reason = _why_no(candidate, args) or (candidate and candidate.misplaced())
        if reason is not None:
            raise _no_kernel(name, reason)
        return candidate
    return (
        candidate if candidate and not (candidate.unproved() or _why_no(candidate, args)) else None
    )


def _why_no(candidate: Kernel | None, args: tuple[Array, ...]) -> str | None:
    return "none is installed" if candidate is None else candidate.why_not(*args)


def _no_kernel(name: str, reason: str) -> NoKernel:
    return NoKernel(
        f"no kernel can serve the operation {name!r}: {reason}",
        rule='body "kernel" means a kernel or an error',
        remedy='use body "auto", which falls back to the reference',
    )


@op
def gated_residual(x: Array, f: Array, w: Array, b: Array) -> Array:
    """`(x + f) · (W f + b)` per pixel: `x, f (N, h, w, C)`, `w (1, 1, C, C)`, `b (C,)`.

    Source: SPANV2's span attention, NTIRE 2026 report, Eq. 7.
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
    """`(r + u)·(sigmoid(r) − ½)`, with `r` three 3x3 convolutions deep and SiLUs between them.

    `u (N, h, w, C)`, `w1, w2, w3 (3, 3, C, C)`, `b1, b2, b3 (C,)`; pixels where `mask (h, w)` is 0
    act as zero padding. Source: SPAN (arXiv:2311.12770), Eq. 3 to 5, as the released code has them.
    """
    a = jax.nn.silu(_conv3x3(u, w1, b1, mask))
    r = _conv3x3(jax.nn.silu(_conv3x3(a, w2, b2, mask)), w3, b3, mask)
    return (r + u) * (jax.nn.sigmoid(r) - 0.5)


@op
def gated_spab(
    u: Array, w1: Array, w2: Array, w3: Array, w: Array, b: Array, mask: Array | None = None
) -> Array:
    """`(u + f) · (W f + b)`, with `f` three 3x3 convolutions deep and ReLUs between them.

    `u (N, h, w, C)`, `w1, w2, w3 (3, 3, C, C)`, `w (1, 1, C, C)`, `b (C,)`; pixels where
    `mask (h, w)` is 0 act as zero padding. Source: SPANV2, NTIRE 2026 report, Eq. 3 to 7.
    """
    a = jax.nn.relu(_conv3x3(u, w1, None, mask))
    f = _conv3x3(jax.nn.relu(_conv3x3(a, w2, None, mask)), w3, None, mask)
    return (u + f) * conv2d(f, w, b)


def _conv3x3(x: Array, w: Array, b: Array | None, mask: Array | None) -> Array:
    return conv2d(zeroed(x, mask), w, b, padding=(1, 1))


@op
def window_attention(q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None) -> Array:
    """`softmax(q kᵀ/√d + bias + mask) v` in every window, by every head: as `q`.

    `q (N, windows, heads, L, d)`, `k, v (N, windows, heads, K, d)`, `bias (heads, L, K)`,
    `mask (windows, L, K)` or none. Source: Swin Transformer (arXiv:2103.14030), Eq. 4.
    """
    logits = single(matmul(q * q.shape[-1] ** -0.5, k.mT)) + single(bias)[None, None]
    logits = logits if mask is None else logits + single(mask)[None, :, None]
    return attend(logits, v)


@op
def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array) -> Array:
    """`y_t = s_t c_t + d·x_t` with `s_t = exp(delta_t a)·s_{t−1} + (delta_t·x_t) b_tᵀ`, `s_0 = 0`.

    `x, delta, y (N, L, D)`, `a (D, S)`, `b, c (N, L, S)`, `d (D,)`. `delta` is not negative, `a`
    not positive. Source: Mamba (arXiv:2312.00752), Algorithm 2, `b` discretised as its code does.
    """
    dtype = x.dtype
    x, delta, a, b, c, d = map(single, (x, delta, a, b, c, d))
    return (recurrence(delta * x, delta, a, b, c) + d[None, None] * x).astype(dtype)
