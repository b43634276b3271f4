"""The blocks of DAN and its kin: local handling, then spatial, then channel attention."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.core import max_dim, min_dim

from esrjax.network.extent import Extent, divided, known, positions, whole
from esrjax.network.layers import Conv2d, LayerNorm, Sequential, parameter
from esrjax.network.resampling import adaptive_max_pool, nearest
from esrjax.network.words import gelu, matmul, normalize, picture_variance, softmax

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
        peaks = self.dwconv(adaptive_max_pool(p, 8))
        variance = picture_variance(p)
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
        shares = softmax(likeness * self.temperature[...][None], -1)
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

    `function`: `(N, pixels, C) -> (N, pixels, C')`. Of an axis a pixel is in one window or in two.
    """
    n, h, w, _ = x.shape
    if known(h) and known(w) and max(h, w) <= side:
        return function(x.reshape(n, h * w, -1)).reshape(n, h, w, -1)
    axes = [Windows(length, side) for length in (h, w)]
    for axis, windows in enumerate(axes, 1):
        x = jnp.take(x, windows.positions().ravel(), axis, mode="clip")
    (high, r), (wide, c) = ((windows.side, windows.count) for windows in axes)
    cut = x.reshape(n, r, high, c, wide, -1).swapaxes(2, 3)
    y = function(cut.reshape(n * r * c, high * wide, -1))
    y = y.reshape(n, r, c, high, wide, -1).swapaxes(2, 3).reshape(n, r * high, c * wide, -1)
    for axis, windows in enumerate(axes, 1):
        first, last = (jnp.take(y, windows.place(i), axis, mode="clip") for i in windows.holding())
        y = (first + last) / 2
    return y


class Windows:
    """The windows of an axis of `length` pixels: evenly set, the last flush."""

    def __init__(self, length: Extent, side: int):
        self.length, self.side = length, min_dim(side, length)
        self.count = (length + self.side - 1) // self.side
        gaps = max_dim(1, self.count - 1)
        self.step = max_dim(1, (length - self.side + gaps - 1) // gaps)

    def starts(self, index: Array) -> Array:
        """Where windows begin."""
        return jnp.minimum(index * whole(self.step), whole(self.length - self.side))

    def positions(self) -> Array:
        """The positions in every window: `(windows, side)`."""
        return self.starts(positions(self.count))[:, None] + positions(self.side)[None]

    def holding(self) -> tuple[Array, Array]:
        """The first and the last window that holds each position."""
        place, end = positions(self.length), whole(self.count - 1)
        out = jnp.maximum(place - whole(self.side - 1), 0)  # the earliest start that will do
        first = jnp.minimum(divided(out + whole(self.step - 1), self.step), end)
        last = jnp.minimum(divided(place, self.step), end)
        return first, jnp.where(place >= whole(self.length - self.side), end, last)

    def place(self, window: Array) -> Array:
        """Where each position lies when the windows stand side by side."""
        return window * whole(self.side) + positions(self.length) - self.starts(window)
