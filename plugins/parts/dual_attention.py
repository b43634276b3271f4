"""The blocks of DAN and its kin: local handling, then spatial, then channel attention."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.network.layers import Conv2d, LayerNorm, Sequential, parameter
from esrjax.network.resampling import adaptive_max_pool, nearest
from esrjax.network.words import gelu, matmul, normalize

from .feed_forward import GatedFeedForward

WINDOW = 72  # side of the windows of the channel attention outside of training, LR pixels


class LocalHandling(nnx.Module):
    """Three depthwise-separable steps; half the channels are tapped before each and after all."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1, self.conv2, self.conv3 = (
            Conv2d(channels, half, 1, rngs=rngs) for _ in range(3)
        )
        self.conv4 = Conv2d(channels, half, groups=half, rngs=rngs)
        self.conv5 = Conv2d(4 * half, channels, 1, rngs=rngs)
        self.dwconv1, self.dwconv2, self.dwconv3 = (
            Sequential(
                [
                    Conv2d(channels, channels, 1, rngs=rngs),
                    Conv2d(channels, channels, groups=channels, rngs=rngs),
                ]
            )
            for _ in range(3)
        )

    def __call__(self, x: Array) -> Array:
        taps: list[Array] = []
        for tap, step in (
            (self.conv1, self.dwconv1),
            (self.conv2, self.dwconv2),
            (self.conv3, self.dwconv3),
        ):
            taps.append(gelu(tap(x)))
            x = gelu(step(x) + x)
        return self.conv5(jnp.concatenate([*taps, gelu(self.conv4(x))], -1))


class SpatialAttention(nnx.Module):
    """Half the channels, gated by their coarse maxima and their variance over the picture."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1 = Conv2d(channels, half, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(half, half, groups=half, bias=False, rngs=rngs)
        self.conv2 = Conv2d(half, half, 1, bias=False, rngs=rngs)
        self.conv3 = Conv2d(half, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h, w = x.shape[1:3]
        p = self.conv1(normalize(x))
        peaks = self.dwconv(adaptive_max_pool(p, (h // 8, w // 8)))
        variance = p.var((1, 2), keepdims=True, ddof=1)
        gate = gelu(self.conv2(self.cue(peaks, variance)))
        return self.conv3(p * nearest(gate, size=(h, w))) + x

    def cue(self, peaks: Array, variance: Array) -> Array:
        """What the gate is made of, from `(N, h / 8, w / 8, C / 2)` and `(N, 1, 1, C / 2)`."""
        return peaks + variance


class GlobalChannel(nnx.Module):
    """Attention between channels; the key is the value.

    Trained on whole patches; outside of training every window of `window` pixels attends on its
    own, and where windows overlap their results are averaged.
    """

    def __init__(self, channels: int, *, window: int = WINDOW, rngs: nnx.Rngs):
        self.temperature = parameter(jnp.ones((1, 1)))
        self.project_in = Conv2d(channels, 4 * channels, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(2 * channels, 2 * channels, groups=2 * channels, bias=False, rngs=rngs)
        self.project_out = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.window, self.deterministic = window, False

    def __call__(self, x: Array) -> Array:
        first, second = jnp.split(self.project_in(x), 2, -1)
        side = self.window if self.deterministic else max(x.shape[1:3])
        z = in_windows(self.attend, self.dwconv(first) * second, side)
        return self.project_out(z)

    def attend(self, z: Array) -> Array:
        """`(N, pixels, 2·C) -> (N, pixels, C)`."""
        query, value = jnp.split(z, 2, -1)
        likeness = matmul(normalize(query, 1).swapaxes(1, 2), normalize(value, 1))
        shares = jax.nn.softmax(likeness * self.temperature[...][None], -1)
        return matmul(value, shares.swapaxes(1, 2))


class ChannelAttention(nnx.Module):
    """Attention between channels and a gated feed-forward, both residual after a LayerNorm."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.global_channel = GlobalChannel(channels, rngs=rngs)
        self.ffn = GatedFeedForward(channels, 2 * channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.global_channel(self.norm1(x))
        return x + self.ffn(self.norm2(x))


# --- windows that overlap ----------------------------------------------------------------------


def in_windows(function: Callable[[Array], Array], x: Array, side: int) -> Array:
    """`function` of the pixels of every window of `x (N, h, w, C)`, averaged where they overlap.

    `function`: `(N, pixels, C) -> (N, pixels, C')`.
    """
    n, h, w, _ = x.shape
    if max(h, w) <= side:
        return function(x.reshape(n, h * w, -1)).reshape(n, h, w, -1)
    rows, columns = windows(h, side), windows(w, side)
    where = np.s_[:, rows[:, None, :, None], columns[None, :, None, :]]
    cut = x[where]
    found = function(cut.reshape(-1, rows.shape[1] * columns.shape[1], cut.shape[-1]))
    found = found.reshape(*cut.shape[:-1], -1)
    total = jnp.zeros((n, h, w, found.shape[-1]), x.dtype).at[where].add(found)
    return total / jnp.asarray(np.outer(shared(rows), shared(columns)), x.dtype)[None, :, :, None]


def windows(length: int, side: int) -> NDArray[np.int64]:
    """The positions in every window of an axis, `(windows, side)`: evenly set, the last flush."""
    side = min(side, length)
    count = -(-length // side)
    step = side if count == 1 else -(-(length - side) // (count - 1))
    starts = np.unique(np.minimum(step * np.arange(count), length - side))
    return starts[:, None] + np.arange(side)


def shared(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many windows of an axis hold each of its positions."""
    return np.bincount(positions.ravel())
