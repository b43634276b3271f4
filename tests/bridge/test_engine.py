"""ONNX Runtime makes the pictures that JAX makes."""

import numpy as np
import pytest

from esrjax.model import PictureTooSmall, open_method
from esrjax.pictures import upscale
from esrjax.pictures.files import read, write

pytestmark = pytest.mark.export
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")

from esrjax.bridge import engine  # noqa: E402 # only where there is ONNX Runtime


def picture(h, w):
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


@pytest.fixture
def crumb(crumbs):
    return engine.load("crumb", None)


@pytest.mark.parametrize("size", [(6, 9), (31, 17)])
def test_pictures_of_any_size_are_jaxs(crumb, size):
    lr = picture(*size)
    ours, theirs = open_method("crumb").upscaler()(lr), crumb.upscaler()(lr)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    assert np.abs(crumb(lr).astype(int) - open_method("crumb")(lr)).max() <= 1


@pytest.mark.parametrize("size", [(40, 50), (9, 60), (64, 12)])
@pytest.mark.parametrize("turned", [False, True])
def test_tiles_are_exact(crumb, size, turned):
    lr = picture(*size)
    tiled = crumb.upscaler((16, 16), self_ensemble=turned)(lr)
    whole = crumb.upscaler(self_ensemble=turned)(lr)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-6)


def test_a_tile_never_leaves_the_picture(crumb, monkeypatch):
    seen = []
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda made, lr: seen.append(lr.shape[1:3]) or run(made, lr))
    crumb.upscaler((16, 16))(picture(12, 60))
    assert len(seen) > 1 and {h for h, _ in seen} == {12}
    seen.clear()
    crumb.upscaler((16, 16))(picture(16, 12))
    assert seen == [(16, 12)]


def test_small_pictures_are_refused(crumb):
    with pytest.raises(PictureTooSmall, match="the picture is 7 x 5 pixels"):
        crumb(picture(5, 7))


def test_a_file_needs_no_weights_beside_it(esrjax, crumbs, tmp_path):
    write(tmp_path / "small.png", picture(12, 16))
    file = tmp_path / "crumb.onnx"
    esrjax("export", "crumb", "-o", file)
    made = {}
    for name, words in {
        "file": ("--checkpoint", file),
        "weights": ("--engine", "onnxruntime"),
        "jax": (),
    }.items():
        output = tmp_path / f"{name}.png"
        words = ("upscale", tmp_path / "small.png", "-o", output, "--method", "crumb", *words)
        assert esrjax(*words).code == 0
        made[name] = read(output).pixels.astype(int)
    np.testing.assert_array_equal(made["file"], made["weights"])
    assert np.abs(made["file"] - made["jax"]).max() <= 1
    assert upscale.to_8_bits(engine.open_engine(file).upscaler())(picture(12, 16)).shape == (
        48,
        64,
        3,
    )


def test_bench_compares_engines_in_turn(esrjax, crumbs):
    words = "bench crumb --sizes 16x16,8x24 --engine both --seconds 0.01 --json".split()
    rows = esrjax(*words).json["rows"]
    engines = [row["engine"].split("-")[0] for row in rows]
    assert engines == ["jax", "onnxruntime"] * 2
    assert all(row["median_ms"] > 0 and row["compile_s"] > 0 for row in rows)
