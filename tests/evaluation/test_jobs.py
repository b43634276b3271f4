"""Jobs that upscale files: output paths, tile sizes, and the number of compilations."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from esrjax import registry
from esrjax.contest.compilations import count_compilations
from esrjax.data.image_io import read_image
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import BadOutputPath, UpscaleJob, plan_upscale_jobs
from esrjax.method import Method
from esrjax.model import Model
from esrjax.network import compilation
from esrjax.network.archive import Checkpoint
from esrjax.network.layers import Conv2d
from esrjax.network.reparam import deploy
from esrjax.network.words import pixel_shuffle

SIZES = [
    (5 + 2 * k % 37, 7 + 5 * k % 41) for k in range(100)
]  # from 5x7 on, landscape and portrait


def noise(h, w):
    return np.random.default_rng(100 * h + w).integers(0, 256, (h, w, 3), np.uint8)


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


def upscale_files(model: Model, plan: tuple[UpscaleJob, ...], **options) -> None:
    upscaler_of = upscale.cache_by_tile_size(lambda tile_size: model.upscaler(tile_size, **options))
    for job in plan:
        upscale.upscale_file(job, upscaler_of(job.tile_size))


# --- output paths and tile sizes ---------------------------------------------------------------


def test_single_image_is_written_to_a_file_or_a_folder(tmp_path):
    image = write_noise(tmp_path / "in/a.png", 6, 9)
    (job,) = plan_upscale_jobs([image], tmp_path / "b.webp", 4, 256)
    assert job == UpscaleJob(
        source=image, target=tmp_path / "b.webp", lr_size=(6, 9), tile_size=(6, 9)
    )
    (job,) = plan_upscale_jobs([image], tmp_path / "out", 4, 256)
    assert job.target == tmp_path / "out/ax4.png"
    (job,) = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 2, 256)
    assert job.target == tmp_path / "out/ax2.png"


@pytest.mark.parametrize(
    ("names", "output", "offender"),
    [
        (["a.png", "b.png"], "c.png", "'c.png'"),
        (["a.png", "a.webp"], "out", "ax4.png"),
        (["a.png"], "c.gif", "'.gif'"),
    ],
)
def test_unsuitable_output_path_is_reported(tmp_path, names, output, offender):
    images = [write_noise(tmp_path / name, 4, 4) for name in names]
    with pytest.raises(BadOutputPath) as caught:
        plan_upscale_jobs(images, tmp_path / output, 4, 256)
    assert offender in caught.value.problem and caught.value.remedy


def test_tile_sizes_follow_from_the_image_headers(tmp_path):
    write_noise(tmp_path / "in/wide.png", 20, 300)
    write_noise(tmp_path / "in/square.png", 30, 30)
    write_noise(tmp_path / "in/tall.png", 50, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    write_noise(tmp_path / "in/rotated.jpg", 10, 60, exif=exif)
    (tmp_path / "in/damaged.png").write_bytes(b"not an image")
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path, 4, 256)
    assert {job.source.stem: job.tile_size for job in plan} == {
        "damaged": (30, 256),
        "square": (30, 256),
        "tall": (60, 40),
        "rotated": (60, 40),
        "wide": (30, 256),
    }
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path, 4, 256, both_orientations=True)
    assert {job.tile_size for job in plan} == {(40, 256), (256, 40)}


# --- compilations ------------------------------------------------------------------------------


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * max(1, np.ptp(expected)))


def test_hundred_image_sizes_compile_twice_and_equal_single_passes(tmp_path, small, compilations):
    assert len(set(SIZES)) == 100
    for h, w in SIZES:
        write_noise(tmp_path / f"in/{h}-{w}.png", h, w)
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 4, 256)
    compilations.clear()
    upscale_files(small, plan)
    assert len(compilations) == 2
    for job in plan[::4]:
        lr, written = read_image(job.source).pixels, read_image(job.target).pixels
        tiled, single_pass = small.upscaler(job.tile_size)(lr), small.upscaler()(lr)
        assert_close(tiled, single_pass)
        assert np.array_equal(written, to_uint8(tiled, 1.0))
        assert np.abs(written.astype(int) - to_uint8(single_pass, 1.0)).max() <= 1
        assert np.mean(written != to_uint8(single_pass, 1.0)) < 1e-3
    assert len(compilations) > 25  # a single pass compiles for every size, tiles do not


@pytest.fixture
def tile_sizes(spanv2, monkeypatch):
    """The sizes of all tiles that are run."""
    sizes, masked_forward = [], spanv2.masked_forward
    spy = lambda lr, mask: sizes.append(lr.shape[1:3]) or masked_forward(lr, mask)  # noqa: E731
    monkeypatch.setitem(vars(spanv2), "masked_forward", spy)
    return sizes


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (85, 85), (5, 7)], ids=str)
def test_tiled_images_equal_a_single_pass(spanv2, tile_sizes, size):
    lr = noise(*size)
    assert_close(spanv2.upscaler((44, 44))(lr), spanv2.upscaler()(lr))
    assert set(tile_sizes) == {(44, 44)}
    assert len(tile_sizes) > 2 or size == (5, 7)


def test_tile_smaller_than_the_receptive_field_is_enlarged(spanv2, tile_sizes):
    assert spanv2.receptive_field_radius == 16
    lr = noise(20, 80)
    assert_close(spanv2.upscaler((20, 30))(lr), spanv2.upscaler()(lr))
    assert set(tile_sizes) == {(20, 64)}


def test_tiled_self_ensemble_compiles_twice_and_is_the_mean_of_eight(tmp_path, small, compilations):
    for h, w in SIZES[:6]:
        write_noise(tmp_path / f"in/{h}-{w}.png", h, w)
    plan = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 4, 256, both_orientations=True)
    compilations.clear()
    upscale_files(small, plan, self_ensemble=True)
    assert len(compilations) == 2
    job = plan[0]
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
