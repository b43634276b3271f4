"""Loading and validation of recipes."""

import json
import subprocess
import sys
from importlib import resources

import pytest

from esrjax.errors import NotFound, RecipeError
from esrjax.training import recipe, recipe_loader

SHIPPED = [
    file.name.removesuffix(".toml")
    for file in resources.files("esrjax_configs").iterdir()
    if file.name.endswith(".toml") and "[[stage]]" in file.read_text()
]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid(name):
    assert all(stage.steps or stage.epochs for stage in recipe_loader.load(name).stage)


def test_spanv2_has_the_values_of_the_report():
    first, second = recipe_loader.load("spanv2").stage
    assert (first.steps, second.steps) == (1_000_000, 1_000_000)
    assert first.loss == {"l1": 1.0, "fft": 0.05} and second.loss == {"mse": 5.0, "gradient": 3.0}
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (1e-3, 5e-4)
    assert len(first.data.hr_patch_sizes) == 8 and second.data.hr_patch_sizes == ((512, 512),)
    assert second.schedule.restarts == (600_000,) and second.schedule.restart_weights == (1.0, 0.5)
    assert first.ema == second.ema == 0.999


def test_all_errors_are_reported_with_path_and_nearest_key(recipe_dict):
    stage = recipe_dict["stage"][0]
    stage["optimiser"] = stage.pop("optimizer")
    stage["steps"] = "many"
    stage["loss"] = {"l1": 1.0, "perceptual": 1.0}
    recipe_dict["stage"][1]["data"]["batchsize"] = 4
    recipe_dict["sead"] = 1
    with pytest.raises(RecipeError) as error:
        recipe_loader.parse(recipe_dict, "mine.toml")
    text = str(error.value)
    assert "mine.toml" in text and "6 errors" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "'optimizer'" in lines["stage.0.optimiser"]
    assert "missing" in lines["stage.0.optimizer"]
    assert "integer" in lines["stage.0.steps"] and "'many'" in lines["stage.0.steps"]
    assert "charbonnier" in text and "stage.0.loss.perceptual" in text
    assert "'batch_size'" in lines["stage.1.data.batchsize"]
    assert "'seed'" in lines["sead"]


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ({"name": "cosine", "milestones": [3]}, "milestones .* 'multistep'"),
        ({"name": "multistep", "milestones": [3, 2]}, "milestones must be strictly increasing"),
        ({"name": "cosine", "restarts": [3], "restart_weights": [1.0]}, "restart_weights .* one"),
        ({"name": "multistep"}, "'multistep' needs `milestones`"),
        ({"gamma": 0.1}, "gamma .* not of 'constant'"),
        ({"name": "cosine", "gamma": 0.1}, "gamma .* not of 'cosine'"),
        (
            {"name": "step", "step_size": 2, "end_learning_rate": 1e-6},
            "end_learning_rate .* 'step'",
        ),
        ({"restart_weights": [0.5]}, "restart_weights .* 'constant'"),
        ({"name": "cosine", "end_learning_rate": 1.0}, "end_learning_rate is above"),
    ],
)
def test_inconsistent_schedule_is_reported(recipe_dict, schedule, problem):
    recipe_dict["stage"][0]["schedule"] = schedule
    with pytest.raises(RecipeError, match=problem):
        recipe_loader.parse(recipe_dict)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"optimizer": {"name": "adam", "learning_rate": 1e-3, "momentum": 0.5}}, "momentum"),
        ({"optimizer": {"name": "lamb", "learning_rate": 1e-3, "momentum": 0.5}}, "momentum"),
        ({"optimizer": {"name": "lars", "learning_rate": 1e-3, "b2": 0.5}}, "b2 .* not of lars"),
        (
            {"optimizer": {"name": "lamb", "learning_rate": 1e-3, "trust_coefficient": 0.1}},
            "trust_coefficient is a key of lars",
        ),
        ({"data": {"datasets": ["a", "b", "a"]}}, "datasets has 'a'"),
        ({"data": {"augment": ["hflip", "hflip"]}}, "augment has 'hflip'"),
        ({"data": {"hr_downscales": [0.5, 0.5]}}, "hr_downscales has 0.5"),
        ({"data": {"crop_on": "device", "cache_gib": 1.0}}, "cache_gib requires"),
        ({"train_fused": True, "form": "deploy"}, "train_fused needs form"),
        ({"prune": {"criterion": "l1"}}, "there are none"),
        ({"init_from": "previous", "reinit": ["head.*"]}, "there are none"),
    ],
)
def test_values_without_an_effect_are_reported(recipe_dict, stage, problem):
    data = recipe_dict["stage"][0]["data"] | stage.pop("data", {})
    recipe_dict["stage"][0] |= {"data": data} | stage
    with pytest.raises(RecipeError, match=problem):
        recipe_loader.parse(recipe_dict)


def test_momentum_of_an_optimizer_is_written_out(recipe_dict):
    for name, momentum in (("lars", 0.9), ("adam", None)):
        recipe_dict["stage"][0]["optimizer"] = {"name": name, "learning_rate": 1e-3}
        written = json.loads(recipe.to_json(recipe_loader.parse(recipe_dict)))
        assert written["stage"][0]["optimizer"]["momentum"] == momentum


def test_unknown_key_of_an_optimizer_is_reported(recipe_dict):
    recipe_dict["stage"][0]["optimizer"] = {"name": "lars", "learning_rate": 1, "trust_ratio": 0.1}
    with pytest.raises(RecipeError, match="trust_ratio") as error:
        recipe_loader.parse(recipe_dict)
    assert "trust_coefficient" in str(error.value)


def test_steps_beyond_the_end_of_a_stage_are_noted(recipe_dict):
    stage = recipe_dict["stage"][0]
    stage["steps"] = 10
    stage["schedule"] = {"name": "multistep", "milestones": [3, 6], "warmup_steps": 4}
    stage["loss"] = {"l1": [[0, 1.0], [10, 2.0]], "mse": [[0, 1.0], [11, 2.0]]}
    stage["data"]["patch_schedule"] = [{"step": n, "hr_patch_sizes": [[16, 16]]} for n in (9, 12)]
    first = recipe_loader.parse(recipe_dict).stage[0]
    assert first.late_steps == [("schedule", 10), ("data.patch_schedule", 12), ("loss.mse", 11)]
    notes = recipe_loader.recipe_notes(recipe_loader.parse(recipe_dict))
    (note,) = [note for note in notes if "reached" in note]
    assert "'first'" in note and "12" in note


def test_duplicate_stage_name_is_reported(recipe_dict):
    recipe_dict["stage"][1]["name"] = "first"
    with pytest.raises(RecipeError, match="duplicates: first"):
        recipe_loader.parse(recipe_dict)


def test_overrides_change_values_by_path(tmp_path, recipe_dict):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(recipe_dict))
    overrides = ["stage.1.optimizer.learning_rate=2e-4", "seed=9", "stage.0.name=other"]
    changed = recipe_loader.load(file, [*overrides, "hparams.channels=8"])
    assert changed.stage[1].optimizer.learning_rate == 2e-4 and changed.seed == 9
    assert changed.stage[0].name == "other" and changed.hparams == {"channels": 8}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "--set seed"),
        ("stage.7.steps=1", "'7' is not an index"),
        ("stage.0.steps.more=1", "--set stage.0.steps.more=1 is not a path"),
        ("stage.0.optimizer.rate=1", "stage.0.optimizer.rate"),
    ],
)
def test_override_of_an_unknown_path_is_reported(tmp_path, recipe_dict, override, problem):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(recipe_dict))
    with pytest.raises(RecipeError) as error:
        recipe_loader.load(file, [override])
    assert problem in str(error.value)


def test_resolved_recipe_equals_the_recipe(tmp_path, recipe_dict):
    first = recipe_loader.parse(recipe_dict)
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json(first))
    assert recipe_loader.load(file) == first and recipe_loader.load(file).sha256 == first.sha256
    assert recipe_loader.load(file, ["seed=4"]).sha256 != first.sha256


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(NotFound) as error:
        recipe_loader.load("quik")
    assert "'quik'" in str(error.value) and "spanv2" in str(error.value)


def test_invalid_toml_is_reported_with_the_file(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("method = \n")
    with pytest.raises(RecipeError) as error:
        recipe_loader.load(file)
    assert "broken.toml" in str(error.value) and "cannot be read" in str(error.value)


def test_json_file_without_a_table_is_reported(tmp_path):
    file = tmp_path / "list.json"
    file.write_text("[1]")
    with pytest.raises(RecipeError, match="has a list, no table"):
        recipe_loader.load(file)


def test_recipes_load_without_jax():
    code = "from esrjax.training import recipe_loader; recipe_loader.load('quick')"
    code += "; import sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
