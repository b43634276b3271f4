"""Transparent images: colors without a fringe, and an alpha channel that is exact where it is flat."""

import numpy as np

from esrjax.data.image_io import composite_over_white
from esrjax.evaluation.transparency import (
    FILL_RADIUS,
    fill_transparent,
    upscale_alpha,
    upscale_transparent,
)


def nearest(image):
    return image.repeat(2, axis=0).repeat(2, axis=1)


def dim(image):
    """A network that is wrong by some levels everywhere, and enlarges by 2."""
    return (nearest(image) // 2 + 60).astype(np.uint8)


def half_plane(h=8, w=10):
    """Opaque on the left, one column of 100, transparent on the right."""
    alpha = np.zeros((h, w), np.uint8)
    alpha[:, :4], alpha[:, 4] = 255, 100
    return alpha


def test_alpha_is_exact_where_it_is_flat_up_to_the_borders():
    upscaled = upscale_alpha(half_plane(), dim)
    assert upscaled.shape == (16, 20)
    assert (upscaled[:, :6] == 255).all() and (upscaled[:, 12:] == 0).all()
    assert (upscaled[:, 8:10] == 110).all()


def test_hidden_colors_do_not_matter():
    alpha, rng = half_plane(), np.random.default_rng(0)
    colors = np.full((8, 10, 3), (200, 30, 60), np.uint8)
    for hidden in (0, 255, rng.integers(0, 256, (8, 10, 3), np.uint8)):
        other = np.where(alpha[..., None] > 0, colors, hidden).astype(np.uint8)
        np.testing.assert_array_equal(fill_transparent(other, alpha), colors)
        over_white = composite_over_white(other, alpha[..., None], 255).astype(np.uint8)
        pixels, upscaled_alpha = upscale_transparent(over_white, alpha, nearest)
        np.testing.assert_array_equal(upscaled_alpha, nearest(alpha))
        np.testing.assert_array_equal(pixels, nearest(over_white))


def test_fill_takes_the_nearest_colors_and_leaves_visible_ones():
    alpha = np.zeros((3, 2 * FILL_RADIUS + 9), np.uint8)
    alpha[:, 0], alpha[:, -1] = 1, 255
    colors = np.zeros((*alpha.shape, 3), np.uint8)
    colors[:, 0], colors[:, -1] = 40, 90
    filled = fill_transparent(colors, alpha)[1, :, 0]
    assert (filled[: FILL_RADIUS + 1] == 40).all() and (filled[-FILL_RADIUS - 1 :] == 90).all()
    assert (filled[FILL_RADIUS + 1 : -FILL_RADIUS - 1] == 65).all()


def test_wholly_transparent_image_stays_so():
    alpha = np.zeros((2, 3), np.uint8)
    pixels, upscaled = upscale_transparent(np.full((2, 3, 3), 255, np.uint8), alpha, dim)
    assert (upscaled == 0).all() and (pixels == 255).all()
