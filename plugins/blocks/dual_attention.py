"""Blocks of DAN and its descendants: local handling, spatial attention and channel attention.

All modules map `(N, h, w, C)` to the same shape. The windows of the channel attention at test time
are the test-time local converter (TLC, arXiv:2112.04491).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import max_dim, min_dim

from esrjax.nn.functional import (
    adaptive_max_pool,
    gelu,
    matmul,
    normalize,
    resize_nearest,
    softmax,
    spatial_var,
)
from esrjax.nn.layers import Conv2d, LayerNorm, Sequential, param
from esrjax.nn.masking import Dim, arange, dim_as_array, floor_div, is_static

from .feed_forward import GatedFeedForward

TLC_WINDOW_SIZE = 72  # windows of the channel attention at test time, LR pixels


class LocalHandlingBlock(nnx.Module):
    """Local handling block: depthwise-separable convolutions with feature distillation.

    `C / 2` channels are distilled before each of three residual convolutions and after the last.
    """

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
        for tap, dwconv in (
            (self.conv1, self.dwconv1),
            (self.conv2, self.dwconv2),
            (self.conv3, self.dwconv3),
        ):
            taps.append(gelu(tap(x)))
            x = gelu(dwconv(x) + x)
        return self.conv5(jnp.concatenate([*taps, gelu(self.conv4(x))], -1))


class SpatialAttentionBlock(nnx.Module):
    """Gate half of the channels by their pooled maxima and their variance over the image."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1 = Conv2d(channels, half, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(half, half, groups=half, bias=False, rngs=rngs)
        self.conv2 = Conv2d(half, half, 1, bias=False, rngs=rngs)
        self.conv3 = Conv2d(half, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h, w = x.shape[1:3]
        p = self.conv1(normalize(x))
        pooled = self.dwconv(adaptive_max_pool(p, 8))
        variance = spatial_var(p)
        gate = gelu(self.conv2(self.gate_input(pooled, variance)))
        return self.conv3(p * resize_nearest(gate, size=(h, w))) + x

    def gate_input(self, pooled: Array, variance: Array) -> Array:
        """Combine the maxima `(N, h / 8, w / 8, C / 2)` and the variance `(N, 1, 1, C / 2)`."""
        return pooled + variance


class GlobalChannelAttention(nnx.Module):
    """Channel attention (transposed attention) in which the value is also the key.

    In training it attends over the whole patch, in evaluation over windows of `window_size` pixels
    whose outputs are averaged where they overlap.
    """

    def __init__(self, channels: int, *, window_size: int = TLC_WINDOW_SIZE, rngs: nnx.Rngs):
        self.temperature = param(np.ones((1, 1)))
        self.project_in = Conv2d(channels, 4 * channels, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(2 * channels, 2 * channels, groups=2 * channels, bias=False, rngs=rngs)
        self.project_out = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.window_size, self.deterministic = window_size, False

    def __call__(self, x: Array) -> Array:
        qv, gate = jnp.split(self.project_in(x), 2, -1)
        window_size = self.window_size if self.deterministic else max(x.shape[1:3])
        z = apply_in_windows(self.attend, self.dwconv(qv) * gate, window_size)
        return self.project_out(z)

    def attend(self, z: Array) -> Array:
        """Channel attention over one set of pixels: `(N, pixels, 2·C) -> (N, pixels, C)`."""
        query, value = jnp.split(z, 2, -1)
        logits = matmul(normalize(query, 1).swapaxes(1, 2), normalize(value, 1))
        attn = softmax(logits * self.temperature[...][None], -1)
        return matmul(value, attn.swapaxes(1, 2))


class ChannelAttentionBlock(nnx.Module):
    """Global channel attention and a gated feed-forward, both pre-norm and residual."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.global_channel = GlobalChannelAttention(channels, rngs=rngs)
        self.ffn = GatedFeedForward(channels, 2 * channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.global_channel(self.norm1(x))
        return x + self.ffn(self.norm2(x))


# --- overlapping windows (TLC) ---


def apply_in_windows(fn: Callable[[Array], Array], x: Array, window_size: int) -> Array:
    """Apply `fn` to the pixels of every window and average the outputs where windows overlap.

    Args:
        fn: Maps `(N', pixels, C) -> (N', pixels, C')`, with the windows in the batch axis.
        x: `(N, h, w, C)`. Along an axis, a pixel lies in one window or in two.
        window_size: Side of the windows; at most one window where the image is not larger.

    Returns:
        `(N, h, w, C')`.
    """
    n, h, w, _ = x.shape
    if is_static(h) and is_static(w) and max(h, w) <= window_size:
        return fn(x.reshape(n, h * w, -1)).reshape(n, h, w, -1)
    axes = [AxisWindows(length, window_size) for length in (h, w)]
    for axis, windows in enumerate(axes, 1):
        x = jnp.take(x, windows.positions().ravel(), axis, mode="clip")
    (window_h, rows), (window_w, columns) = (
        (windows.window_size, windows.count) for windows in axes
    )
    patches = x.reshape(n, rows, window_h, columns, window_w, -1).swapaxes(2, 3)
    y = fn(patches.reshape(n * rows * columns, window_h * window_w, -1))
    y = y.reshape(n, rows, columns, window_h, window_w, -1).swapaxes(2, 3)
    y = y.reshape(n, rows * window_h, columns * window_w, -1)
    for axis, windows in enumerate(axes, 1):
        first, last = (
            jnp.take(y, windows.concatenated_index(i), axis, mode="clip")
            for i in windows.covering_windows()
        )
        y = (first + last) / 2
    return y


class AxisWindows:
    """Windows along one axis of `length` pixels: evenly spaced, the last one flush with the end.

    Sizes may be symbolic, so that one exported program serves every image size.
    """

    def __init__(self, length: Dim, window_size: int):
        self.length, self.window_size = length, min_dim(window_size, length)
        self.count = (length + self.window_size - 1) // self.window_size
        num_gaps = max_dim(1, self.count - 1)
        self.step = max_dim(1, (length - self.window_size + num_gaps - 1) // num_gaps)

    def starts(self, index: Array) -> Array:
        """Return the first pixel of the windows `index`."""
        return jnp.minimum(
            index * dim_as_array(self.step), dim_as_array(self.length - self.window_size)
        )

    def positions(self) -> Array:
        """Return the pixels of every window: int32 `(count, window_size)`."""
        return self.starts(arange(self.count))[:, None] + arange(self.window_size)[None]

    def covering_windows(self) -> tuple[Array, Array]:
        """Return the first and the last window that contains each pixel, each int32 `(length,)`."""
        index, last_window = arange(self.length), dim_as_array(self.count - 1)
        # the smallest start of a window that still contains the pixel
        min_start = jnp.maximum(index - dim_as_array(self.window_size - 1), 0)
        first = jnp.minimum(
            floor_div(min_start + dim_as_array(self.step - 1), self.step), last_window
        )
        last = jnp.minimum(floor_div(index, self.step), last_window)
        return first, jnp.where(
            index >= dim_as_array(self.length - self.window_size), last_window, last
        )

    def concatenated_index(self, window_index: Array) -> Array:
        """Return the index of each pixel of windows `window_index` when all windows are
        concatenated.
        """
        return (
            window_index * dim_as_array(self.window_size)
            + arange(self.length)
            - self.starts(window_index)
        )
