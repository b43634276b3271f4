"""Inference strategies: tiles equal a single pass; self-ensemble, windows, padding, blending."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from esrjax import registry
from esrjax.bench.timing import count_compilations
from esrjax.data.image_io import read_image
from esrjax.errors import InvalidArgument
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import (
    Tiling,
    count_windows,
    fits_in_tile,
    make_tiling,
    pad_to_multiple,
    padded_size,
    single_pass,
    tile_sizes,
    tiled_upscaler,
    upscale_bands,
    windowed_upscaler,
)
from esrjax.evaluation.upscale_files import UpscalePlan, plan_upscale_jobs, upscale_file
from esrjax.inference import Model
from esrjax.method import Method
from esrjax.nn import compilation, masking
from esrjax.nn.checkpoint_io import Checkpoint
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d
from esrjax.nn.reparam import deploy

RADIUS, SCALE, DATA_RANGE = 2, 2, 2.0  # RADIUS: of the receptive field of `Blur`, LR pixels


def noise(h, w):
    return np.random.default_rng(100 * h + w).integers(0, 256, (h, w, 3), np.uint8)


class Blur:
    """A network of known receptive field: a zero-padded 5x5 convolution, upscaled by 2.

    Without a mask all pixels are valid. It records the shape of every call.
    """

    def __init__(self):
        self.shapes = []

    def __call__(self, lr, mask=None):
        self.shapes.append(lr.shape[1:3])
        lr = np.asarray(lr if mask is None else lr * mask[None, :, :, None])
        padded = np.pad(lr, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)))
        h, w = lr.shape[1:3]
        total = sum(
            padded[:, i : i + h, j : j + w] * (1 + i + 5 * j) for i in range(5) for j in range(5)
        )
        return total.repeat(SCALE, 1).repeat(SCALE, 2)


SIZES = [(5, 7), (1, 1), (12, 9), (12, 31), (40, 9), (23, 40), (41, 50)]


@pytest.mark.parametrize("tile_size", [(12, 9), (5, 5), (16, 40)], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_equal_a_single_pass(size, tile_size):
    net, lr = Blur(), noise(*size)
    sr = tiled_upscaler(net, Tiling(tile_size, RADIUS), DATA_RANGE, SCALE)(lr)
    assert (sr.shape, sr.dtype) == ((SCALE * size[0], SCALE * size[1], 3), np.float32)
    assert set(net.shapes) == {tile_size}
    expected = single_pass(Blur(), DATA_RANGE)(lr)
    np.testing.assert_allclose(sr, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [*SIZES, (20, 9), (28, 12), (29, 30)], ids=str)
def test_bands_are_the_whole_image(size):
    lr = noise(*size)
    net = lambda x, mask=None: Blur()(x, mask) / 400  # noqa: E731 # mostly within the range
    tiled = tiled_upscaler(net, Tiling((12, 9), RADIUS), DATA_RANGE, SCALE)
    whole = upscale.uint8_upscaler(tiled)(lr)
    bands = list(upscale_bands(upscale.checked_upscaler(tiled), lr))
    inner = 12 - 2 * RADIUS  # LR rows of a tile's core
    num_bands = 1 + max(0, -(-(size[0] - 12) // inner))
    assert len(bands) == num_bands and all(band.dtype == np.uint8 for band in bands)
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    assert 0 < whole.mean() < 255


def test_an_upscaler_without_tiles_has_bands_too():
    lr = noise(200, 3)
    bands = list(upscale_bands(single_pass(Blur(), 1e4), lr))
    assert [len(band) for band in bands] == [256, 144]
    expected = to_uint8(single_pass(Blur(), 1e4)(lr), 1.0)
    np.testing.assert_array_equal(np.concatenate(bands), expected)


def test_too_small_a_radius_changes_the_result():
    lr = noise(23, 40)
    sr = tiled_upscaler(Blur(), Tiling((12, 9), RADIUS - 1), DATA_RANGE, SCALE)(lr)
    assert np.abs(sr - single_pass(Blur(), DATA_RANGE)(lr)).max() > 0.01


def test_number_of_tiles_is_minimal():
    net = Blur()
    tiled_upscaler(net, Tiling((12, 12), RADIUS), DATA_RANGE, SCALE)(noise(12, 28))
    assert len(net.shapes) == 3  # cores of 10 + 8 + 10
    net.shapes.clear()
    tiled_upscaler(net, Tiling((12, 12), RADIUS), DATA_RANGE, SCALE)(noise(12, 12))
    assert len(net.shapes) == 1


def test_tiles_without_a_core_are_reported():
    upscaler = tiled_upscaler(Blur(), Tiling((2 * RADIUS, 12), RADIUS), DATA_RANGE, SCALE)
    assert upscaler(noise(2 * RADIUS, 20)).shape == (4 * RADIUS, 40, 3)
    with pytest.raises(InvalidArgument, match=f"{2 * RADIUS} pixels") as caught:
        upscaler(noise(20, 20))
    assert str(2 * RADIUS) in caught.value.rule and caught.value.remedy


def test_white_is_data_range_for_the_network_and_1_in_the_output():
    inputs = []
    white = np.full((1, 1, 3), 255, np.uint8)
    sr = single_pass(lambda lr: inputs.append(lr) or lr, DATA_RANGE)(white)
    assert (inputs[0].max(), inputs[0].dtype, sr.max()) == (DATA_RANGE, np.float32, 1.0)


def test_landscape_and_portrait_images_share_one_tile_size_each():
    sizes = [(5, 7), (6, 6), (3, 90), (40, 20), (39, 38)]
    tile_size_of = tile_sizes(sizes, 64)
    assert set(tile_size_of) == set(sizes)
    assert {tile_size_of[size] for size in [(5, 7), (6, 6), (3, 90)]} == {(6, 64)}
    assert {tile_size_of[size] for size in [(40, 20), (39, 38)]} == {(40, 38)}
    assert tile_sizes([], 64) == {}


def test_tiles_have_the_orientation_of_the_image_and_are_enlarged_only_if_necessary():
    assert fits_in_tile(noise(9, 4), (5, 9)) and not fits_in_tile(noise(9, 6), (5, 9))
    assert make_tiling(noise(9, 4), (5, 9), receptive_field_radius=20) == Tiling((9, 5), 20)
    assert make_tiling(noise(9, 70), (9, 50), receptive_field_radius=20) == Tiling((9, 50), 20)
    assert make_tiling(noise(9, 70), (9, 40), receptive_field_radius=20) == Tiling((9, 80), 20)
    assert make_tiling(noise(70, 70), (40, 50), receptive_field_radius=20) == Tiling((80, 50), 20)


def test_self_ensemble_is_the_mean_of_eight():
    upscaler = single_pass(Blur(), DATA_RANGE)
    lr = noise(6, 9)
    views = []
    for k in range(4):
        rotated = np.rot90(lr, k)
        views.append(np.rot90(upscaler(rotated), -k))
        views.append(np.rot90(upscaler(rotated[:, ::-1])[:, ::-1], -k))
    sr = upscale.self_ensemble_upscaler(upscaler)(lr)
    assert sr.dtype == np.float32
    np.testing.assert_allclose(sr, np.mean(views, 0, np.float64), rtol=1e-6)
    assert np.abs(views[0] - sr).max() > 0.01
    assert len({view.tobytes() for view in views}) == 8


# --- windows and padding -----------------------------------------------------------------------


def seams(side, count):
    """Return where windows meet, and the edge of the image if it is padded; LR pixels."""
    core = -(-side // count)
    return [core * i for i in range(1, count)] + [side] * (core * count > side)


@pytest.mark.parametrize("size", [(41, 50), (40, 57), (63, 64)], ids=str)
def test_windows_equal_a_single_pass_away_from_seams(size):
    lr, expected = noise(*size), single_pass(Blur(), DATA_RANGE)(noise(*size))
    sr = windowed_upscaler(single_pass(Blur(), DATA_RANGE), {16: 1.0}, SCALE)(lr)
    is_far = np.ones(size, bool)
    for axis, side in enumerate(size):
        for seam in seams(side, side // 16 + 1):
            close = slice(max(0, seam - RADIUS), seam + RADIUS)
            is_far[(slice(None),) * axis + (close,)] = False
    diff = np.abs(sr - expected).max(-1)[::SCALE, ::SCALE]
    assert (sr.shape, sr.dtype) == (expected.shape, np.float32)
    assert 0.3 < is_far.mean() < 1 and diff[is_far].max() <= 1e-4 < diff[~is_far].max()


def test_windows_whose_margin_covers_the_receptive_field_have_no_seams():
    lr = noise(40, 60)  # two and three windows of 20 pixels, a tenth of which is the radius
    sr = windowed_upscaler(single_pass(Blur(), DATA_RANGE), {30: 1.0, 21: 2.0}, SCALE)(lr)
    np.testing.assert_allclose(sr, single_pass(Blur(), DATA_RANGE)(lr), rtol=1e-5, atol=0)


def test_window_sizes_are_weighted_and_equal_grids_run_once():
    net, lr = Blur(), noise(9, 20)
    sr = windowed_upscaler(single_pass(net, DATA_RANGE), {10: 1.0, 30: 2.0, 40: 5.0}, SCALE)(lr)
    assert net.shapes == [(9, 7), (9, 7), (9, 7), (9, 20)]
    assert count_windows((9, 20), {10: 1.0, 30: 2.0, 40: 5.0}) == {(9, 7): 3, (9, 20): 1}
    three_windows, one_window = (
        windowed_upscaler(single_pass(Blur(), DATA_RANGE), {side: 3.0}, SCALE)(lr)
        for side in (10, 30)
    )
    np.testing.assert_allclose(sr, (three_windows + 7 * one_window) / 8, rtol=1e-6)


def test_windows_are_those_of_team_bbox():
    assert count_windows((101, 124), {100: 1.0}) == {(56, 68): 4}
    assert count_windows((52, 205), {100: 1.0}) == {(52, 75): 2, (52, 81): 1}
    assert count_windows((52, 205), {200: 1.0, 300: 1.2}) == {(52, 113): 2, (52, 205): 1}


def test_padding_is_symmetric_and_at_least_one_pixel():
    inputs = []
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    nearest = lambda lr: inputs.append(lr) or lr.repeat(2, 0).repeat(2, 1).astype(np.float32)  # noqa: E731
    sr = pad_to_multiple(nearest, 3, 2)(pixels)
    np.testing.assert_array_equal(sr, pixels.repeat(2, 0).repeat(2, 1))
    (padded,) = inputs
    assert padded.shape == (3, 6, 3) and padded_size((16, 15), 16) == (32, 16)
    np.testing.assert_array_equal(padded[2], padded[1])
    np.testing.assert_array_equal(padded[:, 3:], padded[:, 2::-1])


def test_uint8_output_is_clipped_and_rounded_half_to_even():
    levels = np.float32([-1, 0.5 / 255, 1.5 / 255, 2])
    assert list(upscale.uint8_upscaler(lambda lr: levels)(noise(1, 1))) == [0, 0, 2, 255]
    assert list(to_uint8(levels, 1.0)) == [0, 0, 2, 255]


def test_mask_is_not_applied_after_its_context():
    with masking.valid_region(np.ones((2, 2))):
        pass
    x = np.ones((1, 2, 2, 3))
    assert masking.mask_invalid(x) is x


# --- Jobs that upscale files: output paths, tile sizes, and the number of compilations ---


JOB_SIZES = [
    (5 + 2 * k % 37, 7 + 5 * k % 41) for k in range(100)
]  # from 5x7 on, landscape and portrait


def write_noise(path: Path, h: int, w: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(h, w)).save(path, **options)
    return path


@pytest.fixture
def compilations():
    """The compilations from now on."""
    compilation.compiler_options()  # compiles once itself, to ask XLA for its options
    with count_compilations() as counted:
        yield counted


class Small(nnx.Module):
    """Two convolutions, one of them dilated: compiles fast enough for many sizes."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.head = Conv2d(3, 4, dilation=2, rngs=rngs)
        self.tail = Conv2d(4, 48, rngs=rngs)

    def __call__(self, x):
        return pixel_shuffle(self.tail(jax.nn.relu(self.head(x))), 4)


def random_model(name: str, method: Method, **hparams) -> Model:
    net = deploy(method.build(**hparams))
    checkpoint = Checkpoint(path=Path(), sha256="", state_dict={})
    return Model(name=name, method=method, net=net, checkpoint=checkpoint)


@pytest.fixture
def small() -> Model:
    return random_model("small", Method(network=Small, team="us", paper="none", license="MIT"))


@pytest.fixture(scope="module")
def spanv2() -> Model:
    """SPANV2 of 4 channels, with random weights."""
    return random_model("spanv2", registry.get_method("spanv2"), channels=4)


def upscale_files(model: Model, plan: UpscalePlan, **options) -> None:
    upscaler_of = functools.cache(lambda tile_size: model.upscaler(tile_size, **options))
    for job in plan.jobs:
        upscale_file(job, upscaler_of(job.tile_size))


# --- compilations ------------------------------------------------------------------------------


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * max(1, np.ptp(expected)))


def test_hundred_image_sizes_compile_twice_and_equal_single_passes(tmp_path, small, compilations):
    assert len(set(JOB_SIZES)) == 100
    for h, w in JOB_SIZES:
        write_noise(tmp_path / f"in/{h}-{w}.png", h, w)
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 4, 256)
    compilations.clear()
    upscale_files(small, plan)
    assert len(compilations) == 2
    for job in plan.jobs[::4]:
        lr, written = read_image(job.source).pixels, read_image(job.target).pixels
        tiled, single_pass = small.upscaler(job.tile_size)(lr), small.upscaler()(lr)
        assert_close(tiled, single_pass)
        assert np.array_equal(written, to_uint8(tiled, 1.0))
        assert np.abs(written.astype(int) - to_uint8(single_pass, 1.0)).max() <= 1
        assert np.mean(written != to_uint8(single_pass, 1.0)) < 1e-3
    assert len(compilations) > 25  # a single pass compiles for every size, tiles do not


@pytest.fixture
def run_sizes(spanv2, monkeypatch):
    """The sizes of all tiles that are run."""
    sizes, forward = [], spanv2.forward

    def spy(lr, mask=None):
        sizes.extend([] if mask is None else [lr.shape[1:3]])
        return forward(lr, mask)

    monkeypatch.setitem(vars(spanv2), "forward", spy)
    return sizes


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (85, 85), (5, 7)], ids=str)
def test_tiled_images_equal_a_single_pass(spanv2, run_sizes, size):
    lr = noise(*size)
    assert_close(spanv2.upscaler((44, 44))(lr), spanv2.upscaler()(lr))
    assert set(run_sizes) == {(44, 44)}
    assert len(run_sizes) > 2 or size == (5, 7)


def test_tile_smaller_than_the_receptive_field_is_enlarged(spanv2, run_sizes):
    assert spanv2.receptive_field_radius == 16
    lr = noise(20, 80)
    assert_close(spanv2.upscaler((20, 30))(lr), spanv2.upscaler()(lr))
    assert set(run_sizes) == {(20, 64)}


def test_tiled_self_ensemble_compiles_twice_and_is_the_mean_of_eight(tmp_path, small, compilations):
    for h, w in JOB_SIZES[:6]:
        write_noise(tmp_path / f"in/{h}-{w}.png", h, w)
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 4, 256, both_orientations=True)
    compilations.clear()
    upscale_files(small, plan, self_ensemble=True)
    assert len(compilations) == 2
    job = plan.jobs[0]
    lr, upscaler = read_image(job.source).pixels, small.upscaler()
    views = [
        np.rot90(upscaler(np.rot90(lr, k)[:, ::step])[:, ::step], -k)
        for k in range(4)
        for step in (1, -1)
    ]
    mean = small.upscaler(job.tile_size, self_ensemble=True)(lr)
    assert_close(mean, np.mean(views, 0, np.float64))
    assert np.array_equal(read_image(job.target).pixels, to_uint8(mean, 1.0))


def test_method_that_needs_the_full_image_is_not_tiled(tmp_path, crumbs):
    from esrjax import load

    loaf = load("loaf")
    lr = noise(9, 21)
    assert loaf.method.needs_full_image
    np.testing.assert_array_equal(loaf.upscaler((64, 64))(lr), loaf.upscaler()(lr))
    padded = np.pad(lr, ((0, 55), (0, 43), (0, 0)))
    assert np.abs(loaf.upscaler()(padded)[:36, :84] - loaf.upscaler()(lr)).max() > 0.01
