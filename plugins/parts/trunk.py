"""What SwinIR, HAT and MambaIRv2 share: groups of blocks beside skips, and heads.

    x − mean ─ conv ─ LayerNorm ─ group 1 … n ─ LayerNorm ─ conv ─ + ─ conv ─ head ─ + mean
                 └─────────────────────────────────────────────────┘

Source: SwinIR (arXiv:2108.10257), section 3.1; further heads, team BBox in the NTIRE 2025
challenge. Features are `(N, h, w, C)`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.layers import Conv2d, LayerNorm, Linear, PixelShuffle, Sequential, normal

from .colour import mean_colour
from .repetition import in_turn
from .windows import fill

WIDTH = 64  # channels from which pictures are made
FACTORS = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}
NAMES = {
    "patch_embed.norm.{leaf}": "patch_norm.{leaf}",
    "patch_embed": "patch_norm",
    "upsample.{n}.{leaf}": "upsample.steps.{n}.{leaf}",
}


class Group(nnx.Module):
    """`inner` and a convolution, beside a skip."""

    def __init__(self, channels: int, inner: nnx.Module, *, rngs: nnx.Rngs):
        self.residual_group: Any = inner
        self.conv = Conv2d(channels, channels, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.conv(self.residual_group(t)) + t


class Head(nnx.Module):
    """A picture `scale` times as large as `x`, from its features.

    Features are enlarged step by step; `last`, which all heads share, makes three channels of
    them. direct: one step makes the picture.
    """

    def __init__(self, channels: int, scale: int, *, direct: bool = False, rngs: nnx.Rngs):
        self.scale, out = scale, 3 if direct else channels
        self.steps = Sequential(
            part
            for r in ((scale,) if direct else factors(scale))
            for part in (Conv2d(channels, out * r**2, rngs=rngs), PixelShuffle(r))
        )

    def __call__(self, features: Array, x: Array, last: Conv2d | None = None) -> Array:
        y = self.steps(features)
        y = (y if last is None else last(y)) + mean_colour(x)
        return y[:, : self.scale * x.shape[1], : self.scale * x.shape[2]]


class Trunk(nnx.Module):
    """A network of groups. LR is mirrored below and to the right until windows fill it.

    edges: how, as `windows.fill` says. further: scales of heads beside that of `scale`, which
    train with it: the parts `head_2x`, ...; compiled, they cost nothing unless they are asked for.
    direct: the picture is made in one step. main: the name of the main head. scan, remat: how
    groups follow each other, as `in_turn` says; the result is the same.
    """

    def __init__(
        self,
        channels: int,
        groups: Iterable[nnx.Module],
        *,
        window: int,
        scale: int,
        edges: str = "symmetric",
        further: Iterable[int] = (),
        direct: bool = False,
        main: str = "upsample",
        scan: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.window, self.edges, self.scan, self.remat = window, edges, scan, remat
        self.conv_first = Conv2d(3, channels, rngs=rngs)
        self.patch_norm = LayerNorm(channels)
        self.layers = Sequential(Group(channels, inner, rngs=rngs) for inner in groups)
        self.norm = LayerNorm(channels)
        self.conv_after_body = Conv2d(channels, channels, rngs=rngs)
        self.heads = (main, *(f"head_{times}x" for times in further))
        if not direct:
            before = Conv2d(channels, WIDTH, rngs=rngs)
            self.conv_before_upsample = Sequential([before, jax.nn.leaky_relu])
            self.conv_last = Conv2d(WIDTH, 3, rngs=rngs)
        for name, times in zip(self.heads, (scale, *further), strict=True):
            wide = channels if direct else WIDTH
            setattr(self, name, Head(wide, times, direct=direct, rngs=rngs))
        self.direct = direct
        start_small(self, rngs)

    def __call__(self, x: Array) -> Array:
        features, last = self.features(x), None
        if not self.direct:
            features, last = self.conv_before_upsample(features), self.conv_last
        main, *_ = [getattr(self, name)(features, x, last) for name in self.heads]
        return main

    def features(self, x: Array) -> Array:
        """Of LR `x`, as many pixels as windows fill."""
        x = fill(x, self.window, self.edges)
        head = self.conv_first(x - mean_colour(x))
        t = self.patch_norm(head)
        t = in_turn(self.layers, t, scan=self.scan, remat=self.remat)
        return self.conv_after_body(self.norm(t)) + head


def factors(scale: int) -> tuple[int, ...]:
    """The steps in which features are enlarged `scale` times."""
    if scale not in FACTORS:
        raise ValueError(f"heads are of scale {', '.join(map(str, FACTORS))}; not {scale}")
    return FACTORS[scale]


def start_small(net: nnx.Module, rngs: nnx.Rngs) -> None:
    """Give every linear layer of `net` small weights and no bias."""
    for _, part in nnx.iter_modules(net):
        if isinstance(part, Linear):
            part.weight.set_value(normal(rngs, part.weight.shape, 0.02))
            if part.bias is not None:
                part.bias.set_value(jnp.zeros_like(part.bias[...]))
