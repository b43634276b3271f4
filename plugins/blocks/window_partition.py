"""Window and grid partitions of feature maps, their inverses, and padding to whole windows.

Feature maps are `(N, h, w, C)`, tokens `(N, windows, L, C)`. Windows, and the tokens of a window,
are in raster order. Sizes may be symbolic (`jax.export`), hence index arithmetic in arrays.
"""

import jax.numpy as jnp
from jax import Array, lax

from esrjax.nn.masking import Dim, arange, dim_as_array, is_static


def pad_to_multiple(x: Array, multiple: int, mode: str = "reflect") -> Array:
    """Reflect-pad `x (N, h, w, C)` at the bottom and right to multiples of `multiple` pixels.

    Args:
        x: Feature map or image `(N, h, w, C)`.
        multiple: Usually the window size.
        mode: "reflect" does not repeat the last row and column, "symmetric" does (as `numpy.pad`).

    Returns:
        `(N, h', w', C)`. If the padding exceeds the image, the reflection is repeated.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        padded_size = (size + multiple - 1) // multiple * multiple
        if not (is_static(size) and padded_size == size):
            x = jnp.take(
                x, _reflect_index(size, padded_size, int(mode == "symmetric")), axis, mode="clip"
            )
    return x


def _reflect_index(size: Dim, padded_size: Dim, repeat_edge: int) -> Array:
    """Return the source index of each of `padded_size` pixels, int32 `(padded_size,)`.

    `repeat_edge` is 1 to repeat the last pixel ("symmetric") and 0 not to ("reflect").
    """
    index, last = arange(padded_size), dim_as_array(size - 1)
    mirrored = 2 * last + repeat_edge  # i and mirrored - i show the same pixel
    index = lax.rem(index, mirrored + repeat_edge)  # of one period: forth and back
    return jnp.minimum(index, mirrored - index)


def window_partition(x: Array, window_h: int, window_w: int) -> Array:
    """Cut `x (N, h, w, C)` into windows of neighbouring pixels.

    `h` and `w` must be multiples of `window_h` and `window_w`. Source: Swin (arXiv:2103.14030).

    Returns:
        `(N, windows, window_h·window_w, C)`.
    """
    n, height, width, c = x.shape
    x = x.reshape(n, height // window_h, window_h, width // window_w, window_w, c).transpose(
        0, 1, 3, 2, 4, 5
    )
    return x.reshape(n, -1, window_h * window_w, c)


def window_reverse(tokens: Array, window_h: int, window_w: int, height: int, width: int) -> Array:
    """Reassemble the `(N, height, width, C)` feature map that `window_partition` cut."""
    n, c = tokens.shape[0], tokens.shape[-1]
    x = tokens.reshape(n, height // window_h, width // window_w, window_h, window_w, c).transpose(
        0, 1, 3, 2, 4, 5
    )
    return x.reshape(n, height, width, c)


def grid_partition(x: Array, grid_h: int, grid_w: int) -> Array:
    """Cut `x (N, h, w, C)` into grids of evenly spaced pixels.

    The pixels of a grid are `h / grid_h` rows and `w / grid_w` columns apart, so each grid spans
    the image. Source: grid attention of MaxViT (arXiv:2204.01697).

    Returns:
        `(N, grids, grid_h·grid_w, C)`.
    """
    n, height, width, c = x.shape
    x = x.reshape(n, grid_h, height // grid_h, grid_w, width // grid_w, c).transpose(
        0, 2, 4, 1, 3, 5
    )
    return x.reshape(n, -1, grid_h * grid_w, c)


def grid_reverse(tokens: Array, grid_h: int, grid_w: int, height: int, width: int) -> Array:
    """Reassemble the `(N, height, width, C)` feature map that `grid_partition` cut."""
    n, c = tokens.shape[0], tokens.shape[-1]
    x = tokens.reshape(n, height // grid_h, width // grid_w, grid_h, grid_w, c).transpose(
        0, 3, 1, 4, 2, 5
    )
    return x.reshape(n, height, width, c)


def overlapping_windows(x: Array, window_size: int, overlap: int) -> Array:
    """Cut `x (N, h, w, C)` into windows that include `overlap` more pixels on every side.

    Pixels outside the image are zero. This is `torch.nn.Unfold` with a kernel of `window_size +
    2·overlap`, a stride of `window_size` and a padding of `overlap`.

    Returns:
        `(N, windows, (window_size + 2·overlap)², C)`.
    """
    _, height, width, _ = x.shape
    key_size = window_size + 2 * overlap
    x = jnp.pad(x, ((0, 0), (overlap, overlap), (overlap, overlap), (0, 0)))
    for axis, count in ((1, height // window_size), (2, width // window_size)):
        index = (window_size * arange(count)[:, None] + arange(key_size)[None]).ravel()
        x = jnp.take(x, index, axis, mode="clip")
    return window_partition(x, key_size, key_size)
