"""Window and grid partitions of feature maps, attention heads, relative positions and masks.

Feature maps are `(N, h, w, C)`, tokens `(N, windows, L, C)`. Windows, and the tokens of a window,
are in raster order. Sizes may be symbolic (`jax.export`), hence index arithmetic in arrays.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from esrjax.nn.masking import Dim, arange, dim_as_array, is_static

PositionIndex = NDArray[np.intp]


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


# --- window and grid partitions ----------------------------------------------------------------


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


# --- attention heads, relative positions, masks ------------------------------------------------


def split_heads(tokens: Array, num_heads: int) -> Array:
    """`(N, windows, L, C) -> (N, windows, heads, L, C / heads)`, heads of consecutive channels."""
    *batch_dims, length, c = tokens.shape
    return tokens.reshape(*batch_dims, length, num_heads, c // num_heads).swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """`(N, windows, heads, L, C / heads) -> (N, windows, L, C)`, the inverse of `split_heads`."""
    *batch_dims, num_heads, length, c = x.shape
    return x.swapaxes(-2, -3).reshape(*batch_dims, length, num_heads * c)


def relative_position_index(window_size: int) -> PositionIndex:
    """Return the row of the bias table for every query and key of a window.

    The table has `(2·window_size − 1)²` rows. Source: Swin (arXiv:2103.14030), section 3.2.

    Returns:
        `(window_size², window_size²)`, query by key.
    """
    row, column = np.divmod(np.arange(window_size**2), window_size)
    offsets = [axis[:, None] - axis[None] + window_size - 1 for axis in (row, column)]
    return offsets[0] * (2 * window_size - 1) + offsets[1]


def overlapping_position_index(window_size: int, overlap: int) -> PositionIndex:
    """Return the row of the bias table for every query and key of an overlapping window.

    The offset is from query to key as in HAT's released code, so many rows are negative and index
    the table from its end. Trained weights depend on this.

    Returns:
        `(window_size², (window_size + 2·overlap)²)`, query by key.
    """
    key_size = window_size + 2 * overlap
    query, key = (np.divmod(np.arange(n**2), n) for n in (window_size, key_size))
    offsets = [
        k[None] - q[:, None] + window_size - key_size + 1 for q, k in zip(query, key, strict=True)
    ]
    return offsets[0] * (window_size + key_size - 1) + offsets[1]


def shift_mask(height: Dim, width: Dim, window_size: int, shift_size: int) -> Array:
    """Return the attention mask of shifted windows: 0 for pairs that are adjacent, −100 for others.

    Cyclic shifting by `−shift_size` brings opposite edges of the image into one window; a pixel
    must not attend across them. Source: Swin (arXiv:2103.14030), section 3.2.

    Returns:
        float32 `(windows, window_size², window_size²)`, query by key.
    """

    def region_labels(n: Dim) -> Array:
        is_past = (arange(n) >= dim_as_array(n - edge) for edge in (window_size, shift_size))
        return functools.reduce(jnp.add, (mask.astype(jnp.int32) for mask in is_past))

    labels = 3 * region_labels(height)[:, None] + region_labels(width)[None]
    windows = window_partition(labels[None, :, :, None], window_size, window_size)[0, ..., 0]
    return jnp.where(windows[:, :, None] == windows[:, None], 0.0, -100.0)
