"""Exported networks compute what JAX computes, at any size, or are not written."""

import json
from dataclasses import replace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import ExportError
from esrjax.inference import open_method
from esrjax.interop import export
from esrjax.interop.export import MAX_FLOAT32_DIFF, MIN_PSNR_DB, ExportCheck, compare
from esrjax.nn.checkpoint_io import make_metadata, write_safetensors
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

OFFICIAL = {
    "span": "team00_SPAN",
    "spanv2": "team22_spanv2_c2",
    "spanf": "team24_spanf",
    "pds": "team01_PDS",
    "pkdsr": "team16_PKDSR",
    "emsr": "team23_DSCF",
    "dscf": "team15_DSCF_Fused",
    "tssr": "team58_TSSR",
    "disp": "team18_DISP",
    "errn2": "team20_ERRN2",
    "rfdn_span": "team09_RFDN_SPAN",
    "amcanet": "team17_AMCANet",
    "safmn_deep15": "team21_SAFMN_Deep15",
    "hfenet": "team10_HFENet",
    "bviesr": "team19_BVIESR",
    "dan": "team20_DAN",
    "haesr": "team06_HAESR",
    "vscinet": "team11_VSCINet",
    "zenosr": "team04_ZenoSR",
}
SLOW = ("bviesr", "dan", "haesr", "vscinet", "zenosr")  # window attention
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OFFICIAL]


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return pytest.importorskip("onnx", reason="the extra `export` is not installed")


def list_op_types(model):
    return [node.op_type for node in model.graph.node]


def test_graph_has_only_the_nodes_of_the_network(onnx):
    net = deploy(registry.get_method("spanv2").build())
    model = export.to_onnx("spanv2", net, 1)
    op_types = list_op_types(model)
    expected = {"Conv": 22, "Max": 11, "Add": 4, "Mul": 4, "Concat": 1, "DepthToSpace": 1}
    assert {name: op_types.count(name) for name in set(op_types)} == expected
    groups = [
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    ]
    assert groups == [3, 80]
    (lr,), (sr,) = model.graph.input, model.graph.output
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (lr, sr)]
    assert dims == [[1, 3, "h", "w"], [1, 3, "4*h", "4*w"]]


def test_metadata_of_an_exported_file(onnx, esrjax, crumbs, tmp_path):
    result = esrjax("export", "crumb", "-o", tmp_path / "crumb.onnx", "--json")
    metadata = result.json
    model = onnx.load(tmp_path / "crumb.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata.pop("file") == str(tmp_path / "crumb.onnx")
    assert properties == {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()
    }
    assert (metadata["method"], metadata["scale"], metadata["min_side"]) == ("crumb", 4, 6)
    assert metadata["weights_sha256"] == open_method("crumb").checkpoint.sha256
    assert set(metadata["checks"]) == {"float32", "float16"}
    assert 0 <= metadata["checks"]["float32"]["max_abs_diff"] < MAX_FLOAT32_DIFF
    assert metadata["checks"]["float32"]["image_sizes"] == [[16, 24], [33, 21], [75, 131]]
    assert metadata["hparams"] == {} and metadata["receptive_field_radius"] >= 1
    assert metadata["versions"]["onnxruntime"]


def test_exported_file_has_the_scale_of_its_network(onnx, esrjax, crumbs, tmp_path):
    method, hparams = registry.get_method("crumb"), {"scale": 2}
    weights, file, sr = (tmp_path / name for name in ("x2.safetensors", "x2.onnx", "sr.png"))
    state_dict = to_state_dict(method.build(**hparams), KeyMap({}))
    metadata = make_metadata("crumb", method, "deploy", hparams)
    write_safetensors(weights, state_dict, metadata)
    assert esrjax("export", "--checkpoint", weights, "-o", file, "--json").json["scale"] == 2
    lr = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_image(tmp_path / "lr.png", lr)
    assert esrjax("upscale", tmp_path / "lr.png", "-o", sr, "--checkpoint", file).code == 0
    np.testing.assert_array_equal(read_image(sr).pixels, open_method("crumb", weights)(lr))
    args = ["upscale", tmp_path / "lr.png", "-o", tmp_path / "n.png", "--checkpoint", file]
    result = esrjax(*args, "--hparam", "scale=4")
    assert result.code == 2 and "scale" in result.err and not (tmp_path / "n.png").exists()


@pytest.mark.parametrize("name", NAMES)
def test_official_networks_run_in_onnx_runtime(onnx, reference, tmp_path, name):
    pytest.importorskip("torch", reason="the official weights are PyTorch's")
    model = open_method(name, reference / f"weights/{OFFICIAL[name]}.pth")
    metadata = export.export(model, tmp_path / "net.onnx", "onnx")
    assert metadata.checks["float32"].max_abs_diff < 1e-4


def test_float16_export_has_float32_inputs_and_outputs(onnx, crumbs, tmp_path):
    metadata = export.export(open_method("crumb"), tmp_path / "half.onnx", "onnx", "float16")
    model = onnx.load(tmp_path / "half.onnx")
    dtypes = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert dtypes == {onnx.TensorProto.FLOAT16}
    inputs_and_outputs = [*model.graph.input, *model.graph.output]
    assert {value_info.type.tensor_type.elem_type for value_info in inputs_and_outputs} == {
        onnx.TensorProto.FLOAT
    }
    assert list(metadata.checks) == ["float16"] and metadata.checks["float16"].psnr > MIN_PSNR_DB


@pytest.mark.parametrize("format", ["onnx", "stablehlo"])
def test_export_that_differs_from_jax_is_not_written(onnx, crumbs, tmp_path, monkeypatch, format):
    model = open_method("crumb")
    monkeypatch.setattr(
        export, "nchw_forward", lambda *a, original=export.nchw_forward: _with_offset(original(*a))
    )
    with pytest.raises(ExportError, match=r"crumb as \w+ in float32 differs from JAX"):
        export.export(model, tmp_path / f"crumb.{format}", format)
    assert not list(tmp_path.iterdir())


def _with_offset(forward):
    return lambda lr: forward(lr) + 2e-4


def test_fixed_size_network_is_reported_with_its_line(crumbs, tmp_path, monkeypatch):
    def size_dependent(lr):
        return lr if lr.shape[2] > 8 else 2 * lr

    monkeypatch.setattr(export, "nchw_forward", lambda *a: size_dependent)
    with pytest.raises(ExportError) as error:
        export.export(open_method("crumb"), tmp_path / "crumb.stablehlo", "stablehlo")
    assert error.value.problem.startswith("crumb cannot be traced")
    assert "return lr if lr.shape[2] > 8 else 2 * lr" in error.value.location
    assert not list(tmp_path.iterdir())


def test_unsupported_operation_is_reported(onnx, crumbs, tmp_path, monkeypatch):
    original = export.nchw_forward

    def with_scatter(*args):
        return lambda lr: original(*args)(lr).at[0, 0, 5, 5].add(1.0)

    monkeypatch.setattr(export, "nchw_forward", with_scatter)
    with pytest.raises(ExportError, match="'scatter-add'"):
        export.export(open_method("crumb"), tmp_path / "crumb.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_model_rejected_by_onnxruntime_is_reported(onnx, esrjax, crumbs, tmp_path):
    result = esrjax("export", "crumb", "--dtype", "bfloat16", "-o", tmp_path / "crumb.onnx")
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    assert "ONNX Runtime does not run this network: " in result.err


def test_stablehlo_runs_on_cpu_and_cuda_at_any_size(onnx, esrjax, crumbs, tmp_path):
    path = tmp_path / "crumb.stablehlo"
    assert esrjax("export", "crumb", "--format", "stablehlo", "-o", path).code == 0
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    lr = np.random.default_rng(0).random((1, 9, 14, 3), np.float32)
    jax_sr = open_method("crumb").forward(jnp.asarray(lr))
    stablehlo_sr = program.call(lr.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(stablehlo_sr, jax_sr, rtol=0, atol=1e-6)
    metadata = json.loads((tmp_path / "crumb.stablehlo.json").read_text())
    assert (metadata["format"], metadata["method"]) == ("stablehlo", "crumb")


def test_tolerances_of_exports():
    check = ExportCheck(image_sizes=((8, 8),), max_abs_diff=0.9e-4, psnr=60.0, is_finite=True)
    assert check.within_tolerance("float32") and check.within_tolerance("float16")
    assert not replace(check, max_abs_diff=1.1e-4).within_tolerance("float32")
    assert not replace(check, psnr=49.0).within_tolerance("bfloat16")
    assert not replace(check, is_finite=False).within_tolerance("float16")
    nan = compare(lambda lr: lr * np.nan, [np.ones((1, 3, 4, 4))], [np.ones((1, 3, 4, 4))], 1)
    assert (
        not nan.is_finite
        and not nan.within_tolerance("float32")
        and not nan.within_tolerance("float16")
    )
