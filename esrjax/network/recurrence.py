"""The recurrence of state spaces over many tokens, cut so that most of it runs side by side.

Tokens are cut into segments of at most `LANES` lanes of `STEPS` tokens. In a segment every lane
first runs from nothing, then it is known what each hands to the next, then every lane runs again
from what it was handed. Only one segment's states exist at a time: the gradient, which is a
recurrence from the last token to the first, makes them again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

LANES, STEPS = 32, 64  # fastest on two CPU cores: the states of all lanes stay in cache

Step = Callable[..., Array]


@jax.custom_vjp
def recurrence(u: Array, delta: Array, a: Array, b: Array, c: Array) -> Array:
    """`y_t = s_t c_t` with `s_t = exp(delta_t a)·s_{t−1} + u_t b_tᵀ`, `s_0 = 0`.

    `u, delta, y (N, L, D)`, `a (D, S)`, `b, c (N, L, S)`; the states `s_t` are `(D, S)`.
    """
    return _forward(u, delta, a, b, c)[0]


def _forward(u: Array, delta: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """The outputs, and the state before every segment, `(segments, N, S, D)`."""
    rates = a.T  # the states lie as (S, D): the wider axis last is the faster

    def segment(handed: Array, tokens: list[Array]) -> tuple[Array, tuple[Array, Array]]:
        delta, u, b, c = map(_steps_first, tokens)
        starts, last = _lanes(_next, rates, handed, (delta, u, b))

        def read(s: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
            *written, c = token
            s = _next(rates, s, *written)
            return s, _sum("nlsd,nls->nld", s, c)

        _, y = lax.scan(read, starts, (delta, u, b, c))
        return last, (_steps_last(y), handed)

    nothing = jnp.zeros((len(u), *rates.shape), u.dtype)
    _, (y, handed) = lax.scan(segment, nothing, [_cut(token) for token in (delta, u, b, c)])
    return _joined(y, u.shape[1]), handed


def _saving(*given: Array) -> tuple[Array, tuple[Array, ...]]:
    y, handed = _forward(*given)
    return y, (*given, handed)


def _backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    u, delta, a, b, c, handed = saved
    rates = a.T
    ones = jnp.ones(len(rates), u.dtype)

    def segment(h: Array, tokens: list[Array]) -> tuple[Array, tuple[Array, ...]]:
        """`h`: what later tokens say of the state they are handed."""
        handed, *rest = tokens
        delta, u, b, c, dy = map(_steps_first, rest)
        starts, _ = _lanes(_next, rates, handed, (delta, u, b))
        _, before = lax.scan(lambda s, token: (_next(rates, s, *token), s), starts, (delta, u, b))
        ends, first = _lanes(_previous, rates, h, (delta, dy, c), reverse=True)

        def read(carried: tuple[Array, Array], token: tuple[Array, ...]) -> tuple[Any, Any]:
            (h, by_a), (s, delta, u, b, c, dy) = carried, token
            kept, g = _kept(rates, delta), h + _outer(dy, c)
            by_exponent = g * kept * s
            slopes = (
                _sum("nlsd,nls->nld", g, b),
                _sum("nlsd,s->nld", by_exponent * rates[None, None], ones),
                _sum("nlsd,nld->nls", g, u),
                _sum("nlsd,nld->nls", kept * s + _outer(u, b), dy),
            )
            return (kept * g, by_a + by_exponent * delta[..., None, :]), slopes

        carried = (ends, jnp.zeros_like(ends))
        (_, by_a), slopes = lax.scan(read, carried, (before, delta, u, b, c, dy), reverse=True)
        return first, (by_a.sum((0, 1)), *map(_steps_last, slopes))

    nothing = jnp.zeros_like(handed[0])
    tokens = [handed, *(_cut(token) for token in (delta, u, b, c, cotangent))]
    _, (by_a, *slopes) = lax.scan(segment, nothing, tokens, reverse=True)
    by_u, by_delta, by_b, by_c = (_joined(slope, u.shape[1]) for slope in slopes)
    return by_u, by_delta, by_a.sum(0).T, by_b, by_c


recurrence.defvjp(_saving, _backward)


def _lanes(
    step: Step, rates: Array, handed: Array, tokens: tuple[Array, ...], reverse: bool = False
) -> tuple[Array, Array]:
    """What every lane is handed, `(N, lanes, S, D)`, and what the last one hands on."""
    delta = tokens[0]
    alone = jnp.zeros((*delta.shape[1:3], *rates.shape), delta.dtype)
    ends, _ = lax.scan(
        lambda s, token: (step(rates, s, *token), None), alone, tokens, reverse=reverse
    )
    kept = _kept(rates, delta.sum(0))
    last, starts = lax.scan(
        lambda s, lane: (lane[0] * s + lane[1], s),
        handed,
        (kept.swapaxes(0, 1), ends.swapaxes(0, 1)),
        reverse=reverse,
    )
    return starts.swapaxes(0, 1), last


# --- one token, in all lanes -------------------------------------------------------------------


def _next(rates: Array, s: Array, delta: Array, u: Array, b: Array) -> Array:
    """The state after a token from that before it."""
    return _kept(rates, delta) * s + _outer(u, b)


def _previous(rates: Array, h: Array, delta: Array, dy: Array, c: Array) -> Array:
    """The gradient by the state before a token from that by the state after it."""
    return _kept(rates, delta) * (h + _outer(dy, c))


def _kept(rates: Array, delta: Array) -> Array:
    """`exp(delta·rates)`: the share of the states that is kept, `(N, lanes, S, D)`."""
    return jnp.exp(delta[..., None, :] * rates[None, None])


def _outer(u: Array, b: Array) -> Array:
    return u[..., None, :] * b[..., :, None]


def _sum(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, precision="highest")


# --- cut and joined ----------------------------------------------------------------------------


def _cut(tokens: Array) -> Array:
    """`(N, L, C) -> (segments, N, lanes, STEPS, C)`, filled up with zeros: they change no state."""
    n, length, wide = tokens.shape
    segments = -(-length // (LANES * STEPS))
    lanes = -(-length // (segments * STEPS))
    missing = segments * lanes * STEPS - length
    tokens = jnp.pad(tokens, ((0, 0), (0, missing), (0, 0)))
    return tokens.reshape(n, segments, lanes, STEPS, wide).swapaxes(0, 1)


def _joined(cut: Array, length: int) -> Array:
    """What `_cut` cut."""
    return cut.swapaxes(0, 1).reshape(cut.shape[1], -1, cut.shape[-1])[:, :length]


def _steps_first(tokens: Array) -> Array:
    return tokens.transpose(2, 0, 1, 3)


def _steps_last(tokens: Array) -> Array:
    return tokens.transpose(1, 2, 0, 3)
