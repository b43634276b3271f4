"""Which picture goes where, on which canvas; and how few programs a folder of pictures needs."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from esrjax import registry
from esrjax.contest.compilations import counted
from esrjax.method import Method
from esrjax.model import Model
from esrjax.network import compilation
from esrjax.network.archive import Checkpoint
from esrjax.network.layers import Conv2d
from esrjax.network.reparam import deploy
from esrjax.network.words import pixel_shuffle
from esrjax.pictures import jobs
from esrjax.pictures.files import read
from esrjax.pictures.jobs import Job, UnclearOutput, plan
from esrjax.pictures.metrics import quantise

SIZES = [(5 + 2 * k % 37, 7 + 5 * k % 41) for k in range(100)]  # from 5x7 on, wide and tall


def noise(h, w):
    return np.random.default_rng(100 * h + w).integers(0, 256, (h, w, 3), np.uint8)


def draw(path: Path, h: int, w: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(h, w)).save(path, **options)
    return path


@pytest.fixture
def compilations():
    """The programs that XLA compiles from now on."""
    compilation.flags()  # asks XLA, once, by compiling
    with counted() as seen:
        yield seen


class Small(nnx.Module):
    """Two convolutions, one of them dilated: programs of which many can be compiled."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.head = Conv2d(3, 4, dilation=2, rngs=rngs)
        self.tail = Conv2d(4, 48, rngs=rngs)

    def __call__(self, x):
        return pixel_shuffle(self.tail(jax.nn.relu(self.head(x))), 4)


def opened(name: str, method: Method, **sizes) -> Model:
    held = Checkpoint(path=Path(), sha256="", tensors={})
    return Model(name=name, method=method, net=deploy(method.build(**sizes)), checkpoint=held)


@pytest.fixture
def small() -> Model:
    return opened("small", Method(network=Small, team="us", paper="none", license="MIT"))


@pytest.fixture(scope="module")
def spanv2() -> Model:
    """SPANV2, four channels wide, of random weights."""
    return opened("spanv2", registry.plain("spanv2"), channels=4)


def run(model: Model, found: tuple[Job, ...], **options) -> None:
    upscaler_of = jobs.memory(lambda tile: model.upscaler(tile, **options))
    for job in found:
        jobs.run(job, upscaler_of(job.canvas))


# --- targets and canvases ----------------------------------------------------------------------


def test_one_picture_goes_into_the_file_that_is_named(tmp_path):
    picture = draw(tmp_path / "in/a.png", 6, 9)
    (job,) = plan([picture], tmp_path / "b.webp", 4, 256)
    assert job == Job(source=picture, target=tmp_path / "b.webp", size=(6, 9), canvas=(6, 9))
    (job,) = plan([picture], tmp_path / "out", 4, 256)
    assert job.target == tmp_path / "out/ax4.png"
    (job,) = plan([tmp_path / "in"], tmp_path / "out", 2, 256)
    assert job.target == tmp_path / "out/ax2.png"


@pytest.mark.parametrize(
    ("names", "output", "said"),
    [
        (["a.png", "b.png"], "c.png", "2 pictures cannot go into one file 'c.png'"),
        (["a.png", "a.webp"], "out", "several pictures would be written as ax4.png"),
        (["a.png"], "c.gif", "pictures are not written as '.gif'"),
    ],
)
def test_what_does_not_fit_into_the_output_is_refused(tmp_path, names, output, said):
    pictures = [draw(tmp_path / name, 4, 4) for name in names]
    with pytest.raises(UnclearOutput) as caught:
        plan(pictures, tmp_path / output, 4, 256)
    assert caught.value.problem == said


def test_canvases_follow_the_sizes_in_the_headers(tmp_path):
    draw(tmp_path / "in/wide.png", 20, 300)
    draw(tmp_path / "in/square.png", 30, 30)
    draw(tmp_path / "in/tall.png", 50, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    draw(tmp_path / "in/turned.jpg", 10, 60, exif=exif)
    (tmp_path / "in/damaged.png").write_bytes(b"no picture")
    canvas = {job.source.stem: job.canvas for job in plan([tmp_path / "in"], tmp_path, 4, 256)}
    assert canvas == {
        "damaged": (30, 256),
        "square": (30, 256),
        "tall": (60, 40),
        "turned": (60, 40),
        "wide": (30, 256),
    }
    turned = plan([tmp_path / "in"], tmp_path, 4, 256, turned=True)
    assert {job.canvas for job in turned} == {(40, 256), (256, 40)}


# --- programs ----------------------------------------------------------------------------------


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * max(1, np.ptp(theirs)))


def test_a_hundred_sizes_compile_twice_and_equal_the_whole_pictures(tmp_path, small, compilations):
    assert len(set(SIZES)) == 100
    for h, w in SIZES:
        draw(tmp_path / f"in/{h}-{w}.png", h, w)
    found = plan([tmp_path / "in"], tmp_path / "out", 4, 256)
    compilations.clear()
    run(small, found)
    assert len(compilations) == 2
    for job in found[::4]:
        lr, written = read(job.source).pixels, read(job.target).pixels
        tiles, whole = small.upscaler(job.canvas)(lr), small.upscaler()(lr)
        assert_close(tiles, whole)
        assert np.array_equal(written, quantise(tiles, 1.0))
        assert np.abs(written.astype(int) - quantise(whole, 1.0)).max() <= 1
        assert np.mean(written != quantise(whole, 1.0)) < 1e-3
    assert len(compilations) > 25  # one for every whole picture: what tiles save


@pytest.fixture
def tiles(spanv2, monkeypatch):
    """The sizes of all tiles that run."""
    seen, masked = [], spanv2.masked
    spy = lambda lr, mask: seen.append(lr.shape[1:3]) or masked(lr, mask)  # noqa: E731
    monkeypatch.setitem(vars(spanv2), "masked", spy)
    return seen


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (85, 85), (5, 7)], ids=str)
def test_pictures_larger_than_the_tile_are_cut_and_equal_the_whole(spanv2, tiles, size):
    lr = noise(*size)
    assert_close(spanv2.upscaler((44, 44))(lr), spanv2.upscaler()(lr))
    assert set(tiles) == {(44, 44)}
    assert len(tiles) > 2 or size == (5, 7)


def test_a_tile_smaller_than_two_reaches_is_widened(spanv2, tiles):
    assert spanv2.reach == 16
    lr = noise(20, 80)
    assert_close(spanv2.upscaler((20, 30))(lr), spanv2.upscaler()(lr))
    assert set(tiles) == {(20, 64)}


def test_self_ensemble_in_tiles_compiles_twice_and_is_the_mean_of_eight(
    tmp_path, small, compilations
):
    for h, w in SIZES[:6]:
        draw(tmp_path / f"in/{h}-{w}.png", h, w)
    found = plan([tmp_path / "in"], tmp_path / "out", 4, 256, turned=True)
    compilations.clear()
    run(small, found, self_ensemble=True)
    assert len(compilations) == 2
    job = found[0]
    lr, one = read(job.source).pixels, small.upscaler()
    views = [
        np.rot90(one(np.rot90(lr, k)[:, ::step])[:, ::step], -k)
        for k in range(4)
        for step in (1, -1)
    ]
    eight = small.upscaler(job.canvas, self_ensemble=True)(lr)
    assert_close(eight, np.mean(views, 0, np.float64))
    assert np.array_equal(read(job.target).pixels, quantise(eight, 1.0))


def test_whole_pictures_run_at_their_own_size(tmp_path, crumbs):
    from esrjax import load

    loaf = load("loaf")
    lr = noise(9, 21)
    assert loaf.method.whole_picture
    np.testing.assert_array_equal(loaf.upscaler((64, 64))(lr), loaf.upscaler()(lr))
    padded = np.pad(lr, ((0, 55), (0, 43), (0, 0)))
    assert np.abs(loaf.upscaler()(padded)[:36, :84] - loaf.upscaler()(lr)).max() > 0.01
