"""Defaults, overrides and `unspecified` of recipes."""

import json
import sys
import tomllib
from importlib import resources

import pytest
from typer.testing import CliRunner

from esrjax.cli import app
from esrjax.errors import PluginError, RecipeError
from esrjax.training import recipe, recipe_loader, train

ADAM = {"name": "adam", "learning_rate": 1e-3}


@pytest.fixture
def with_defaults(recipe_dict):
    """The recipe of two stages, what they share moved to `[defaults]`, as plain data."""
    first, second = recipe_dict["stage"]
    data, betas = first.pop("data"), {"b1": 0.8, "b2": 0.9}
    del first["save_every"], second["save_every"]
    first["optimizer"], second["optimizer"] = {}, {"name": "adamw", "b2": 0.95}
    second["data"] = {"augment": ["hflip"], "batch_size": 4}
    return {
        **recipe_dict,
        "defaults": {"data": data, "optimizer": {**ADAM, **betas}, "save_every": 5},
    }


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a recipe of plain data and returns the path of the file."""

    def write_recipe(data):
        (tmp_path / "mine.json").write_text(json.dumps(data))
        return tmp_path / "mine.json"

    return write_recipe


# --- merging ---


def test_tables_are_merged_by_key_and_the_stage_takes_precedence(with_defaults):
    first, second = recipe_loader.parse(with_defaults).stage
    assert first.optimizer == recipe.Optimizer(**ADAM, b1=0.8, b2=0.9)
    assert second.optimizer == recipe.Optimizer(**{**ADAM, "name": "adamw"}, b1=0.8, b2=0.95)
    assert first.data.batch_size == 2 and second.data.batch_size == 4
    assert first.data.hr_patch_sizes == second.data.hr_patch_sizes == ((16, 16), (16, 24))
    assert first.save_every == second.save_every == 5


def test_tables_of_tables_are_merged(with_defaults):
    taps = {"block_1": "block_1", "block_2": "block_3"}
    teacher = {"method": "span", "checkpoint": "a.pth", "taps": taps}
    with_defaults["defaults"] |= {"teacher": teacher, "loss": {"teacher_affinity": 0.1}}
    with_defaults["stage"][1]["teacher"] = {"taps": {"block_2": "block_4"}}
    first, second = recipe_loader.parse(with_defaults).stage
    assert first.loss == {"l1": 1.0, "fft": 0.05, "teacher_affinity": 0.1}
    assert first.teacher.taps == taps and first.teacher.checkpoint == second.teacher.checkpoint
    assert second.teacher.taps == {**taps, "block_2": "block_4"}


def test_lists_are_replaced(with_defaults):
    with_defaults["defaults"]["unspecified"] = ["ema", "data.augment"]
    with_defaults["stage"][1]["unspecified"] = ["steps"]
    first, second = recipe_loader.parse(with_defaults).stage
    assert first.data.augment == ("hflip", "vflip", "rot90") and second.data.augment == ("hflip",)
    assert first.unspecified == ("ema", "data.augment") and second.unspecified == ("steps",)


def test_value_of_another_type_than_the_default_replaces_it(with_defaults):
    with_defaults["defaults"]["init_from"] = {"checkpoint": "a.pth", "method": "span"}
    first, second = recipe_loader.parse(with_defaults).stage
    assert first.init_from == "scratch"
    assert second.init_from == recipe.InitFrom(checkpoint="a.pth", method="span")


def test_parsed_data_are_not_changed(with_defaults):
    before = json.dumps(with_defaults)
    recipe_loader.parse(with_defaults)
    assert json.dumps(with_defaults) == before


@pytest.mark.parametrize("name", recipe_loader.shipped_recipes())
def test_no_stage_of_a_shipped_recipe_repeats_a_default(name):
    data = tomllib.loads((resources.files("esrjax_configs") / f"{name}.toml").read_text("utf-8"))
    defaults = dict(leaves(data.get("defaults", {})))
    for stage in [stage for stage in data["stage"] if stage.get("defaults", True)]:
        assert [path for path, value in leaves(stage) if defaults.get(path) == value] == []


def leaves(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- overrides ---


def test_overrides_of_defaults_hold_for_stages_without_a_value(write, with_defaults):
    overrides = ["defaults.optimizer.b2=0.7", "defaults.grad_clip_norm=1.0"]
    first, second = recipe_loader.load(write(with_defaults), overrides).stage
    assert first.optimizer.b2 == 0.7 and second.optimizer.b2 == 0.95
    assert first.grad_clip_norm == second.grad_clip_norm == 1.0


def test_overrides_of_a_stage_take_precedence_over_defaults(write, with_defaults):
    overrides = ["stage.1.optimizer.b1=0.6", "defaults.optimizer.b1=0.7", "stage.1.save_every=3"]
    first, second = recipe_loader.load(write(with_defaults), overrides).stage
    assert first.optimizer.b1 == 0.7 and second.optimizer.b1 == 0.6
    assert first.save_every == 5 and second.save_every == 3
    assert second.optimizer.learning_rate == ADAM["learning_rate"]  # the rest stays the default


def test_overrides_add_defaults_to_a_recipe_without(write, recipe_dict):
    first, second = recipe_loader.load(write(recipe_dict), ["defaults.ema=0.99"]).stage
    assert first.ema == 0.9 and second.ema == 0.99


def test_override_of_defaults_at_no_path_is_reported(write, with_defaults):
    with pytest.raises(RecipeError, match=r"--set defaults\.save_every\.more=1 is not a path"):
        recipe_loader.load(write(with_defaults), ["defaults.save_every.more=1"])


# --- errors ---


def test_misspelled_defaults_are_reported_with_the_right_spelling(with_defaults):
    with_defaults["default"] = with_defaults.pop("defaults")
    with pytest.raises(RecipeError, match=r"default is not a known key; did you mean 'defaults'"):
        recipe_loader.parse(with_defaults)


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("optimizer.b1", "high", "defaults.optimizer.b1 .*'high'"),
        ("optimizer.beta1", 0.8, "defaults.optimizer.beta1 is not a known key"),
        ("optimiser", {"name": "adam"}, "defaults.optimiser is not a known key.*'optimizer'"),
        ("data.hr_patch_sizes", [[16, -16]], r"defaults.data.hr_patch_sizes\.0\.1 .*-16"),
    ],
)
def test_error_is_reported_once_at_its_place_in_defaults(with_defaults, path, value, problem):
    *tables, key = path.split(".")
    table = with_defaults["defaults"]
    for name in tables:
        table = table[name]
    table[key] = value
    with_defaults["stage"][1].pop("data")
    with pytest.raises(RecipeError, match=problem) as error:
        recipe_loader.parse(with_defaults, "mine.toml")
    assert "mine.toml" in str(error.value) and "1 error:" in str(error.value)


def test_error_of_a_stage_is_reported_at_the_stage(with_defaults):
    with_defaults["stage"][1]["optimizer"]["b1"] = "high"
    del with_defaults["defaults"]["optimizer"]["learning_rate"]
    with pytest.raises(RecipeError) as error:
        recipe_loader.parse(with_defaults)
    lines = {line.split()[0] for line in str(error.value).splitlines() if line.strip()}
    assert {"stage.1.optimizer.b1", "stage.0.optimizer.learning_rate"} <= lines
    assert "3 errors" in str(error.value) and "defaults." not in str(error.value)


def test_error_of_an_override_is_reported_at_the_stage(write, with_defaults):
    """Although the value that it overrides is from the defaults."""
    with pytest.raises(RecipeError, match=r"stage\.0\.optimizer\.b1 .*'high'") as error:
        recipe_loader.load(write(with_defaults), ["stage.0.optimizer.b1=high"])
    assert "1 error:" in str(error.value)


@pytest.mark.parametrize("defaults", [5, "adam", [{"ema": 0.9}]])
def test_defaults_that_are_no_table_are_an_error(recipe_dict, defaults):
    with pytest.raises(RecipeError, match=r"defaults should be a table, found .*(5|adam|ema)"):
        recipe_loader.parse({**recipe_dict, "defaults": defaults})


def test_stage_without_defaults_takes_nothing_from_them(with_defaults):
    with_defaults["stage"][0]["defaults"] = False
    with pytest.raises(RecipeError, match=r"stage\.0\.data is missing"):
        recipe_loader.parse(with_defaults)
    with_defaults["stage"][0]["defaults"] = "no"
    with pytest.raises(RecipeError, match=r"stage\.0\.defaults should be true or false.*'no'"):
        recipe_loader.parse(with_defaults)
    del with_defaults["defaults"]
    with pytest.raises(RecipeError, match=r"stage\.0\.defaults has no effect"):
        recipe_loader.parse(with_defaults)


@pytest.mark.parametrize("stages", [5, {}, ["first"]])
def test_stages_that_are_no_tables_are_an_error(with_defaults, stages):
    with pytest.raises(RecipeError, match="stage"):
        recipe_loader.parse({**with_defaults, "stage": stages})


# --- unspecified ---


@pytest.mark.parametrize(
    "path",
    ["ema", "data", "data.augment", "loss.mse", "hparams.depth", "teacher.taps.block_1", "prune"],
)
def test_unspecified_lists_keys_and_tables(recipe_dict, path):
    """Also those that a stage lacks: `--set` may have removed the value."""
    recipe_dict["stage"][0]["unspecified"] = [path]
    assert recipe_loader.parse(recipe_dict).stage[0].unspecified == (path,)


@pytest.mark.parametrize(
    "path", ["data.augmentation", "optimiser", "loss.mae", "teacher.tap", "steps.more", "x.y", ""]
)
def test_unspecified_with_an_unknown_path_is_an_error(recipe_dict, path):
    recipe_dict["stage"][0]["unspecified"] = ["ema", path]
    with pytest.raises(RecipeError, match=rf"stage\.0 .*unspecified.* '{path}'"):
        recipe_loader.parse(recipe_dict)


def test_every_key_of_a_stage_can_be_unspecified(recipe_dict):
    """`unspecified` knows the keys of every table."""
    keys = dict(leaves(json.loads(recipe.to_json(recipe_loader.load("dscf")))["stage"][0]))
    recipe_dict["stage"][0]["unspecified"] = [*keys]
    recipe_loader.parse(recipe_dict)


def test_unspecified_epochs_may_be_resolved_to_steps(recipe_dict):
    del recipe_dict["stage"][0]["steps"]
    recipe_dict["stage"][0] |= {"epochs": 2, "unspecified": ["epochs"]}
    (stage, _) = train.resolve_epochs(recipe_loader.parse(recipe_dict)).stage
    assert stage.epochs is None and stage.steps and stage.unspecified == ("epochs",)


def test_loss_of_a_shipped_recipe_may_be_replaced_by_an_override():
    stage = recipe_loader.load("amcanet", ["stage.0.loss={ l1 = 1.0 }"]).stage[0]
    assert stage.loss == {"l1": 1.0} and "loss.fft" in stage.unspecified


# --- the resolved recipe ---


def test_sha256_depends_on_values_only(write, with_defaults):
    loaded = recipe_loader.load(write(with_defaults))
    resolved = recipe_loader.parse(json.loads(recipe.to_json(loaded)))
    assert resolved == loaded and resolved.sha256 == loaded.sha256
    with_defaults["defaults"]["unspecified"] = ["data.augment", "schedule"]
    marked = recipe_loader.load(write(with_defaults))
    assert marked != loaded and marked.sha256 == loaded.sha256
    with_defaults["defaults"]["optimizer"]["b1"] = 0.7
    assert recipe_loader.load(write(with_defaults)).sha256 != loaded.sha256


def test_show_resolved_has_every_value_in_its_stage():
    shown = CliRunner().invoke(app, ["recipes", "show", "dscf", "--resolved"])
    assert shown.exit_code == 0
    data = json.loads(shown.stdout)
    teacher, *stages = data["stage"]
    assert "defaults" not in data and teacher["ours"] and len(stages) == 4
    for stage in stages:
        assert stage["steps"] == 200_000 and stage["optimizer"]["muon_learning_rate"] == 1.5e-3
        assert stage["lora"]["train"] == ["*.bias"] and not stage["ours"]
        assert len(stage["teacher"]["taps"]) == 6 and stage["grad_clip_norm"] is None


def test_show_prints_the_file():
    shown = CliRunner().invoke(app, ["recipes", "show", "dscf"])
    assert tomllib.loads(shown.stdout)["defaults"]["lora"]["rank"] == 2


def ship_recipes(site, monkeypatch, recipe, value="clash"):
    """Put a distribution `clash` on the path, whose package has `quick.toml`."""
    (site / "clash").mkdir(parents=True)
    (site / "clash/__init__.py").write_text("raise SystemExit('imported')")
    (site / "clash/quick.toml").write_text(recipe)
    info = site / "clash-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clash\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[esrjax.recipes]\nclash = {value}\n")
    monkeypatch.syspath_prepend(site)


def test_recipes_of_other_packages_are_found(esrjax, crumbs):
    assert recipe_loader.load("crumb_small").method == "crumb"
    rows = {row["name"]: row for row in esrjax("recipes", "list", "--json").json}
    assert rows["crumb_small"]["package"] == "crumbs 0.3" and rows["quick"]["package"] == "esrjax"
    assert "[[stage]]" in esrjax("recipes", "show", "crumb_small").out
    assert "crumb_small" not in recipe_loader.shipped_recipes()


def test_recipe_of_two_packages_is_refused_by_their_names(esrjax, tmp_path, monkeypatch):
    text = recipe_loader.find_recipe_file("quick").read_text()
    ship_recipes(tmp_path / "site", monkeypatch, text)
    with pytest.raises(PluginError, match="more than once") as caught:
        recipe_loader.load("quick")
    assert caught.value.location == "esrjax and clash 1.0"
    listed = esrjax("recipes", "list")
    assert listed.code == 0 and "'quick' is shipped more than once" in listed.err
    assert "spanv2_291" in listed.out and recipe_loader.load("spanv2_291")


@pytest.mark.parametrize("value", ["clash.nothing", "uninstalled", "no module!", "__main__"])
def test_package_without_recipes_is_noted(esrjax, tmp_path, monkeypatch, value):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # find_spec raises
    ship_recipes(tmp_path / "site", monkeypatch, "", value)
    listed = esrjax("recipes", "list")
    assert listed.code == 0 and "clash 1.0: its recipes are ignored" in listed.err
