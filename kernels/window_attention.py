"""Window attention `softmax(q kᵀ/√d + bias + mask) v` without scores in device memory.

Forward, a program goes through the keys of a window with the running maximum `m_i`, sum `l_i` and
output `acc` of the online softmax (Milakov and Gimelshein, arXiv:1805.02867). The gradients compute
the scores again, tile by tile, from the logarithm of the softmax's sum (FlashAttention-2,
arXiv:2307.08691): one kernel for those of queries and bias, one for those of keys and values.
Only the operands, the output, their gradients and two numbers per query are in device memory; the
reference writes and reads L·K scores for every window and head, several times for a gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from esrjax.nn.ops import Kernel, implementation
from esrjax.nn.ops import window_attention as window_attention_op

from . import tuning
from .attention_programs import (
    Cotangents,
    forward_kernel,
    key_grad_kernel,
    pad_heads,
    pad_operands,
    query_grad_kernel,
)
from .attention_tiles import TileKernel
from .tensor_cores import precision_reason, smem_reason
from .tuning import Config

NAME = "window_attention"
CONFIG_SPACE = {"sm_programs": (4, 2, 8)}  # programs per SM, among which the windows are divided


def call(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    mask: Array | None = None,
    *,
    config: Config | None = None,
    interpret: Any = None,
) -> Array:
    """Return the output of the op `window_attention`, shaped as `q`.

    The gradients are kernels too, unless that of the mask is asked for: then all of them are the
    reference's.

    Args:
        q: Queries `(N, windows, heads, L, d)`.
        k: Keys `(N, windows, heads, K, d)`.
        v: Values `(N, windows, heads, K, d)`.
        bias: Position bias `(heads, L, K)`.
        mask: Additive mask `(windows, L, K)`, or None.
        config: See `CONFIG_SPACE`; by default the tuned one.
        interpret: Parameters of the interpreter, which runs on any platform; None for the device.
    """
    config = config or tuning.get_config(NAME, CONFIG_SPACE)

    def forward(*args: Any) -> list[Array]:
        return forward_kernel(pad_operands(*args, **config)).run(interpret)

    def fwd(*primals: Any) -> tuple[Array, Any]:
        args = [primal if primal is None else primal.value for primal in primals]
        y, logsumexp = forward(*args)
        if mask is not None and primals[4].perturbed:
            return _unpad(y, q), (args, None, None)
        return _unpad(y, q), (args, y, logsumexp)

    def bwd(residuals: Any, cotangent: Any) -> tuple[Any, ...]:
        args, y, logsumexp = residuals
        if logsumexp is None:
            with implementation("reference"):
                return jax.vjp(window_attention_op, *args)[1](cotangent)
        return _grads(args, y, logsumexp, cotangent, config, interpret)

    attention = jax.custom_vjp(lambda *args: _unpad(forward(*args)[0], q))
    attention.defvjp(fwd, bwd, symbolic_zeros=True)
    return attention(q, k, v, bias, mask)


def _grads(
    args: Any, y: Array, logsumexp: Array, cotangent: Array, config: Config, interpret: Any
) -> tuple[Any, ...]:
    """Return the gradients of q, k, v and bias; None, which is zero, for the mask."""
    q, k, v, bias, _ = args
    operands, g = pad_operands(*args, **config), pad_heads(cotangent)
    delta = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), -1)
    cotangents = Cotangents(g=g, logsumexp=logsumexp, delta=delta)
    dq, dbias = query_grad_kernel(operands, cotangents).run(interpret)
    dk, dv = key_grad_kernel(operands, cotangents).run(interpret)
    _, num_queries, num_keys = bias.shape
    return (
        _unpad(dq.sum(0), q),
        _unpad(dk, k),
        _unpad(dv, v),
        dbias.sum(0)[:, :num_queries, :num_keys].astype(bias.dtype),
        None,
    )


def _unpad(x: Array, like: Array) -> Array:
    """`(N·windows, heads, L, d)` padded to the shape and dtype of `(N, windows, heads, L, d)`."""
    return x[:, :, : like.shape[3], : like.shape[4]].reshape(like.shape).astype(like.dtype)


def unsupported_reason(
    q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None
) -> str | None:
    """Return None if the kernels support the operands on this device, else the reason."""
    args = (q, k, v, bias, *([] if mask is None else [mask]))
    return (
        precision_reason(q.dtype)
        or tuning.unsupported_reason(*args)
        or tuning.not_hopper_reason()
        or _smem_reason(*args)
    )


def _smem_reason(*args: Any) -> str | None:
    """Return None if shared memory suffices for the output and the gradients, else the reason."""
    kernels: list[TileKernel] = []

    def make_kernels(q: Array, *others: Array) -> None:
        operands = pad_operands(q, *others, sm_programs=1)
        vector = operands.q[..., 0]
        cotangents = Cotangents(g=operands.q, logsumexp=vector, delta=vector)
        kernels.append(forward_kernel(operands))
        kernels.append(query_grad_kernel(operands, cotangents))
        kernels.append(key_grad_kernel(operands, cotangents))

    jax.eval_shape(make_kernels, *args)
    q, k, *_ = args
    usage = f"{q.shape[3]} queries and {k.shape[3]} keys of {q.shape[4]} elements in {q.dtype}"
    return smem_reason(usage, max(kernel.smem_bytes() for kernel in kernels))


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
    differentiable=True,
)
