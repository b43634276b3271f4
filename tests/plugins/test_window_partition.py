"""Window and grid partitions: their pixels, their inverses, masks and padding."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks import window_attention as attention
from esrjax_plugins.blocks import window_partition as windows
from optional import torch

H, W = 12, 8  # of the image whose pixels are numbered


def numbered_image(h=H, w=W):
    return jnp.arange(h * w, dtype=jnp.float32).reshape(1, h, w, 1)


def coordinates(tokens, w=W):
    """Row and column of every token of a numbered image, each `(sets, L)`."""
    return np.divmod(np.asarray(tokens)[0, ..., 0].astype(int), w)


@pytest.mark.parametrize(
    "partition, reverse",
    [("window_partition", "window_reverse"), ("grid_partition", "grid_reverse")],
)
@pytest.mark.parametrize("h, w", [(4, 4), (3, 2)])
def test_reverse_inverts_partition(partition, reverse, h, w):
    x = jnp.asarray(np.random.default_rng(0).random((2, H, W, 3)))
    tokens = getattr(windows, partition)(x, h, w)
    assert tokens.shape == (2, H * W // (h * w), h * w, 3)
    np.testing.assert_array_equal(getattr(windows, reverse)(tokens, h, w, H, W), x)


def test_windows_have_neighbouring_pixels_in_raster_order():
    row, column = coordinates(windows.window_partition(numbered_image(), 3, 4))
    window, pixel = np.indices(row.shape)
    np.testing.assert_array_equal(row, 3 * (window // (W // 4)) + pixel // 4)
    np.testing.assert_array_equal(column, 4 * (window % (W // 4)) + pixel % 4)


def test_grids_have_evenly_spaced_pixels():
    row, column = coordinates(windows.grid_partition(numbered_image(), 3, 4))
    grid, pixel = np.indices(row.shape)
    np.testing.assert_array_equal(row, grid // (W // 4) + (H // 3) * (pixel // 4))
    np.testing.assert_array_equal(column, grid % (W // 4) + (W // 4) * (pixel % 4))


def test_overlapping_windows_equal_pytorchs_unfold():
    x = np.random.default_rng(0).random((2, 8, 12, 3))
    unfolded = torch.nn.functional.unfold(
        torch.tensor(x.transpose(0, 3, 1, 2)), kernel_size=8, stride=4, padding=2
    )
    expected = unfolded.reshape(2, 3, 64, 6).permute(0, 3, 2, 1)
    np.testing.assert_array_equal(
        windows.overlapping_windows(jnp.asarray(x), 4, 2), expected.float()
    )


def test_heads_have_consecutive_channels():
    tokens = jnp.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    split = attention.split_heads(tokens, 2)
    np.testing.assert_array_equal(split[1, 2, 1, 3], tokens[1, 2, 3, 3:])
    np.testing.assert_array_equal(attention.merge_heads(split), tokens)


def test_equal_offsets_share_a_bias_and_others_do_not():
    rows, columns = np.divmod(np.arange(9), 3)
    offsets = np.stack([rows[:, None] - rows, columns[:, None] - columns], -1)
    index = attention.relative_position_index(3)
    assert (index.min(), index.max()) == (0, 24)
    assert index[0, 8] == 0  # the offset of query 0 and the last key is the smallest
    is_equal = (offsets[:, :, None, None] == offsets).all(-1)
    np.testing.assert_array_equal(index[:, :, None, None] == index, is_equal)


@pytest.mark.parametrize("h, w", [(8, 12), (4, 4)])
def test_mask_separates_pixels_that_only_the_shift_made_adjacent(h, w):
    window_size, shift_size = 4, 2
    rolled = jnp.roll(numbered_image(h, w), (-shift_size, -shift_size), (1, 2))
    row, column = coordinates(windows.window_partition(rolled, window_size, window_size), w)
    region = 2 * (row < shift_size) + (column < shift_size)
    is_adjacent = region[:, :, None] == region[:, None]
    np.testing.assert_array_equal(
        attention.shift_mask(h, w, window_size, shift_size), np.where(is_adjacent, 0, -100)
    )


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
@pytest.mark.parametrize("h, w", [(5, 8), (3, 2)])
def test_reflection_is_repeated_if_padding_exceeds_the_image(mode, h, w):
    x = numbered_image(h, w)
    padded = windows.pad_to_multiple(x, 8, mode)
    period = [2 * n - 2 if mode == "reflect" else 2 * n for n in (h, w)]
    index = [np.arange(8) % p for p in period]
    last = [p - (mode == "symmetric") for p in period]
    row, column = (np.minimum(i, end - i) for i, end in zip(index, last, strict=True))
    np.testing.assert_array_equal(padded[0, :, :, 0], x[0, :, :, 0][np.ix_(row, column)])
