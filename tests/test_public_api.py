"""The names that plugins and scripts build on. A removed one needs an alias that warns."""

import importlib
import inspect
import re
from types import FunctionType

import pytest

PUBLIC = {
    "esrjax": "evaluate load methods parity rank train upscale Comparison EnsembleModel Model "
    "OnnxModel Ranking Recipe Scores TrainReport TrainingStopped UserError",
    "esrjax.errors": "UserError NotFound DatasetNotFound InvalidArgument UnreadableFile "
    "UnwritableFile DownloadError MissingExtra PluginError WeightsMismatch ImageTooSmall "
    "InvalidWeights "
    "DatasetError IncomparableImages InvalidOutput UncountedOp RecipeError CheckpointError "
    "Diverged DistributedError RulesError RankingError SubmissionError TorchModelError "
    "TorchCompileError ExportError",
    "esrjax.method": "API_VERSION CostOptions Ensemble Member Method Weights",
    "esrjax.registry": "names get_entry get_method distribution_of component_names get_component",
    "esrjax.inference": "EnsembleModel Model open_method open_model",
    "esrjax.nn.layers": "Conv2d FusedBlock LayerNorm Linear param",
    "esrjax.nn.functional": "conv1d conv2d einsum gelu group_norm layer_norm linear matmul "
    "normalize pixel_shuffle softmax attention_from_logits resize_bicubic resize_bilinear "
    "resize_nearest max_pool adaptive_max_pool global_avg_pool reflect_pad",
    "esrjax.nn.ops": "Kernel implementation",
    "esrjax.nn.reparam": "Reparam deploy",
    "esrjax.nn.lora": "LoRAConv2d add_lora merge_lora",
    "esrjax.nn.prune": "prune_channels",
    "esrjax.nn.quantization": "QuantConv2d add_quantization fake_quantize remove_quantization",
    "esrjax.nn.cost": "cost",
    "esrjax.nn.state_dict": "KeyMap load_state_dict to_state_dict",
    "esrjax.nn.checkpoint_io": "read_checkpoint write_safetensors write_torch",
    "esrjax.data.datasets": "Pair list_pairs",
    "esrjax.data.image_io": "read_image write_image",
    "esrjax.data.image_search": "search_images",
    "esrjax.evaluation.metrics": "MetricSpec all_specs get_spec psnr ssim",
    "esrjax.evaluation.score": "Scores score",
    "esrjax.training.recipe": "Data InitFrom LoRA Optimizer Recipe Schedule Stage TeacherConfig",
    "esrjax.training.recipe_loader": "load parse shipped_recipes",
    "esrjax.training.train": "run_stages",
    "esrjax.challenge.rank": "rank",
    "esrjax.challenge.results": "read_rows",
    "esrjax.challenge.rules": "Rules load_rules",
    "esrjax.interop.parity": "ParityRequest run",
    "esrjax.testing": "check_kernel check_loss check_method check_metric check_optimizer "
    "run_checks",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist_and_are_documented(module):
    namespace = importlib.import_module(module)
    for name in PUBLIC[module].split():
        value = getattr(namespace, name)
        is_documented = bool(value.__doc__) or not isinstance(value, type | FunctionType)
        assert is_documented, f"{module}.{name}"


@pytest.mark.parametrize("name", ["evaluate", "load", "parity", "rank", "train", "upscale"])
def test_help_has_arguments_results_and_errors(name):
    function = getattr(importlib.import_module("esrjax"), name)
    _, _, sections = function.__doc__.partition("Args:\n")
    documented, _, rest = sections.partition("Returns:\n")
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\*\*)?{parameter}: ", documented, re.MULTILINE), parameter
    assert re.search(r"Raises:\n +UserError: ", rest)


def test_methods_of_the_objects_that_users_call():
    model = importlib.import_module("esrjax.inference").Model
    assert {"upscaler", "__call__", "scale", "name", "net"} <= {*dir(model), *model.__annotations__}
