"""Cutting pictures into windows: what lies together, what is told apart, and the way back."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from esrjax_plugins.parts import windows

H, W = 12, 8  # of the picture whose pixels are numbered


def numbered(h=H, w=W):
    return jnp.arange(h * w, dtype=jnp.float32).reshape(1, h, w, 1)


def places(tokens, w=W):
    """Row and column of every token of a numbered picture, `(sets, L)` each."""
    return np.divmod(np.asarray(tokens)[0, ..., 0].astype(int), w)


@pytest.mark.parametrize("cut, back", [("tiles", "from_tiles"), ("combs", "from_combs")])
@pytest.mark.parametrize("h, w", [(4, 4), (3, 2)])
def test_what_is_cut_is_put_together(cut, back, h, w):
    x = jnp.asarray(np.random.default_rng(0).random((2, H, W, 3)))
    tokens = getattr(windows, cut)(x, h, w)
    assert tokens.shape == (2, H * W // (h * w), h * w, 3)
    np.testing.assert_array_equal(getattr(windows, back)(tokens, h, w, H, W), x)


def test_a_tile_is_of_neighbours_and_tiles_run_row_by_row():
    row, column = places(windows.tiles(numbered(), 3, 4))
    tile, pixel = np.indices(row.shape)
    np.testing.assert_array_equal(row, 3 * (tile // (W // 4)) + pixel // 4)
    np.testing.assert_array_equal(column, 4 * (tile % (W // 4)) + pixel % 4)


def test_a_comb_is_of_pixels_as_far_apart_as_can_be():
    row, column = places(windows.combs(numbered(), 3, 4))
    comb, pixel = np.indices(row.shape)
    np.testing.assert_array_equal(row, comb // (W // 4) + (H // 3) * (pixel // 4))
    np.testing.assert_array_equal(column, comb % (W // 4) + (W // 4) * (pixel % 4))


def test_surroundings_are_pytorchs_unfolded_windows():
    x = np.random.default_rng(0).random((2, 8, 12, 3))
    cut = torch.nn.functional.unfold(
        torch.tensor(x.transpose(0, 3, 1, 2)), kernel_size=8, stride=4, padding=2
    )
    theirs = cut.reshape(2, 3, 64, 6).permute(0, 3, 2, 1)
    np.testing.assert_array_equal(windows.surroundings(jnp.asarray(x), 4, 2), theirs.float())


def test_heads_are_of_neighbouring_channels():
    tokens = jnp.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    cut = windows.heads(tokens, 2)
    np.testing.assert_array_equal(cut[1, 2, 1, 3], tokens[1, 2, 3, 3:])
    np.testing.assert_array_equal(windows.from_heads(cut), tokens)


def test_equal_distances_share_a_bias_and_others_do_not():
    rows, columns = np.divmod(np.arange(9), 3)
    far = np.stack([rows[:, None] - rows, columns[:, None] - columns], -1)
    positions = windows.relative_positions(3)
    assert (positions.min(), positions.max()) == (0, 24)
    assert positions[0, 8] == 0  # the first query sees the last key above all rows
    same = (far[:, :, None, None] == far).all(-1)
    np.testing.assert_array_equal(positions[:, :, None, None] == positions, same)


@pytest.mark.parametrize("h, w", [(8, 12), (4, 4)])
def test_the_mask_parts_what_only_rolling_joined(h, w):
    side, shift = 4, 2
    rolled = jnp.roll(numbered(h, w), (-shift, -shift), (1, 2))
    row, column = places(windows.tiles(rolled, side, side), w)
    wrapped = 2 * (row < shift) + (column < shift)
    together = wrapped[:, :, None] == wrapped[:, None]
    np.testing.assert_array_equal(
        windows.shift_mask(h, w, side, shift), np.where(together, 0, -100)
    )


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
@pytest.mark.parametrize("h, w", [(5, 8), (3, 2)])
def test_a_picture_is_mirrored_as_often_as_it_takes(mode, h, w):
    x = numbered(h, w)
    filled = windows.fill(x, 8, mode)
    period = [2 * n - 2 if mode == "reflect" else 2 * n for n in (h, w)]
    where = [np.arange(8) % p for p in period]
    last = [p - (mode == "symmetric") for p in period]
    row, column = (np.minimum(i, end - i) for i, end in zip(where, last, strict=True))
    np.testing.assert_array_equal(filled[0, :, :, 0], x[0, :, :, 0][np.ix_(row, column)])
