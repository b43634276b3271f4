"""Initial weights of stages, saved results and dry runs."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import InvalidArgument, NotFound, RecipeError
from esrjax.nn import checkpoint_io
from esrjax.nn.compilation import FAST_COMPILE, compiler_options
from esrjax.nn.lora import LoRAConv2d
from esrjax.nn.state_dict import KeyMap, named_parameters, to_state_dict
from esrjax.training import init_from, recipe_loader
from esrjax.training.checkpoint import RunDir
from esrjax.training.dry_run import dry_run
from esrjax.training.init_from import LoadedModel
from esrjax.training.train_state import make_train_step

HPARAMS = {"channels": 4, "tail_channels": 6}


@pytest.fixture
def recipe(recipe_dict):
    """Factory of a recipe of two stages of PKDSR, with other fields of the second one."""

    def make_recipe(**second):
        stages = [recipe_dict["stage"][0], recipe_dict["stage"][1] | second]
        return recipe_loader.parse(
            recipe_dict | {"method": "pkdsr", "hparams": HPARAMS, "stage": stages}
        )

    return make_recipe


def init_second_stage(recipe, first=None):
    """Return the initial model of the second stage, given the result of the first."""
    return init_from.init_stage_model(recipe, recipe.runs[1], lambda run, weights: first)


def make_model(method="pkdsr", form="deploy", hparams=HPARAMS, seed=7):
    net = registry.get_method(method).build(seed=seed, **hparams)
    model = LoadedModel(method=method, net=net, form="train", hparams=hparams)
    return model.to_deploy_form() if form == "deploy" else model


def param_values(net):
    return {path: np.asarray(leaf[...]) for path, leaf in named_parameters(net)}


def assert_equal(result, expected):
    assert result.keys() == expected.keys()
    for path in result:
        np.testing.assert_array_equal(result[path], expected[path], err_msg=path)


def test_previous_continues_with_the_result_of_the_stage_before(recipe):
    first = make_model(form="train")
    second = init_second_stage(recipe(), first)
    assert second.form == "train"
    assert_equal(param_values(second.net), param_values(first.net))


def test_deploy_form_is_fused_first(recipe):
    first = make_model(form="train")
    second = init_second_stage(recipe(form="deploy"), first)
    assert second.form == "deploy"
    assert_equal(param_values(second.net), param_values(first.to_deploy_form().net))


def test_checkpoint_of_another_method_initializes_all_but_reinit(recipe, tmp_path):
    source = make_model("spanf", hparams={"channels": 4, "tail_channels": 8})
    file = tmp_path / "spanf.safetensors"
    spanf = registry.get_method("spanf")
    metadata = checkpoint_io.make_metadata("spanf", spanf, "deploy", source.hparams)
    state_dict = to_state_dict(source.net, KeyMap(spanf.torch_names))
    checkpoint_io.write_safetensors(file, state_dict, metadata)
    init = {"checkpoint": str(file), "method": "spanf"}
    model = init_second_stage(recipe(init_from=init, reinit=["conv_cat.*", "conv_2.*"]))
    result, expected = param_values(model.net), param_values(source.net)
    assert result["conv_cat.weight"].shape[-1] == 6 and model.form == "deploy"
    for path in result.keys() - {p for p in result if p.startswith(("conv_cat.", "conv_2."))}:
        np.testing.assert_array_equal(result[path], expected[path])


def test_pruning_keeps_the_first_channels(recipe):
    first = make_model()
    second = init_second_stage(
        recipe(hparams={"tail_channels": 5}, prune={"criterion": "first"}), first
    )
    assert second.hparams == {"channels": 4, "tail_channels": 5}
    result, expected = param_values(second.net), param_values(first.net)
    np.testing.assert_array_equal(result["conv_cat.weight"], expected["conv_cat.weight"][..., :5])
    np.testing.assert_array_equal(result["conv_2.weight"], expected["conv_2.weight"][..., :5, :])


def test_other_shapes_without_prune_or_reinit_are_reported(recipe):
    with pytest.raises(RecipeError) as error:
        init_second_stage(recipe(hparams={"tail_channels": 5}), make_model())
    problem, remedy = error.value.problem, error.value.remedy
    assert "conv_cat.weight" in problem
    assert "(1, 1, 56, 6)" in problem and "(1, 1, 56, 5)" in problem
    assert "prune" in remedy and "reinit" in remedy


def test_unmatched_glob_of_reinit_is_reported(recipe):
    with pytest.raises(RecipeError, match=r"reinit: 'conv_cut\.\*'"):
        init_second_stage(recipe(reinit=["conv_cut.*"]), make_model())


def test_adapters_are_kept_by_stages_with_equal_lora_and_merged_otherwise(recipe):
    lora = {"rank": 2, "alpha": 2.0, "target_modules": ["block_2.*"]}
    first = init_second_stage(recipe(lora=lora), make_model())
    convs = [module for _, module in nnx.iter_modules(first.net) if isinstance(module, LoRAConv2d)]
    assert len(convs) == 3
    for conv in convs:
        conv.lora_B.set_value(conv.lora_B[...] + 0.1)
    assert init_second_stage(recipe(lora=lora), first).net is first.net
    with_biases = recipe(lora=lora | {"train": ["*.bias"]})
    assert init_second_stage(with_biases, first).net is first.net
    merged = init_second_stage(recipe(), first)
    assert merged.lora is None
    assert not any(isinstance(module, LoRAConv2d) for _, module in nnx.iter_modules(merged.net))
    kernel = param_values(merged.net)["block_2.c1.weight"]
    assert any(np.array_equal(kernel, conv.effective_weight()) for conv in convs)


def test_result_of_a_stage_is_saved_bit_exact(recipe, tmp_path):
    two_stages = recipe(lora={"rank": 2, "alpha": 2.0, "target_modules": ["block_2.*"]})
    model, run = init_second_stage(two_stages, make_model()), two_stages.runs[1]
    artifacts = RunDir(tmp_path, two_stages)
    assert not artifacts.has_finished(run)
    artifacts.save(run, model)
    loaded = artifacts.load(run)
    assert artifacts.has_finished(run)
    assert (loaded.form, loaded.lora) == (model.form, model.lora)
    assert_equal(param_values(loaded.net), param_values(model.net))


def test_stage_of_another_method_has_hyperparameters_of_its_own(recipe_dict):
    first, second = recipe_dict["stage"]
    first |= {"method": "emsr", "hparams": {"channels": 6}}
    second |= {"init_from": "scratch", "teacher": {"stage": "first"}, "loss": {"teacher_l1": 1.0}}
    recipe = recipe_loader.parse(recipe_dict)
    assert [recipe.hparams_at(run)["channels"] for run in recipe.runs] == [6, 4]
    plans = dry_run(recipe)
    assert [plan.setup.model.method for plan in plans] == ["emsr", "spanv2"]
    assert plans[1].setup.objective.teacher.method is registry.get_method("emsr")
    first["hparams"] = {"tail_channels": 6}
    with pytest.raises(InvalidArgument, match="tail_channels"):
        dry_run(recipe_loader.parse(recipe_dict))
    second["method"] = "emsr"
    with pytest.raises(RecipeError, match="last stage trains spanv2, not emsr"):
        recipe_loader.parse(recipe_dict)


def test_stage_name_refers_to_its_latest_run(recipe_dict):
    repeated = recipe_dict | {"repeat": [{"stages": ["first", "second"], "times": 2}]}
    recipe = recipe_loader.parse(repeated)
    runs = recipe.runs
    assert [run.name for run in runs] == ["first 1/2", "second 1/2", "first 2/2", "second 2/2"]
    assert recipe.latest_run(3, "first").index == 2 and recipe.latest_run(3, None).index == 2
    assert runs[0].stage.init_from == "scratch" and runs[2].stage.init_from == "previous"


def test_missing_checkpoint_is_reported_with_the_searched_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    with pytest.raises(NotFound) as error:
        init_from.load_model("span", "nothing.pth", {})
    assert "'nothing.pth'" in error.value.problem and str(tmp_path) in str(error.value)


def test_dry_run_reports_shapes_labels_and_missing_files(recipe):
    two_stages = recipe(
        init_from={"checkpoint": "nowhere.pth", "method": "spanf"},
        hparams={"tail_channels": 5},
        prune={"criterion": "l1"},
        optimizer={"name": "muadamw", "learning_rate": 1e-3, "muon_learning_rate": 1e-2},
        freeze=["block_1.*"],
        teacher={"stage": "first"},
        loss={"l1": 1.0, "teacher_l1": 1.0},
    )
    first, second = dry_run(two_stages)
    assert len(second.missing) == 1
    assert second.missing[0].startswith("init_from: ") and "'nowhere.pth'" in second.missing[0]
    assert first.setup.model.form == "train"
    assert second.setup.model.hparams["tail_channels"] == 5
    params = second.trainable_params
    assert params["conv_cat.weight"] == ((1, 1, 56, 5), "muon")
    assert params["conv_cat.bias"] == ((5,), "adamw")
    assert not any(path.startswith("block_1.") for path in params) and second.num_frozen
    assert first.step_estimate.macs > 0


def compiled_mib(estimate):
    """Return the MiB that XLA allocates for the step that a training runs on one device."""
    setup = estimate.setup
    step = jax.jit(
        make_train_step(setup.objective, setup.optimizer),
        donate_argnums=0,
        compiler_options={**compiler_options(), **FAST_COMPILE},
    )
    memory = step.lower(*estimate._loss_args()).compile().memory_analysis()
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes) / 2**20


HAT = {"channels": 24, "num_groups": 2, "depth": 2, "num_heads": 2, "window_size": 8}
HAT |= {"squeeze_factor": 6}  # of its `tiny` checkpoint
SCANNED = {"scan_layers": True, "remat": True}


@pytest.mark.parametrize(
    ("method", "hparams"),
    [("spanv2", {}), pytest.param("hat", HAT | SCANNED, marks=pytest.mark.slow)],
)
def test_estimated_memory_is_near_that_of_the_compiled_step(
    recipe_dict, monkeypatch, method, hparams
):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    stage = recipe_dict["stage"][0]
    stage["data"] |= {"datasets": ["none"], "hr_patch_sizes": [[128, 128]], "batch_size": 4}
    (plan,) = dry_run(
        recipe_loader.parse(recipe_dict | {"method": method, "hparams": hparams, "stage": [stage]})
    )
    estimate = sum(plan.step_estimate.memory_mib.values())
    assert estimate == pytest.approx(compiled_mib(plan.step_estimate), rel=0.25)


def test_estimate_of_memory_is_per_device(recipe_dict, monkeypatch):
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0]["data"] |= {"hr_patch_sizes": [[48, 48]], "batch_size": 4}
    (on_two,) = dry_run(recipe_loader.parse(recipe_dict))
    (sharded,) = dry_run(recipe_loader.parse(recipe_dict | {"parallel": "fsdp"}))
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    (on_one,) = dry_run(recipe_loader.parse(recipe_dict))
    assert on_two.step_estimate.data_parallel.mesh.size == 2
    two, one = on_two.step_estimate.memory_mib, on_one.step_estimate.memory_mib
    assert two["weights"] == one["weights"] and two["images"] == one["images"] / 2
    assert 0.4 < two["activations"] / one["activations"] < 0.6
    assert sharded.step_estimate.memory_mib["optimizer"] < 0.9 * two["optimizer"]


def test_macs_of_fused_training_are_those_of_the_fused_network(recipe_dict):
    recipe_dict |= {"method": "span", "stage": recipe_dict["stage"][:1]}
    stage = recipe_dict["stage"][0]

    def macs(**changes):
        stages = [stage | changes]
        return dry_run(recipe_loader.parse(recipe_dict | {"stage": stages}))[0].step_estimate.macs

    assert macs(train_fused=True) < macs() / 2


def test_dry_run_raises_the_errors_of_a_stage(recipe, image_dir):
    with pytest.raises(RecipeError):
        dry_run(recipe(hparams={"tail_channels": 5}))
    with pytest.raises(RecipeError, match=r"prune .* no effect"):
        dry_run(recipe(prune={"criterion": "l1"}))
    with pytest.raises(RecipeError, match="train_fused has no effect"):
        without_branches = recipe(form="deploy"), recipe(train_fused=True)
        stages = tuple(recipe.stage[i] for i, recipe in enumerate(without_branches))
        dry_run(replace(without_branches[0], stage=(replace(stages[0], form="deploy"), stages[1])))
    with pytest.raises(NotFound, match="'ntir'"):
        dry_run(recipe(validation={"dataset": str(image_dir), "every": 5, "spec": "ntir"}))
    with pytest.raises(NotFound, match="'blok_1'"):
        dry_run(
            recipe(
                teacher={"stage": "first", "taps": {"blok_1": "block_2"}},
                loss={"teacher_features": 1.0},
            )
        )
