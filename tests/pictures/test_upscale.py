"""Tiles, turns and canvases change nothing but the time and the memory that a picture takes."""

import numpy as np
import pytest

from esrjax.network import canvas as masks
from esrjax.pictures import upscale
from esrjax.pictures.metrics import quantise
from esrjax.pictures.upscale import (
    Canvas,
    canvas,
    canvases,
    fits,
    fused,
    mirrored,
    tiled,
    weighted,
    whole,
    windows,
)
from esrjax.pictures.upscale.border import larger
from esrjax.pictures.upscale.windows import passes

REACH, SCALE, WHITE = 2, 2, 2.0


def noise(h, w):
    return np.random.default_rng(100 * h + w).integers(0, 256, (h, w, 3), np.uint8)


class Blur:
    """A stand-in for a network that knows its reach: a sum over 5x5, zero-padded, twice as large.

    Without a mask every pixel exists. It counts its calls by the shape it was called with.
    """

    def __init__(self):
        self.shapes = []

    def __call__(self, lr, mask=None):
        self.shapes.append(lr.shape[1:3])
        lr = np.asarray(lr if mask is None else lr * mask[None, :, :, None])
        padded = np.pad(lr, ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)))
        h, w = lr.shape[1:3]
        total = sum(
            padded[:, i : i + h, j : j + w] * (1 + i + 5 * j) for i in range(5) for j in range(5)
        )
        return total.repeat(SCALE, 1).repeat(SCALE, 2)


SIZES = [(5, 7), (1, 1), (12, 9), (12, 31), (40, 9), (23, 40), (41, 50)]


@pytest.mark.parametrize("tile", [(12, 9), (5, 5), (16, 40)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_are_the_whole_picture(size, tile):
    net, lr = Blur(), noise(*size)
    found = tiled(net, Canvas(tile, REACH), WHITE, SCALE)(lr)
    assert (found.shape, found.dtype) == ((SCALE * size[0], SCALE * size[1], 3), np.float32)
    assert set(net.shapes) == {tile}
    wanted = whole(Blur(), WHITE)(lr)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=0)


def test_a_reach_too_small_would_be_seen():
    lr = noise(23, 40)
    found = tiled(Blur(), Canvas((12, 9), REACH - 1), WHITE, SCALE)(lr)
    assert np.abs(found - whole(Blur(), WHITE)(lr)).max() > 0.01


def test_every_pixel_is_done_by_one_tile():
    net = Blur()
    tiled(net, Canvas((12, 12), REACH), WHITE, SCALE)(noise(12, 28))
    assert len(net.shapes) == 3  # right about 10 + 8 + 10
    net.shapes.clear()
    tiled(net, Canvas((12, 12), REACH), WHITE, SCALE)(noise(12, 12))
    assert len(net.shapes) == 1


def test_white_is_the_networks_outside_and_one_inside():
    seen = []
    white = np.full((1, 1, 3), 255, np.uint8)
    found = whole(lambda lr: seen.append(lr) or lr, WHITE)(white)
    assert (seen[0].max(), seen[0].dtype, found.max()) == (WHITE, np.float32, 1.0)


def test_one_canvas_for_wide_pictures_and_one_for_tall():
    sizes = [(5, 7), (6, 6), (3, 90), (40, 20), (39, 38)]
    found = canvases(sizes, 64)
    assert set(found) == set(sizes)
    assert {found[size] for size in [(5, 7), (6, 6), (3, 90)]} == {(6, 64)}
    assert {found[size] for size in [(40, 20), (39, 38)]} == {(40, 38)}
    assert canvases([], 64) == {}


def test_a_canvas_turns_with_its_picture_and_is_widened_only_where_tiles_would_not_do():
    assert fits(noise(9, 4), (5, 9)) and not fits(noise(9, 6), (5, 9))
    assert canvas(noise(9, 4), (5, 9), reach=20) == Canvas((9, 5), 20)
    assert canvas(noise(9, 70), (9, 50), reach=20) == Canvas((9, 50), 20)
    assert canvas(noise(9, 70), (9, 40), reach=20) == Canvas((9, 80), 20)
    assert canvas(noise(70, 70), (40, 50), reach=20) == Canvas((80, 50), 20)


def test_self_ensemble_is_the_mean_of_eight():
    one = whole(Blur(), WHITE)
    lr = noise(6, 9)
    views = []
    for turns in range(4):
        turned = np.rot90(lr, turns)
        views.append(np.rot90(one(turned), -turns))
        views.append(np.rot90(one(turned[:, ::-1])[:, ::-1], -turns))
    found = upscale.self_ensemble(one)(lr)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(views, 0, np.float64), rtol=1e-6)
    assert np.abs(views[0] - found).max() > 0.01
    assert len({view.tobytes() for view in views}) == 8


# --- windows and mirrors -----------------------------------------------------------------------


def seams(side, count):
    """Where windows meet, in LR pixels; and where the picture ends, if it was filled up."""
    inner = -(-side // count)
    return [inner * i for i in range(1, count)] + [side] * (inner * count > side)


@pytest.mark.parametrize("size", [(41, 50), (40, 57), (63, 64)], ids=str)
def test_windows_are_the_whole_picture_away_from_seams(size):
    lr, wanted = noise(*size), whole(Blur(), WHITE)(noise(*size))
    found = windows(whole(Blur(), WHITE), {16: 1.0}, SCALE)(lr)
    far = np.ones(size, bool)
    for axis, side in enumerate(size):
        for seam in seams(side, side // 16 + 1):
            near = slice(max(0, seam - REACH), seam + REACH)
            far[(slice(None),) * axis + (near,)] = False
    apart = np.abs(found - wanted).max(-1)[::SCALE, ::SCALE]
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    assert 0.3 < far.mean() < 1 and apart[far].max() <= 1e-4 < apart[~far].max()


def test_windows_that_see_far_enough_around_themselves_have_no_seams():
    lr = noise(40, 60)  # two and three windows of 20 pixels, of which a tenth is the reach
    found = windows(whole(Blur(), WHITE), {30: 1.0, 21: 2.0}, SCALE)(lr)
    np.testing.assert_allclose(found, whole(Blur(), WHITE)(lr), rtol=1e-5, atol=0)


def test_ways_to_cut_are_weighted_and_run_once_where_they_are_alike():
    net, lr = Blur(), noise(9, 20)
    found = windows(whole(net, WHITE), {10: 1.0, 30: 2.0, 40: 5.0}, SCALE)(lr)
    assert net.shapes == [(9, 7), (9, 7), (9, 7), (9, 20)]
    assert passes((9, 20), {10: 1.0, 30: 2.0, 40: 5.0}) == {(9, 7): 3, (9, 20): 1}
    cut, once = (windows(whole(Blur(), WHITE), {side: 3.0}, SCALE)(lr) for side in (10, 30))
    np.testing.assert_allclose(found, (cut + 7 * once) / 8, rtol=1e-6)


def test_windows_lie_as_team_bbox_cut_them():
    assert passes((101, 124), {100: 1.0}) == {(56, 68): 4}
    assert passes((52, 205), {100: 1.0}) == {(52, 75): 2, (52, 81): 1}
    assert passes((52, 205), {200: 1.0, 300: 1.2}) == {(52, 113): 2, (52, 205): 1}


def test_a_mirror_always_adds_a_pixel_and_repeats_the_last_one():
    seen = []
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    enlarge = lambda lr: seen.append(lr) or lr.repeat(2, 0).repeat(2, 1).astype(np.float32)  # noqa: E731
    found = mirrored(enlarge, 3, 2)(pixels)
    np.testing.assert_array_equal(found, pixels.repeat(2, 0).repeat(2, 1))
    (grown,) = seen
    assert grown.shape == (3, 6, 3) and larger((16, 15), 16) == (32, 16)
    np.testing.assert_array_equal(grown[2], grown[1])
    np.testing.assert_array_equal(grown[:, 3:], grown[:, 2::-1])


def test_a_fusion_is_a_weighted_mean():
    half, full = (
        lambda lr, level=level: np.full((2, 2, 3), level, np.float32) for level in (0.5, 1)
    )
    assert np.all(fused([half, full], weighted([1, 3]))(noise(1, 1)) == 0.875)
    assert fused([half], weighted([7.0]))(noise(1, 1)).dtype == np.float32


def test_8_bits_are_clipped_and_rounded_half_to_even():
    levels = np.float32([-1, 0.5 / 255, 1.5 / 255, 2])
    assert list(upscale.to_8_bits(lambda lr: levels)(noise(1, 1))) == [0, 0, 2, 255]
    assert list(quantise(levels, 1.0)) == [0, 0, 2, 255]


def test_masks_are_a_context_that_ends():
    with masks.picture(np.ones((2, 2))):
        pass
    x = np.ones((1, 2, 2, 3))
    assert masks.zero_outside(x) is x
