"""Exported networks in ONNX Runtime compute the images that JAX computes."""

import numpy as np
import pytest

from esrjax.data.image_io import read_image, write_image
from esrjax.errors import ImageTooSmall
from esrjax.evaluation import upscale
from esrjax.inference import open_method
from esrjax.interop import engines as engine  # only where there is ONNX Runtime

pytestmark = pytest.mark.export
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")


def random_image(h, w):
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


@pytest.fixture
def crumb(crumbs):
    return engine.load("crumb", None)


@pytest.mark.parametrize("size", [(6, 9), (31, 17)])
def test_images_of_any_size_equal_jax(crumb, size):
    lr = random_image(*size)
    jax_sr, onnx_sr = open_method("crumb").upscaler()(lr), crumb.upscaler()(lr)
    np.testing.assert_allclose(onnx_sr, jax_sr, rtol=0, atol=1e-6)
    assert np.abs(crumb(lr).astype(int) - open_method("crumb")(lr)).max() <= 1


@pytest.mark.parametrize("size", [(40, 50), (9, 60), (64, 12)])
@pytest.mark.parametrize("self_ensemble", [False, True])
def test_tiles_are_exact(crumb, size, self_ensemble):
    lr = random_image(*size)
    tiled = crumb.upscaler((16, 16), self_ensemble=self_ensemble)(lr)
    single_pass = crumb.upscaler(self_ensemble=self_ensemble)(lr)
    np.testing.assert_allclose(tiled, single_pass, rtol=0, atol=1e-6)


def test_tiles_stay_within_the_image(crumb, monkeypatch):
    shapes = []
    run_session = engine.run_session
    monkeypatch.setattr(
        engine,
        "run_session",
        lambda session, lr: shapes.append(lr.shape[1:3]) or run_session(session, lr),
    )
    crumb.upscaler((16, 16))(random_image(12, 60))
    assert len(shapes) > 1 and {h for h, _ in shapes} == {12}
    shapes.clear()
    crumb.upscaler((16, 16))(random_image(16, 12))
    assert shapes == [(16, 12)]


def test_too_small_images_are_refused(crumb):
    with pytest.raises(ImageTooSmall, match=r"7 ?x ?5"):
        crumb(random_image(5, 7))


def test_exported_file_needs_no_weights(esrjax, crumbs, tmp_path):
    write_image(tmp_path / "small.png", random_image(12, 16))
    file = tmp_path / "crumb.onnx"
    esrjax("export", "crumb", "-o", file)
    images = {}
    for name, args in {
        "file": ("--checkpoint", file),
        "weights": ("--engine", "onnxruntime"),
        "jax": (),
    }.items():
        output = tmp_path / f"{name}.png"
        args = ("upscale", tmp_path / "small.png", "-o", output, "--method", "crumb", *args)
        assert esrjax(*args).code == 0
        images[name] = read_image(output).pixels.astype(int)
    np.testing.assert_array_equal(images["file"], images["weights"])
    assert np.abs(images["file"] - images["jax"]).max() <= 1
    assert upscale.uint8_upscaler(engine.open_onnx(file).upscaler())(
        random_image(12, 16)
    ).shape == (
        48,
        64,
        3,
    )


def test_bench_interleaves_engines(esrjax, crumbs):
    args = "bench crumb --image-size 16x16,8x24 --engine both --seconds 0.01 --json".split()
    rows = esrjax(*args).json["rows"]
    engines = [row["engine"].split("-")[0] for row in rows]
    assert engines == ["jax", "onnxruntime"] * 2
    assert all(row["median_ms"] > 0 and row["compile_s"] > 0 for row in rows)
