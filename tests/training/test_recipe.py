"""What a recipe may say, and what it hears when it says something else."""

import json
import subprocess
import sys
from importlib import resources

import pytest

from esrjax.training import recipe as recipes

SHIPPED = [
    file.name.removesuffix(".toml")
    for file in resources.files("esrjax_configs").iterdir()
    if file.name.endswith(".toml") and "[[stage]]" in file.read_text()
]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_one(name):
    assert all(stage.steps or stage.epochs for stage in recipes.load(name).stage)


def test_spanv2_says_what_the_report_says():
    first, second = recipes.load("spanv2").stage
    assert (first.steps, second.steps) == (1_000_000, 1_000_000)
    assert first.loss == {"l1": 1.0, "fft": 0.05} and second.loss == {"mse": 5.0, "gradient": 3.0}
    assert (first.optimiser.lr, second.optimiser.lr) == (1e-3, 5e-4)
    assert len(first.data.patches) == 8 and second.data.patches == ((512, 512),)
    assert second.schedule.restarts == (600_000,) and second.schedule.restart_weights == (1.0, 0.5)
    assert first.ema == second.ema == 0.999


def test_all_mistakes_at_once_with_place_and_nearest_name(said):
    stage = said["stage"][0]
    stage["optimizer"] = stage.pop("optimiser")
    stage["steps"] = "many"
    stage["loss"] = {"l1": 1.0, "perceptual": 1.0}
    said["stage"][1]["data"]["batchsize"] = 4
    said["sead"] = 1
    with pytest.raises(recipes.RecipeError) as error:
        recipes.parse(said, "mine.toml")
    text = str(error.value)
    assert "mine.toml" in text and "6 mistakes" in text
    assert "stage.0.optimizer is not a known name; did you mean 'optimiser'?" in text
    assert "stage.0.optimiser is missing" in text
    assert "stage.0.steps should be a valid integer, found 'many'" in text
    assert "stage.0.loss.perceptual" in text and "'charbonnier'" in text
    assert "stage.1.data.batchsize is not a known name; did you mean 'batch'?" in text
    assert "sead is not a known name; did you mean 'seed'?" in text


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ({"name": "cosine", "milestones": [3]}, "milestones belongs to the schedule 'multistep'"),
        ({"name": "multistep", "milestones": [3, 2]}, "milestones must grow"),
        ({"name": "cosine", "restarts": [3], "restart_weights": [1.0]}, "one weight more"),
    ],
)
def test_schedules_agree_with_themselves(said, schedule, complaint):
    said["stage"][0]["schedule"] = schedule
    with pytest.raises(recipes.RecipeError, match=complaint):
        recipes.parse(said)


def test_stage_names_differ(said):
    said["stage"][1]["name"] = "first"
    with pytest.raises(recipes.RecipeError, match="found twice: first"):
        recipes.parse(said)


def test_set_changes_values_by_path(tmp_path, said):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(said))
    changes = ["stage.1.optimiser.lr=2e-4", "seed=9", "stage.0.name=other", "sizes.channels=8"]
    changed = recipes.load(file, changes)
    assert changed.stage[1].optimiser.lr == 2e-4 and changed.seed == 9
    assert changed.stage[0].name == "other" and changed.sizes == {"channels": 8}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("seed", "--set seed is not path=value"),
        ("stage.7.steps=1", "'7' is not one of 2 positions"),
        ("stage.0.steps.more=1", "has no place"),
        ("stage.0.optimiser.rate=1", "stage.0.optimiser.rate is not a known name"),
    ],
)
def test_a_set_that_names_nothing_is_refused(tmp_path, said, change, complaint):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(said))
    with pytest.raises(recipes.RecipeError) as error:
        recipes.load(file, [change])
    assert complaint in str(error.value)


def test_the_resolved_recipe_is_the_recipe(tmp_path, said):
    first = recipes.parse(said)
    file = tmp_path / "recipe.json"
    file.write_text(recipes.to_json(first))
    assert recipes.load(file) == first and recipes.load(file).sha256 == first.sha256
    assert recipes.load(file, ["seed=4"]).sha256 != first.sha256


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(recipes.UnknownRecipe) as error:
        recipes.load("quik")
    assert "'quik'" in str(error.value) and "spanv2" in str(error.value)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("method = \n")
    with pytest.raises(recipes.RecipeError) as error:
        recipes.load(file)
    assert "broken.toml" in str(error.value) and "cannot be read" in str(error.value)


def test_recipes_are_read_without_jax():
    code = (
        "import sys, esrjax.training.recipe as r; r.load('quick'); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
