"""What is exported does what JAX does, at any size, or is not written."""

import json
from dataclasses import replace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.bridge import export
from esrjax.bridge.check import CLOSE, EXACT, Check, compare
from esrjax.bridge.export import FixedSize, WrongExport
from esrjax.bridge.onnx.graph import NotInOnnx
from esrjax.model import open_method
from esrjax.network.reparam import deploy

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
SLOW = ("bviesr", "dan", "haesr", "vscinet", "zenosr")  # networks of windows
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OFFICIAL]


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    return pytest.importorskip("onnx", reason="the extra `export` is not installed")


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.export
def test_the_graph_is_the_network_and_nothing_else(onnx):
    net = deploy(registry.plain("spanv2").build())
    model = export.onnx("spanv2", net, 1)
    found = operators(model)
    wanted = {"Conv": 22, "Max": 11, "Add": 4, "Mul": 4, "Concat": 1, "DepthToSpace": 1}
    assert {name: found.count(name) for name in set(found)} == wanted
    groups = [
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "group" and attribute.i > 1
    ]
    assert groups == [3, 80]
    (lr,), (sr,) = model.graph.input, model.graph.output
    sides = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (lr, sr)]
    assert sides == [[1, 3, "h", "w"], [1, 3, "4*h", "4*w"]]


@pytest.mark.export
def test_the_file_says_what_it_is(onnx, esrjax, crumbs, tmp_path):
    said = esrjax("export", "crumb", "-o", tmp_path / "crumb.onnx", "--json")
    card = said.json
    model = onnx.load(tmp_path / "crumb.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert card.pop("file") == str(tmp_path / "crumb.onnx")
    assert facts == {k: v if isinstance(v, str) else json.dumps(v) for k, v in card.items()}
    assert (card["method"], card["scale"], card["min_side"]) == ("crumb", 4, 6)
    assert card["weights_sha256"] == open_method("crumb").checkpoint.sha256
    assert set(card["checks"]) == {"float32", "float16"}
    assert 0 <= card["checks"]["float32"]["max_abs"] < EXACT
    assert card["checks"]["float32"]["sizes"] == [[16, 24], [33, 21], [75, 131]]
    assert card["versions"]["onnxruntime"]


@pytest.mark.export
@pytest.mark.parametrize("name", NAMES)
def test_official_networks_run_in_onnx_runtime(onnx, reference, tmp_path, name):
    pytest.importorskip("torch", reason="the official weights are PyTorch's")
    model = open_method(name, reference / f"weights/{OFFICIAL[name]}.pth")
    card = export.export(model, tmp_path / "net.onnx", "onnx")
    assert card.checks["float32"].max_abs < 1e-4


@pytest.mark.export
def test_half_precision_is_stored_inside_and_floats_outside(onnx, crumbs, tmp_path):
    card = export.export(open_method("crumb"), tmp_path / "half.onnx", "onnx", "float16")
    model = onnx.load(tmp_path / "half.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ends = [*model.graph.input, *model.graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    assert list(card.checks) == ["float16"] and card.checks["float16"].psnr > CLOSE


@pytest.mark.export
@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_what_differs_from_jax_is_not_written(onnx, crumbs, tmp_path, monkeypatch, kind):
    model = open_method("crumb")
    monkeypatch.setattr(export, "portable", lambda *a, of=export.portable: _off(of(*a)))
    with pytest.raises(WrongExport, match=r"crumb as \w+ in float32 differs from JAX"):
        export.export(model, tmp_path / f"crumb.{kind}", kind)
    assert not list(tmp_path.iterdir())


def _off(forward):
    return lambda lr: forward(lr) + 2e-4


def test_a_network_of_fixed_size_is_told_where(crumbs, tmp_path, monkeypatch):
    def picky(lr):
        return lr if lr.shape[2] > 8 else 2 * lr

    monkeypatch.setattr(export, "portable", lambda *a: picky)
    with pytest.raises(FixedSize) as told:
        export.export(open_method("crumb"), tmp_path / "crumb.stablehlo", "stablehlo")
    assert told.value.problem.startswith("crumb cannot be traced for pictures of any size")
    assert "return lr if lr.shape[2] > 8 else 2 * lr" in told.value.place
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_what_onnx_lacks_is_named(onnx, crumbs, tmp_path, monkeypatch):
    spotted = lambda *a, of=export.portable: lambda lr: of(*a)(lr).at[0, 0, 5, 5].add(1.0)  # noqa: E731
    monkeypatch.setattr(export, "portable", spotted)
    with pytest.raises(NotInOnnx, match="the operation 'scatter-add' has no counterpart"):
        export.export(open_method("crumb"), tmp_path / "crumb.onnx", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.export
def test_what_onnx_runtime_refuses_is_no_crash(onnx, esrjax, crumbs, tmp_path):
    said = esrjax("export", "crumb", "--dtype", "bfloat16", "-o", tmp_path / "crumb.onnx")
    assert (said.code, list(tmp_path.iterdir())) == (2, [])
    assert said.err.startswith("esrjax: ONNX Runtime does not run this network: ")


@pytest.mark.export
def test_stablehlo_runs_where_jax_does_at_any_size(onnx, esrjax, crumbs, tmp_path):
    path = tmp_path / "crumb.stablehlo"
    assert esrjax("export", "crumb", "--format", "stablehlo", "-o", path).code == 0
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    lr = np.random.default_rng(0).random((1, 9, 14, 3), np.float32)
    ours = open_method("crumb").forward(jnp.asarray(lr))
    theirs = program.call(lr.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    card = json.loads((tmp_path / "crumb.stablehlo.json").read_text())
    assert (card["format"], card["method"]) == ("stablehlo", "crumb")


def test_a_bound_is_a_bound():
    check = Check(sizes=((8, 8),), max_abs=0.9e-4, psnr=60.0, finite=True)
    assert check.keeps("float32") and check.keeps("float16")
    assert not replace(check, max_abs=1.1e-4).keeps("float32")
    assert not replace(check, psnr=49.0).keeps("bfloat16")
    assert not replace(check, finite=False).keeps("float16")
    nan = compare(lambda lr: lr * np.nan, [np.ones((1, 3, 4, 4))], [np.ones((1, 3, 4, 4))], 1)
    assert not nan.finite and not nan.keeps("float32") and not nan.keeps("float16")
