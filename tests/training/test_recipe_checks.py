"""Numbers of recipes: drawn ones give the right plan, or an error with value, rule and remedy."""

import copy

import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import DistributedError, InvalidArgument, RecipeError, UserError
from esrjax.method import Method
from esrjax.nn import checkpoint_io
from esrjax.training import recipe_loader, train
from esrjax.training.dry_run import check_stages, dry_run
from esrjax.training.loader import PatchSampler, usable_pairs

NUM_DRAWS = 10_000  # of the full campaign
HR_SIZES = ((48, 64), (56, 48), (64, 64), (48, 48))  # of the images of `image_dir`


class AnyScale(nnx.Module):
    """Never built: the checks come first."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 4, scale: int = 4):
        raise AssertionError("a network was built")


class OneScale(nnx.Module):
    """Never built, and without an argument `scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 4):
        raise AssertionError("a network was built")


ABOUT = {"team": "us", "paper": "none", "license": "MIT"}
METHODS = {
    "any": Method(network=AnyScale, scales=(2, 3, 4), min_side=3, **ABOUT),
    "one": Method(network=OneScale, scales=(3,), **ABOUT),
}


@pytest.fixture
def _stub_methods(monkeypatch):
    get_method = registry.get_method
    monkeypatch.setattr(registry, "get_method", lambda n: METHODS.get(n) or get_method(n))


def pick(rng, *values):
    return values[rng.integers(len(values))]


def rarely(rng, value, *others):
    """Return one of `others` in one of twenty cases."""
    return pick(rng, *others) if rng.random() < 0.05 else value


def draw(rng, image_dir):
    """Return a recipe of one or two stages, as plain data."""
    method = pick(rng, "any", "any", "one")
    hparams = {"channels": 8} if rng.integers(2) else {}
    if rng.random() < (0.7 if method == "any" else 0.05):
        hparams["scale"] = rarely(rng, int(rng.integers(2, 5)), 1, 5, 0, -2, 2.0, True, "2", [2])
    stages = [draw_stage(rng, image_dir, method, hparams) for _ in range(rng.integers(1, 3))]
    if len(stages) == 2 and method == "any" and rng.random() < 0.2:
        stages[1]["hparams"] = {"scale": int(rng.integers(2, 5))}
        stages[1]["reinit"] = pick(rng, [], ["upsampler.*"])
    for i, stage in enumerate(stages):
        stage |= {"name": f"stage {i}", "init_from": "previous" if i else "scratch"}
    seed = rarely(rng, int(rng.integers(2**31)), -1, 2**31, 2**32 + 1, 2**63, 2**64, 10**30)
    return {"method": method, "seed": seed, "hparams": hparams, "stage": stages}


def draw_stage(rng, image_dir, method, hparams):
    s = 3 if method == "one" else hparams.get("scale", 4)
    s = s if type(s) is int and s > 0 else 4
    sides = [int(s * rng.integers(1, 45 // s)) for _ in range(2)]
    if rng.random() < 0.1:
        sides = [int(side) for side in rng.integers(1, 80, 2)]
    micro_batches = rarely(rng, int(rng.integers(1, 4)), 0, -1, 7)
    data = {
        "datasets": [str(image_dir)],
        "hr_patch_sizes": [sides],
        "batch_size": rarely(rng, micro_batches * int(rng.integers(1, 4)), 0, 2**31, 11, 10**20),
        "undersized": pick(rng, "error", "skip"),
    }
    steps = rarely(rng, int(rng.integers(1, 1000)), 0, -3, 2**31, 2**31 - 1, 10**30)
    warmup_steps = rarely(
        rng, int(rng.integers(0, max(1, steps // 2 if steps < 10**6 else 9))), steps
    )
    length = {"epochs": steps} if rng.random() < 0.2 else {"steps": steps}
    ema = {}
    if rng.integers(2):
        ema = {"ema": rarely(rng, float(rng.random() ** 0.1), 1.0, -0.1, 2, 0.0)}
        ema["ema_warmup"] = bool(rng.integers(2))
    return (
        length
        | ema
        | {
            "data": data,
            "loss": {"l1": 1.0},
            "optimizer": {"name": "adam", "learning_rate": 1e-3},
            "schedule": {"warmup_steps": warmup_steps},
            "grad_accum_steps": micro_batches,
        }
    )


def invalid_values(recipe):
    """Return the values that break a rule, each as a part of what the error says."""
    bad, method = [], METHODS[recipe["method"]]
    if not 0 <= recipe["seed"] < 2**31:
        bad.append(str(recipe["seed"]))
    scale, before = 4 if recipe["method"] == "any" else 3, None
    for stage in recipe["stage"]:
        hparams = recipe["hparams"] | stage.get("hparams", {})
        if recipe["method"] == "one" and "scale" in hparams:
            bad.append("scale")
        scale = hparams.get("scale", scale)
        bad += schema_violations(stage)
        if type(scale) is not int or scale not in method.scales:
            bad.append(repr(scale))
        elif isinstance(stage["data"]["hr_patch_sizes"][0][0], int):
            bad += data_violations(stage, scale, method.min_side)
            if before not in (None, scale) and not stage.get("reinit"):
                bad.append(f"x{before}")
        before = scale
    return bad


def schema_violations(stage):
    batch, parts = stage["data"]["batch_size"], stage["grad_accum_steps"]
    length = stage.get("steps", stage.get("epochs"))
    counts = (batch, parts, length)
    bad = [str(value) for value in counts if not 0 < value < 2**31]
    warmup = stage["schedule"]["warmup_steps"]
    if not 0 <= warmup < 2**31:
        bad.append(str(warmup))
    if "ema" in stage and not 0 <= stage["ema"] < 1:
        bad.append(str(stage["ema"]))
    if not bad and batch % parts:
        bad.append("grad_accum_steps")
    if not bad and "steps" in stage and warmup >= length:
        bad.append(f"a warm-up of {warmup} steps")
    return bad


def data_violations(stage, scale, min_side):
    data = stage["data"]
    (h, w) = data["hr_patch_sizes"][0]
    if h % scale or w % scale or min(h, w) < scale * min_side:
        return [f"{h}x{w}"]
    fits = [max(h, w) // scale <= min(H // scale, W // scale) for H, W in HR_SIZES]
    if not all(fits) and (data["undersized"] == "error" or not any(fits)):
        return [f"{fits.count(False)} of 4 images"]
    stage["num_images"] = fits.count(True)
    if "epochs" in stage and stage["epochs"] * fits.count(True) > (2**31 - 1) * data["batch_size"]:
        return [f"{stage['epochs']} epochs"]
    return []


def check_plan(recipe, resolved, data):
    """Compare a recipe that the checks accept with independent arithmetic."""
    scale = 4 if data["method"] == "any" else 3
    for run, stage in zip(resolved.runs, data["stage"], strict=True):
        scale = (data["hparams"] | stage.get("hparams", {})).get("scale", scale)
        assert recipe.scale_at(run) == scale
        batch_size = stage["data"]["batch_size"]
        if "epochs" in stage:
            assert (
                batch_size * (run.stage.steps - 1)
                < stage["num_images"] * stage["epochs"]
                <= batch_size * run.stage.steps
            )
        t, decay = np.arange(min(run.stage.steps, 5000)), stage.get("ema", 0.0)
        decays = np.minimum(decay, (1 + t) / (10 + t)) if stage.get("ema_warmup") else 0 * t + decay
        if run.stage.steps <= 5000:
            share = np.prod(decays) if "ema" in stage else 0
            assert run.stage.ema_initial_share == pytest.approx(share, rel=1e-9, abs=1e-300)
        if batch_size > 100:
            continue
        (usable,) = usable_pairs(run.stage.data, scale)
        sizes = np.array([size for _, size in usable], np.int32)
        sampler = PatchSampler(
            data=run.stage.data,
            lr_sizes=sizes,
            dataset_lengths=[len(usable)],
            scale=scale,
            seed=recipe.seed,
        )
        spec = sampler.sample(0)
        assert [scale * side for side in spec.lr_patch_size] == stage["data"]["hr_patch_sizes"][0]
        h, w = spec.lr_patch_size
        assert len(spec.top) == batch_size
        assert (spec.top + h <= sizes[spec.image_index, 0]).all()
        assert (spec.left + w <= sizes[spec.image_index, 1]).all()


def check_drawn_recipes(image_dir, num_draws, seed):
    rng, num_valid = np.random.default_rng(seed), 0
    for _ in range(num_draws):
        data = draw(rng, image_dir)
        document = copy.deepcopy(data)
        bad = invalid_values(data)
        try:
            recipe = recipe_loader.parse(document)
            check_stages(recipe)
            resolved = train.resolve_epochs(recipe)
        except UserError as error:
            assert bad and any(value in str(error) for value in bad), (data, bad, error)
            assert error.rule and error.remedy
        else:
            assert not bad, (data, bad)
            check_plan(recipe, resolved, data)
            num_valid += 1
    assert 0.3 < num_valid / num_draws < 0.8, num_valid


@pytest.mark.usefixtures("_stub_methods")
def test_drawn_recipes_have_a_right_plan_or_an_error(image_dir):
    check_drawn_recipes(image_dir, 120, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("_stub_methods")
def test_drawn_recipes_have_a_right_plan_or_an_error_in_the_full_campaign(image_dir):
    check_drawn_recipes(image_dir, NUM_DRAWS, seed=1)


# --- what draws do not contain -------------------------------------------------------------------


def test_pmap_in_several_processes_is_refused_before_tracing(recipe_dict, monkeypatch):
    recipe_dict["parallel"] = "pmap"
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(DistributedError, match="2 processes"):
        check_stages(recipe_loader.parse(recipe_dict))


@pytest.mark.parametrize("key", ["init_from", "teacher"])
def test_checkpoint_of_another_scale_is_refused(tmp_path, recipe_dict, key):
    file = tmp_path / "x2.safetensors"
    metadata = checkpoint_io.make_metadata(
        "span", registry.get_method("span"), "train", {"channels": 4, "scale": 2}
    )
    checkpoint_io.write_safetensors(file, {"a": np.zeros(1, np.float32)}, metadata)
    second = recipe_dict["stage"][1]
    second[key] = {"checkpoint": str(file), "method": "span"}
    second["loss"] = {"l1": 1.0, "teacher_l1": 1.0} if key == "teacher" else {"l1": 1.0}
    with pytest.raises(RecipeError, match=f"{key} is a network for x2, .* for x4") as error:
        dry_run(recipe_loader.parse(recipe_dict))
    assert error.value.location == "stage 'second'"


@pytest.mark.parametrize("hparams", [{"channels": "x"}, {"channels": []}, {"channels": -1}])
def test_network_that_cannot_be_built_is_reported(recipe_dict, hparams):
    with pytest.raises(InvalidArgument, match="channels"):
        dry_run(recipe_loader.parse(recipe_dict | {"hparams": hparams}))


def test_network_that_cannot_run_is_reported(recipe_dict):
    """Six channels do not split in four, which only the call of the network finds."""
    recipe_dict |= {"method": "safmn_deep15", "hparams": {"channels": 6, "num_blocks": 1}}
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    with pytest.raises(RecipeError, match=r"'first' cannot be traced: .*Error") as error:
        dry_run(recipe_loader.parse(recipe_dict))
    assert "'channels': 6" in error.value.location


@pytest.mark.parametrize(
    "override",
    ["seed=" + "9" * 5000, "seed=0x" + "f" * 5000, "stage.0.repeat=1001", "stage.0.steps=9e9"],
)
def test_absurd_number_is_reported_in_a_few_lines(override):
    with pytest.raises(RecipeError) as error:
        recipe_loader.load("quick", [override])
    assert len(str(error.value)) < 2000 and error.value.remedy
