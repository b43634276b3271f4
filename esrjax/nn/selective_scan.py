"""Chunked scan of a selective state-space model over long sequences of tokens (Mamba).

A plain scan takes one token after the other, too little work for a step. Tokens are therefore split
into segments of at most `MAX_CHUNKS` chunks of `CHUNK_LEN` tokens, and the chunks of a segment are
scanned in parallel, in three passes (the chunked scan of Mamba-2, arXiv:2405.21060, section 6):

1. every chunk runs from a zero state, to its final state;
2. a scan over the chunks turns these into the state before each chunk (the recurrence is linear:
   the final state from any other initial state is this one plus the initial state's decayed share);
3. every chunk runs again from that state and emits its outputs.

Segments follow one another, so that the states of one segment at a time are in memory. The backward
pass is a recurrence from the last token to the first; it saves the states between segments only and
recomputes those inside.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Fastest on two CPU cores, where the states of all chunks of a segment fit into the cache.
MAX_CHUNKS, CHUNK_LEN = 32, 64

StepFn = Callable[..., Array]


@jax.custom_vjp
def chunked_scan(u: Array, delta: Array, a: Array, b: Array, c: Array) -> Array:
    """Return the outputs `y (N, L, D)` of a state-space model without skip connection.

        y_t = s_t c_t,  s_t = exp(delta_t a)·s_{t−1} + u_t b_tᵀ,  s_0 = 0

    States `s_t` are `(D, S)`. As with every `custom_vjp`, there is no forward mode (`jax.jvp`).

    Args:
        u: Inputs of the states, `(N, L, D)`.
        delta: Step sizes, `(N, L, D)`, not negative.
        a: Rates of decay, `(D, S)`, not positive.
        b: Input projections, `(N, L, S)`.
        c: Output projections, `(N, L, S)`.
    """
    return _scan_segments(u, delta, a, b, c)[0]


def _scan_segments(u: Array, delta: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Return the outputs `(N, L, D)`, and the state before every segment, `(segments, N, S, D)`.

    Axes in the einsums: n image, l chunk, s state, d channel. One step of a scan handles the same
    token of all chunks of a segment.
    """
    a_sd = a.T  # states are stored as (S, D): the longer axis last is faster

    def segment(carry: Array, tokens: list[Array]) -> tuple[Array, tuple[Array, Array]]:
        delta, u, b, c = map(_time_major, tokens)
        chunk_carries, carry_out = _chunk_carries(_next_state, a_sd, carry, (delta, u, b))

        def emit(s: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
            *inputs, c = token
            s = _next_state(a_sd, s, *inputs)
            return s, _einsum_highest("nlsd,nls->nld", s, c)

        _, y = lax.scan(emit, chunk_carries, (delta, u, b, c))
        return carry_out, (_chunk_major(y), carry)

    zeros = jnp.zeros((len(u), *a_sd.shape), u.dtype)
    _, (y, carries) = lax.scan(segment, zeros, [_split_chunks(token) for token in (delta, u, b, c)])
    return _merge_chunks(y, u.shape[1]), carries


def _chunked_scan_fwd(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    y, carries = _scan_segments(*inputs)
    return y, (*inputs, carries)


def _chunked_scan_bwd(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    u, delta, a, b, c, carries = residuals
    a_sd = a.T
    ones = jnp.ones(len(a_sd), u.dtype)

    def segment(state_grad: Array, tokens: list[Array]) -> tuple[Array, tuple[Array, ...]]:
        """Process one segment; `state_grad` is the gradient by the state after it."""
        carry, *inputs = tokens
        delta, u, b, c, dy = map(_time_major, inputs)
        chunk_carries, _ = _chunk_carries(_next_state, a_sd, carry, (delta, u, b))
        _, states = lax.scan(
            lambda s, token: (_next_state(a_sd, s, *token), s), chunk_carries, (delta, u, b)
        )
        chunk_grads, state_grad_out = _chunk_carries(
            _previous_grad, a_sd, state_grad, (delta, dy, c), reverse=True
        )

        def token_grads(carry: tuple[Array, Array], token: tuple[Array, ...]) -> tuple[Any, Any]:
            """Return the carry before a token, and the gradients by its u, delta, b and c.

            `s` is the state before the token, `decay · s + u bᵀ` the one after it, and `g` the
            gradient by the latter: from later tokens, and from the token's own output.
            """
            (state_grad, da), (s, delta, u, b, c, dy) = carry, token
            decay, g = _decay(a_sd, delta), state_grad + _outer(dy, c)
            dexponent = g * decay * s  # by delta·a, as decay = exp(delta·a)
            # An einsum with ones for the sum over states: XLA's CPU backend takes twice as long for
            # the sum itself.
            grads = (
                _einsum_highest("nlsd,nls->nld", g, b),
                _einsum_highest("nlsd,s->nld", dexponent * a_sd[None, None], ones),
                _einsum_highest("nlsd,nld->nls", g, u),
                _einsum_highest("nlsd,nld->nls", decay * s + _outer(u, b), dy),
            )
            return (decay * g, da + dexponent * delta[..., None, :]), grads

        init = (chunk_grads, jnp.zeros_like(chunk_grads))
        (_, da), grads = lax.scan(token_grads, init, (states, delta, u, b, c, dy), reverse=True)
        return state_grad_out, (da.sum((0, 1)), *map(_chunk_major, grads))

    zeros = jnp.zeros_like(carries[0])
    tokens = [carries, *(_split_chunks(token) for token in (delta, u, b, c, cotangent))]
    _, (da, *grads) = lax.scan(segment, zeros, tokens, reverse=True)
    du, ddelta, db, dc = (_merge_chunks(grad, u.shape[1]) for grad in grads)
    return du, ddelta, da.sum(0).T, db, dc


chunked_scan.defvjp(_chunked_scan_fwd, _chunked_scan_bwd)


def _chunk_carries(
    step: StepFn, a_sd: Array, carry: Array, tokens: tuple[Array, ...], reverse: bool = False
) -> tuple[Array, Array]:
    """Return the state before every chunk, `(N, chunks, S, D)`, and the one after the last.

    Passes 1 and 2 of the module's docstring. In reverse, `step` goes back in time and the states
    are gradients.
    """
    delta = tokens[0]
    zeros = jnp.zeros((*delta.shape[1:3], *a_sd.shape), delta.dtype)
    chunk_states, _ = lax.scan(
        lambda s, token: (step(a_sd, s, *token), None), zeros, tokens, reverse=reverse
    )
    decay = _decay(a_sd, delta.sum(0))  # over all tokens of a chunk
    carry_out, carries_in = lax.scan(
        lambda s, chunk: (chunk[0] * s + chunk[1], s),
        carry,
        (decay.swapaxes(0, 1), chunk_states.swapaxes(0, 1)),
        reverse=reverse,
    )
    return carries_in.swapaxes(0, 1), carry_out


# --- one token of every chunk ------------------------------------------------------------------


def _next_state(a_sd: Array, s: Array, delta: Array, u: Array, b: Array) -> Array:
    """Return the state after a token from the one before it."""
    return _decay(a_sd, delta) * s + _outer(u, b)


def _previous_grad(a_sd: Array, state_grad: Array, delta: Array, dy: Array, c: Array) -> Array:
    """Return the gradient by the state before a token from the one by the state after it."""
    return _decay(a_sd, delta) * (state_grad + _outer(dy, c))


def _decay(a_sd: Array, delta: Array) -> Array:
    """Return `exp(delta·a)`, the factor of the previous state, `(N, chunks, S, D)`."""
    return jnp.exp(delta[..., None, :] * a_sd[None, None])


def _outer(u: Array, b: Array) -> Array:
    """Return the outer product `(N, chunks, D), (N, chunks, S) -> (N, chunks, S, D)`."""
    return u[..., None, :] * b[..., :, None]


def _einsum_highest(equation: str, x: Array, y: Array) -> Array:
    # On GPUs and TPUs the default precision of float32 is lower (TF32, bfloat16): errors add up.
    return jnp.einsum(equation, x, y, precision="highest")


# --- chunks ------------------------------------------------------------------------------------


def _split_chunks(tokens: Array) -> Array:
    """Split `(N, L, C)` into `(segments, N, chunks, CHUNK_LEN, C)`, padded with zeros.

    A padded token has `delta = u = 0` and so changes no state.
    """
    n, length, channels = tokens.shape
    segments = -(-length // (MAX_CHUNKS * CHUNK_LEN))
    chunks = -(-length // (segments * CHUNK_LEN))
    padding = segments * chunks * CHUNK_LEN - length
    tokens = jnp.pad(tokens, ((0, 0), (0, padding), (0, 0)))
    return tokens.reshape(n, segments, chunks, CHUNK_LEN, channels).swapaxes(0, 1)


def _merge_chunks(chunks: Array, length: int) -> Array:
    """Undo `_split_chunks`."""
    return chunks.swapaxes(0, 1).reshape(chunks.shape[1], -1, chunks.shape[-1])[:, :length]


def _time_major(tokens: Array) -> Array:
    """Return `(N, chunks, CHUNK_LEN, C) -> (CHUNK_LEN, N, chunks, C)`: scans run over axis 0."""
    return tokens.transpose(2, 0, 1, 3)


def _chunk_major(tokens: Array) -> Array:
    """Undo `_time_major`."""
    return tokens.transpose(1, 2, 0, 3)
