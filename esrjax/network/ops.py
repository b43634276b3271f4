"""Operations: a reference body that is the meaning, and perhaps a faster one from elsewhere.

A network calls an operation and never chooses its body. `with ops.body("reference"):` does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

import jax
from jax import Array, lax

from esrjax.errors import UserError
from esrjax.network.recurrence import recurrence
from esrjax.network.words import conv2d, matmul, word

KERNELS = "esrjax.kernels"

# "auto": a kernel where one fits and is proved faster. "reference": never a kernel. "kernel": a
# kernel or an error. A user context, so that it is part of every jit cache key.
body = cast("Any", jax.make_user_context("auto"))
BODIES = ("auto", "reference", "kernel")


class NoKernel(UserError):
    """`body("kernel")` was asked for where no kernel can serve."""


def _fits(*args: Array) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A faster body for one operation on one platform.

    call: takes the operation's arguments. why_not: None where the kernel serves these arguments on
    this device, else the reason. unproved: None where it was found faster on this device, else the
    reason for which "auto" leaves it alone though it serves. differentiable: it brings its own
    gradient; otherwise the reference's is used.
    """

    call: Callable[..., Array]
    platform: str = "cuda"
    why_not: Callable[..., str | None] = _fits
    unproved: Callable[[], str | None] = _fits
    differentiable: bool = False

    def misplaced(self) -> str | None:
        """None on the kernel's platform, else what is here."""
        here = platform()
        return None if here == self.platform else f"it needs {self.platform}, this is {here}"


def platform() -> str:
    """What programs run on by default, as kernels name it."""
    here = jax.default_backend()
    return "cuda" if here == "gpu" else here


@functools.cache
def kernel(name: str) -> Kernel | None:
    """The installed kernel of the operation `name`, if any."""
    found = list(metadata.entry_points(group=KERNELS, name=name))
    return found[0].load() if found else None


def op(reference: Callable[..., Array]) -> Callable[..., Array]:
    """An operation on arrays with the given reference body; kernels find it by its name."""
    name = reference.__name__

    @functools.wraps(reference)
    def call(*args: Array) -> Array:
        chosen = _chosen(name, args)
        if chosen is None:
            return reference(*args)
        fast = chosen.call if chosen.differentiable else _borrowing_gradient(chosen.call, reference)
        return lax.platform_dependent(*args, default=reference, **{chosen.platform: fast})

    return word()(call)


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


def _borrowing_gradient(
    fast: Callable[..., Array], reference: Callable[..., Array]
) -> Callable[..., Array]:
    """`fast`, with the gradient of `reference`."""
    call = jax.custom_vjp(fast)
    call.defvjp(
        lambda *args: (fast(*args), args),
        lambda args, cotangent: jax.vjp(reference, *args)[1](cotangent),
    )
    return call


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
def window_attention(q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None) -> Array:
    """`softmax(q kᵀ/√d + bias + mask) v` in every window, by every head: as `q`.

    `q (N, windows, heads, L, d)`, `k, v (N, windows, heads, K, d)`, `bias (heads, L, K)`,
    `mask (windows, L, K)` or none. Source: Swin Transformer (arXiv:2103.14030), Eq. 4.
    """
    logits = matmul(q * q.shape[-1] ** -0.5, k.mT) + bias[None, None]
    logits = logits if mask is None else logits + mask[None, :, None]
    return matmul(jax.nn.softmax(logits), v)


@op
def selective_scan(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array) -> Array:
    """`y_t = s_t c_t + d·x_t` with `s_t = exp(delta_t a)·s_{t−1} + (delta_t·x_t) b_tᵀ`, `s_0 = 0`.

    `x, delta, y (N, L, D)`, `a (D, S)`, `b, c (N, L, S)`, `d (D,)`. `delta` is not negative, `a`
    not positive. Source: Mamba (arXiv:2312.00752), Algorithm 2, `b` discretised as its code does.
    """
    return recurrence(delta * x, delta, a, b, c) + d[None, None] * x
