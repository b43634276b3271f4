"""A stage with `quantization`: training, the files that it writes, engines that run them."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

import esrjax
from esrjax import registry
from esrjax.errors import InvalidArgument, NotFound, RecipeError, UserError
from esrjax.inference import open_method
from esrjax.interop import engines, export
from esrjax.loading import identify_method
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import make_metadata, read_checkpoint, write_safetensors
from esrjax.nn.quantization import add_quantization, quantized_convs
from esrjax.nn.state_dict import KeyMap, to_state_dict
from esrjax.training import init_from, recipe_loader, train
from esrjax.training.dry_run import dry_run
from esrjax.training.init_from import LoadedModel
from esrjax.training.recipe import Quantization

EXCLUDE = ["conv_near", "block_1.c1", "depthwise_conv", "pointwise_conv"]


@pytest.fixture
def int8_recipe(recipe_dict):
    """A recipe as plain data: three steps in float32, three in int8."""
    first, second = recipe_dict["stage"]
    first |= {"steps": 3, "data": second["data"], "loss": {"l1": 1.0}}
    quantization = {"exclude": EXCLUDE}
    second |= {"steps": 3, "form": "deploy", "quantization": quantization, "loss": {"l1": 1.0}}
    return recipe_dict


@pytest.fixture
def run(int8_recipe, tmp_path):
    train.run(recipe_loader.parse(int8_recipe), tmp_path / "run")
    return tmp_path / "run"


def test_stage_writes_a_network_that_opens_as_int8(run, tmp_path, caplog):
    model = open_method("spanv2", run)
    assert len(quantized_convs(model.net)) == 18 and "18 int8 convolutions" in caplog.text
    state_dict = read_checkpoint(run).state_dict
    assert state_dict["block_1.c2.conv.input_range"].shape == (2,)
    without_metadata = dataclasses.replace(read_checkpoint(run), metadata=None)
    assert identify_method(without_metadata, {"channels": 4}) == "spanv2"
    stage = registry.get_method("spanv2")
    copy = tmp_path / "q.safetensors"
    write_safetensors(copy, state_dict, make_metadata("spanv2", stage, "deploy", model.hparams))
    lr = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    np.testing.assert_array_equal(esrjax.load("spanv2", copy)(lr), model(lr))
    float32 = {key: value for key, value in state_dict.items() if "input_range" not in key}
    write_safetensors(copy, float32, make_metadata("spanv2", stage, "deploy", model.hparams))
    differences = np.abs(esrjax.load("spanv2", copy)(lr).astype(int) - model(lr))
    assert 0 < differences.max() < 20


def test_resumed_training_ends_with_the_same_weights_and_ranges(int8_recipe, tmp_path):
    int8_recipe["stage"][1]["save_every"] = 1
    recipe, folder = recipe_loader.parse(int8_recipe), tmp_path / "run"
    train.run(recipe, folder)
    expected = read_checkpoint(folder).state_dict
    shutil.rmtree(folder / "checkpoints" / "6")
    (folder / "deploy.safetensors").unlink()
    (folder / "stages" / "01-second.safetensors").unlink()
    train.run(recipe, folder, resume=True)
    resumed = read_checkpoint(folder).state_dict
    assert resumed.keys() == expected.keys()
    for key, tensor in resumed.items():
        np.testing.assert_array_equal(tensor, expected[key], err_msg=key)


@pytest.mark.parametrize("parallel", ["fsdp", "pmap"])
def test_ranges_are_set_on_several_devices(int8_recipe, tmp_path, parallel):
    train.run(recipe_loader.parse(int8_recipe | {"parallel": parallel}), tmp_path)
    tensors = read_checkpoint(tmp_path).state_dict
    ranges = [tensor for key, tensor in tensors.items() if key.endswith("input_range")]
    assert len(ranges) == 18 and all(low <= 0 < high for low, high in np.minimum(ranges, [0, 1e9]))


def test_export_has_integers_and_computes_what_jax_does(run, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    model = open_method("spanv2", run)
    metadata = export.export(model, tmp_path / "q.onnx", "onnx")
    assert metadata.int8_convs == 18 and {*metadata.checks} == {"float32"}
    assert metadata.checks["float32"].psnr > export.MIN_PSNR_DB
    graph = onnx.load(tmp_path / "q.onnx").graph
    op_types = [node.op_type for node in graph.node]
    assert (op_types.count("QuantizeLinear"), op_types.count("DequantizeLinear")) == (18, 36)
    assert "Transpose" not in op_types
    int8_kernels = [t for t in graph.initializer if len(t.dims) == 4 and t.data_type == 3]
    assert len(int8_kernels) == 18
    assert export.is_convolutional(model.net, 1)
    with pytest.raises(InvalidArgument, match="int8 convolutions"):
        export.export(model, tmp_path / "half.onnx", "onnx", "float16")
    assert not (tmp_path / "half.onnx").exists()
    lr = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    for engine in ("onnxruntime", "openvino"):
        if engines.is_installed(engine):
            sr = engines.in_engine(model, engine)(lr)
            assert np.abs(sr.astype(int) - model(lr)).max() <= 2


def test_stablehlo_of_an_int8_network(run, tmp_path):
    pytest.importorskip("flatbuffers", reason="the extra `export` is not installed")
    metadata = export.export(open_method("spanv2", run), tmp_path / "q.stablehlo", "stablehlo")
    assert metadata.checks["float32"].psnr is None or metadata.checks["float32"].psnr > 50


def test_export_of_another_function_is_refused(run):
    check = export.ExportCheck(image_sizes=(), max_abs_diff=0.01, psnr=49.0, is_finite=True)
    assert not check.within_tolerance("float32", is_quantized=True)
    better = dataclasses.replace(check, psnr=60.0)
    assert better.within_tolerance("float32", is_quantized=True)
    assert not better.within_tolerance("float32")


def make_model():
    net = registry.get_method("spanv2").build(channels=4)
    model = LoadedModel(method="spanv2", net=net, form="train", hparams={"channels": 4})
    return model.to_deploy_form()


def init_second_stage(recipe_dict, first):
    recipe = recipe_loader.parse(recipe_dict)
    return init_from.init_stage_model(recipe, recipe.runs[1], lambda run, weights: first)


def test_later_stage_keeps_the_ranges_of_the_same_layers_or_trains_in_float32(int8_recipe):
    first = init_second_stage(int8_recipe, make_model())
    first.net.block_2.c1.input_range[...] = np.asarray([0.0, 3.0], np.float32)
    assert init_second_stage(int8_recipe, first).net is first.net
    int8_recipe["stage"][1]["quantization"] = {"exclude": [*EXCLUDE, "block_1.*"]}
    fewer = init_second_stage(int8_recipe, first)
    assert len(quantized_convs(fewer.net)) == 16
    del int8_recipe["stage"][1]["quantization"]
    assert quantized_convs(init_second_stage(int8_recipe, first).net) == ()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"form": "train"}, 'quantization needs form = "deploy"'),
        ({"lora": {"rank": 1, "alpha": 1.0}}, "quantization is not possible with lora"),
        ({"heads": {"block_1": 1.0}}, "quantization is not possible with lora, heads"),
        ({"init_from": "scratch"}, "quantization change initial weights; there are none"),
    ],
)
def test_what_a_quantized_stage_needs(int8_recipe, changes, message):
    int8_recipe["stage"][1] |= changes
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe_loader.parse(int8_recipe)


def test_dry_run_of_a_quantized_stage_and_a_wrong_pattern(int8_recipe):
    plans = dry_run(recipe_loader.parse(int8_recipe))
    assert plans[1].step_estimate.macs > 0
    int8_recipe["stage"][1]["quantization"] = {"exclude": ["conv_far"]}
    with pytest.raises(RecipeError, match="'conv_far' matches no convolution"):
        dry_run(recipe_loader.parse(int8_recipe))


def test_layer_that_the_network_does_not_call_is_refused(monkeypatch):
    model = make_model()
    network = type(model.net)
    monkeypatch.setattr(network, "__call__", lambda self, x: self.conv_near(x) + x.sum())
    with pytest.raises(RecipeError, match=r"does not call block_1\.c2"):
        model.with_quantization(Quantization(exclude=("conv_near", "block_1.c1")))


def test_ranges_that_no_training_has_set_are_no_weights(tmp_path):
    model = make_model()
    net = add_quantization(model.net, EXCLUDE)
    method = registry.get_method("spanv2")
    state_dict = to_state_dict(net, KeyMap(method.torch_names))
    write_safetensors(
        tmp_path / "q.safetensors", state_dict, make_metadata("spanv2", method, "deploy", {})
    )
    with pytest.raises(UserError):
        open_method("spanv2", tmp_path / "q.safetensors", {"channels": 4})


def test_shipped_weights_initialize_a_stage():
    path = init_from.find_checkpoint("shipped:spanv2")
    assert checkpoint_io.read_checkpoint(path).metadata.method == "spanv2"
    with pytest.raises(NotFound, match="'dan' ships no weights"):
        init_from.find_checkpoint("shipped:dan")
