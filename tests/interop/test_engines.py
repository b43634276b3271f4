"""Exported networks in OpenVINO and ONNX Runtime compute the images that JAX computes."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from esrjax import registry
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import ImageTooSmall, InvalidArgument, UnreadableFile
from esrjax.evaluation import upscale
from esrjax.inference import EnsembleModel, open_method
from esrjax.interop import engines as engine  # only where there is ONNX Runtime
from esrjax.interop import export
from esrjax.interop.onnx import sessions
from esrjax.nn.reparam import deploy

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")


def random_image(h, w):
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


ENGINES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not find_spec(name), reason=f"{name} is not installed")
    )
    for name in ("openvino", "onnxruntime")
]


@pytest.fixture(params=ENGINES)
def crumb(crumbs, request):
    return engine.open_model("crumb", engine=request.param)


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


def test_tiles_stay_within_the_image(crumb):
    shapes = []
    run = crumb.session.run
    session = replace(crumb.session, run=lambda lr: shapes.append(lr.shape[2:]) or run(lr))
    crumb = replace(crumb, session=session)
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
    args = "bench crumb --image-size 16x16,8x24 --engine all --seconds 0.01 --json".split()
    rows = esrjax(*args).json["rows"]
    engines = [row["engine"].split("-")[0] for row in rows]
    installed = [name for name in ("openvino", "onnxruntime") if find_spec(name)]
    assert engines == ["jax", *installed] * 2
    assert all(row["median_ms"] > 0 and row["compile_s"] > 0 for row in rows)


# --- the rule of --engine auto, and the cache of exports ---

needs_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")


def write_weights(file, crumbs, factor):
    """Write weights of the plugin `crumb`, those that it ships times a factor."""
    tensors = load_file(crumbs / "crumbs/crumb.safetensors")
    save_file({key: value * np.float32(factor) for key, value in tensors.items()}, file)


@pytest.fixture
def exports(monkeypatch, tmp_path):
    """The cache of exports of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/esrjax/exports"


@needs_openvino
def test_auto_is_openvino_for_convolutions_and_jax_for_others(exports):
    convolutions = engine.open_model("spanv2")
    assert isinstance(convolutions, engine.OnnxModel)
    assert engine.description(convolutions) == "OpenVINO on cpu"
    lr = random_image(20, 30)
    assert np.abs(convolutions(lr).astype(int) - open_method("spanv2")(lr)).max() <= 1
    assert sorted(path.suffix for path in (exports / "spanv2").iterdir()) == [".json", ".onnx"]


@needs_openvino
def test_auto_remembers_what_runs_in_jax(exports, crumbs, monkeypatch):
    monkeypatch.setattr(export, "is_convolutional", lambda net, min_side: False)
    assert engine.description(engine.open_model("crumb")).startswith("JAX on ")
    (record,) = (exports / "crumb").iterdir()
    assert json.loads(record.read_text())["is_convolutional"] is False
    monkeypatch.delattr(export, "is_convolutional")  # not asked again
    assert engine.description(engine.open_model("crumb")).startswith("JAX on ")


def test_without_openvino_auto_is_jax(exports, monkeypatch):
    monkeypatch.setattr(engine, "is_installed", lambda name: False)
    assert engine.description(engine.open_model("spanv2")).startswith("JAX on ")
    assert not exports.exists()


CONVOLUTIONAL = "span spanv2 rfdn_span disp dscf emsr errn2 pds pkdsr spanf tssr".split()


@pytest.mark.parametrize("name", ["rfdn_span", "spanv2", "hfenet", "safmn_deep15", "zenosr"])
def test_networks_of_convolutions_are_recognized(name):
    method = registry.get_method(name)
    net = deploy(method.build())
    net.eval()
    assert export.is_convolutional(net, method.min_side) == (name in CONVOLUTIONAL)


@needs_openvino
def test_second_run_imports_no_jax_and_no_run_has_telemetry(exports, monkeypatch):
    code = """
import sys
from esrjax.interop import engines
model = engines.open_model("spanv2")
print("jax" in sys.modules, engines.description(model), "openvino_telemetry" in sys.modules)
"""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    run = lambda: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert run() == "True OpenVINO on cpu False"
    assert run() == "False OpenVINO on cpu False"
    assert [path.name for path in (exports.parents[1]).iterdir()] == ["esrjax"]


@needs_openvino
@pytest.mark.parametrize("damage", ["weights", "record", "export"])
def test_export_of_other_weights_or_damaged_is_not_used(exports, tmp_path, crumbs, damage):
    weights = tmp_path / "crumb.safetensors"
    write_weights(weights, crumbs, 1)
    lr = random_image(12, 16)
    first = engine.open_model("crumb", weights, engine="openvino")(lr)
    (record,) = exports.rglob("*.json")
    if damage == "weights":
        write_weights(weights, crumbs, 0.5)
    elif damage == "record":
        record.write_text("{")
    else:
        record.with_suffix(".onnx").unlink()
    again = engine.open_model("crumb", weights, engine="openvino")(lr)
    assert (again != first).any() == (damage == "weights")
    assert np.abs(again.astype(int) - open_method("crumb", weights)(lr)).max() <= 1


@needs_openvino
def test_few_exports_of_a_method_are_kept(exports, tmp_path, crumbs):
    for seed in range(engine.MAX_EXPORTS + 2):
        write_weights(tmp_path / f"{seed}.safetensors", crumbs, 1 + seed)
        engine.open_model("crumb", tmp_path / f"{seed}.safetensors", engine="openvino")
    assert len(list(exports.rglob("*.onnx"))) == engine.MAX_EXPORTS


@needs_openvino
def test_precision_is_explicit(exports, crumbs, monkeypatch):
    with pytest.raises(InvalidArgument, match="JAX runs crumb in float32"):
        engine.open_model("crumb", engine="jax", precision="bfloat16")
    with pytest.raises(InvalidArgument, match="ONNX Runtime does not compute in bfloat16"):
        engine.open_model("crumb", engine="onnxruntime", precision="bfloat16")
    try:
        model = engine.open_model("spanv2", engine="openvino", precision="bfloat16")
    except InvalidArgument as error:
        assert "BF16" not in error.rule
        return
    assert engine.description(model) == "OpenVINO on cpu, bfloat16"
    lr = random_image(24, 24)
    difference = np.abs(model(lr).astype(float) - open_method("spanv2")(lr))
    assert difference.max() > 0 and difference.mean() < 5


@needs_openvino
def test_loop_is_refused_by_openvino_and_runs_in_onnxruntime(exports, tmp_path):
    method = registry.get_method("mambagate_sr")
    net = method.build(channels=4, d_state=2)
    data = export.to_onnx("loop", net, method.min_side).SerializeToString()
    with pytest.raises(UnreadableFile, match=r"OpenVINO: .*Scan"):
        sessions.open_session(data, "loop.onnx", "openvino")
    sr = sessions.open_network(data, "onnxruntime").run(np.zeros((1, 3, 16, 16), np.float32))
    assert sr.shape == (1, 3, 64, 64)


def test_ensemble_runs_in_jax_only(exports):
    stub = EnsembleModel(name="both", ensemble=None, members={})
    with pytest.raises(InvalidArgument, match="cannot run the ensemble"):
        engine.in_engine(stub, "onnxruntime")
    assert engine.in_engine(stub, "auto") is stub


def test_engine_of_the_python_interface_and_of_eval(esrjax, crumbs, tmp_path):
    import esrjax as package

    assert isinstance(package.load("crumb", engine="onnxruntime"), engine.OnnxModel)
    write_image(tmp_path / "Photos/a.png", random_image(64, 64))
    rows = {
        name: esrjax(
            "eval", "crumb", "--data", tmp_path / "Photos", "--engine", name, "--json"
        ).json
        for name in ("jax", "onnxruntime")
    }
    psnrs = [row["mean"]["psnr"] for row in rows.values()]
    assert psnrs[0] == pytest.approx(psnrs[1], abs=1e-3)
