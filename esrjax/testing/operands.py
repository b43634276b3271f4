"""Operands of every operation that may have a kernel: their shapes, and how each is drawn."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Kind = Literal["any", "small", "positive", "negative", "mask", "picture"]
Drawn = tuple[tuple[int, ...], Kind]
Sizes = tuple[Any, ...]


def spab(n: int, h: int, w: int, channels: int, masked: bool = False) -> list[Drawn]:
    """`u, w1, b1, w2, b2, w3, b3` and perhaps `mask`."""
    conv: list[Drawn] = [((3, 3, channels, channels), "small"), ((channels,), "any")]
    u: Drawn = ((n, h, w, channels), "any")
    return [u, *conv, *conv, *conv, *_mask(h, w, masked)]


def gated_spab(n: int, h: int, w: int, channels: int, masked: bool = False) -> list[Drawn]:
    """`u, w1, w2, w3, w, b` and perhaps `mask`."""
    conv: Drawn = ((3, 3, channels, channels), "small")
    gate: list[Drawn] = [((1, 1, channels, channels), "small"), ((channels,), "any")]
    u: Drawn = ((n, h, w, channels), "any")
    return [u, conv, conv, conv, *gate, *_mask(h, w, masked)]


def _mask(h: int, w: int, masked: bool) -> list[Drawn]:
    return [((h, w), "picture")] if masked else []


def gated_residual(n: int, h: int, w: int, channels: int) -> list[Drawn]:
    """`x, f, w, b`."""
    picture: Drawn = ((n, h, w, channels), "any")
    return [picture, picture, ((1, 1, channels, channels), "any"), ((channels,), "any")]


def window_attention(
    n: int, windows: int, heads: int, queries: int, keys: int, depth: int, masked: bool
) -> list[Drawn]:
    """`q, k, v, bias` and perhaps `mask`."""
    lead = (n, windows, heads)
    q: Drawn = ((*lead, queries, depth), "any")
    k: Drawn = ((*lead, keys, depth), "any")
    mask: list[Drawn] = [((windows, queries, keys), "mask")] if masked else []
    return [q, k, k, ((heads, queries, keys), "any"), *mask]


def selective_scan(n: int, tokens: int, channels: int, states: int) -> list[Drawn]:
    """`x, delta, a, b, c, d`: steps are not negative, rates not positive."""
    wide, few = (n, tokens, channels), (n, tokens, states)
    return [
        (wide, "any"), (wide, "positive"), ((channels, states), "negative"),
        (few, "any"), (few, "any"), ((channels,), "any"),
    ]  # fmt: skip


OPERANDS: Mapping[str, Callable[..., list[Drawn]]] = {
    "spab": spab,
    "gated_spab": gated_spab,
    "gated_residual": gated_residual,
    "window_attention": window_attention,
    "selective_scan": selective_scan,
}

# The smallest first; odd sides, few rows, ragged ends, several pictures, masks.
SMALL: Mapping[str, tuple[Sizes, ...]] = {
    "spab": ((1, 2, 3, 4), (1, 17, 6, 4), (1, 3, 131, 28, True)),
    "gated_spab": ((1, 2, 3, 4), (1, 11, 6, 48), (2, 19, 70, 5, True)),
    "gated_residual": (
        (1, 2, 2, 4), (1, 2, 3, 5), (2, 5, 7, 16), (1, 13, 11, 28), (2, 3, 3, 48), (1, 3, 5, 52),
    ),
    "window_attention": (
        (1, 2, 2, 4, 6, 3, True), (2, 2, 3, 9, 11, 5, False), (1, 4, 2, 64, 64, 10, True),
        (1, 2, 1, 150, 20, 30, True),
    ),
    "selective_scan": ((1, 5, 3, 2), (2, 11, 40, 16), (1, 8, 130, 3)),
}  # fmt: skip

# Those of networks, at 256x256 LR where that matters.
REAL: Mapping[str, tuple[Sizes, ...]] = {
    "spab": ((1, 256, 256, 28), (1, 256, 256, 32), (1, 256, 256, 48)),  # SPAN, SPANF, SPAN of 2024
    "gated_spab": ((1, 256, 256, 32),),  # SPANV2
    "gated_residual": tuple((1, 256, 256, channels) for channels in (16, 28, 32, 48, 52)),
    "window_attention": (
        (1, 64, 6, 64, 64, 10, True),  # SwinIR, light
        (1, 64, 6, 64, 64, 30, True),  # SwinIR
        (1, 16, 6, 256, 256, 30, True),  # HAT
        (1, 16, 6, 256, 576, 30, False),  # HAT, windows that overlap
    ),
    "selective_scan": ((1, 4096, 360, 16), (1, 65536, 96, 8)),
}

_DRAWS: Mapping[Kind, Callable[[np.random.Generator, tuple[int, ...]], Any]] = {
    "any": lambda rng, shape: rng.standard_normal(shape),
    "small": lambda rng, shape: rng.standard_normal(shape) / np.prod(shape[:-1]) ** 0.5,
    "positive": lambda rng, shape: rng.random(shape),
    "negative": lambda rng, shape: -3 * rng.random(shape),
    "mask": lambda rng, shape: np.where(rng.random(shape) < 0.3, -100.0, 0.0),
    "picture": lambda rng, shape: np.pad(np.ones([side - 1 for side in shape]), (0, 1)),
}


def shapes(name: str, sizes: Sizes, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """What the operation `name` is given, without numbers."""
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, _ in OPERANDS[name](*sizes)]


def arrays(name: str, sizes: Sizes, dtype: Any) -> list[Array]:
    """What the operation `name` is given."""
    return [jnp.asarray(each, dtype) for each in numbers(name, sizes)]


def numbers(name: str, sizes: Sizes) -> list[Any]:
    """The same in double precision."""
    rng = np.random.default_rng(0)
    return [_DRAWS[kind](rng, shape) for shape, kind in OPERANDS[name](*sizes)]
