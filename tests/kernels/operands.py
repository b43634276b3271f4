"""Operands of every operation that has a kernel: small odd ones, and those of real networks."""

import jax
import jax.numpy as jnp
import numpy as np


def gated_residual(n, h, w, channels):
    """Shapes of `x, f, w, b`, and how each is drawn."""
    picture = (n, h, w, channels)
    return [
        (picture, "any"),
        (picture, "any"),
        ((1, 1, channels, channels), "any"),
        ((channels,), "any"),
    ]


def window_attention(n, windows, heads, queries, keys, depth, masked):
    """Shapes of `q, k, v, bias` and perhaps `mask`."""
    lead = (n, windows, heads)
    found = [((*lead, rows, depth), "any") for rows in (queries, keys, keys)]
    found += [((heads, queries, keys), "any")]
    return found + ([((windows, queries, keys), "mask")] if masked else [])


def selective_scan(n, tokens, channels, states):
    """Shapes of `x, delta, a, b, c, d`: steps are not negative, rates not positive."""
    wide, few = (n, tokens, channels), (n, tokens, states)
    return [
        (wide, "any"), (wide, "positive"), ((channels, states), "negative"),
        (few, "any"), (few, "any"), ((channels,), "any"),
    ]  # fmt: skip


OPERANDS = dict(
    gated_residual=gated_residual, window_attention=window_attention, selective_scan=selective_scan
)
SMALL = [  # odd sides, ragged last tiles, fewer rows than lanes, several pictures
    ("gated_residual", (2, 5, 7, 16)),
    ("gated_residual", (1, 13, 11, 28)),
    ("gated_residual", (1, 12, 11, 32)),
    ("gated_residual", (2, 3, 3, 48)),
    ("gated_residual", (1, 3, 5, 52)),
    ("gated_residual", (1, 2, 3, 5)),
    ("window_attention", (2, 2, 3, 9, 11, 5, False)),
    ("window_attention", (1, 4, 2, 64, 64, 10, True)),
    ("window_attention", (1, 2, 1, 150, 20, 30, True)),
    ("window_attention", (1, 1, 2, 16, 36, 30, False)),
    ("selective_scan", (2, 11, 40, 16)),
    ("selective_scan", (1, 8, 130, 3)),
]
REAL = [
    *(("gated_residual", (1, 256, 256, channels)) for channels in (16, 28, 32, 48, 52)),
    ("window_attention", (1, 64, 6, 64, 64, 10, True)),  # SwinIR, light
    ("window_attention", (1, 64, 6, 64, 64, 30, True)),  # SwinIR
    ("window_attention", (1, 16, 6, 256, 256, 30, True)),  # HAT
    ("window_attention", (1, 16, 6, 256, 576, 30, False)),  # HAT, windows that overlap
    ("selective_scan", (1, 4096, 360, 16)),
    ("selective_scan", (1, 65536, 96, 8)),
]
DRAWN = {
    "any": lambda rng, shape: rng.standard_normal(shape),
    "positive": lambda rng, shape: rng.random(shape),
    "negative": lambda rng, shape: -3 * rng.random(shape),
    "mask": lambda rng, shape: np.where(rng.random(shape) < 0.3, -100.0, 0.0),
}


def shapes(name, sizes, dtype):
    """What the operation is given, without numbers."""
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, _ in OPERANDS[name](*sizes)]


def arrays(name, sizes, dtype):
    """What the operation is given."""
    rng = np.random.default_rng(0)
    drawn = [DRAWN[kind](rng, shape) for shape, kind in OPERANDS[name](*sizes)]
    return [jnp.asarray(each, dtype) for each in drawn]
