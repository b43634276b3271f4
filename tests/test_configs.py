"""Shipped recipes: headers, dry runs at full size, and short runs of reduced copies."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from esrjax import registry
from esrjax.data import image_io
from esrjax.nn import checkpoint_io
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict
from esrjax.training import recipe_loader, train
from esrjax.training.dry_run import dry_run
from esrjax.training.recipe import Data, InitFrom, Recipe, Schedule, Stage, TeacherConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.toml"))
NAMES = [file.stem for file in CONFIGS if "[[stage]]" in file.read_text()]  # not rules
OUR_RECIPES = {
    "quick",
    "spanv2_int8",
    "spanv2_large_batch",
    *(name for name in NAMES if name.endswith("_291")),
}
METHODS = [name for name in NAMES if name not in OUR_RECIPES and not name.startswith("smt_")]
# The recipes that compile fastest; the others take ten minutes together, most of it DWMamba and
# HAESR. Teachers, taps, pruning and adapters are in tests/training/test_train.py.
FAST = {"quick", "spanv2", "pds"}


def mark_slow_except(fast):
    slow = (pytest.mark.slow, pytest.mark.platform_lowering)
    marks = {name: () if name in fast else slow for name in NAMES}
    return [pytest.param(name, marks=marks[name]) for name in NAMES]


@pytest.fixture(autouse=True)
def _standard_dtype_promotion():
    """Optax computes float ** integer step, which strict dtype promotion rejects."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def _fast_compilation():
    """Disable most optimizations: only two steps run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", METHODS)
def test_header_has_the_psnr_of_the_organisers(name):
    text, method = (ROOT / "configs" / f"{name}.toml").read_text(), registry.get_method(name)
    match = re.search(r"Expected: ([\d.]+) / ([\d.]+) dB", text)
    assert match and [*map(float, match.groups())] == [
        method.reported["psnr_valid"],
        method.reported["psnr_test"],
    ]
    assert f"({method.team}, NTIRE 2026 team " in text and f"esrjax train {name} -o" in text
    assert recipe_loader.load(name).method == name and re.search(r"# Hardware: \S", text)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_listed_in_the_documentation(name):
    rows = (ROOT / "docs" / "training.md").read_text().splitlines()
    assert any(row.startswith("| `") and f"`{name}`" in row.split("|")[1] for row in rows)


def test_large_batch_recipe_is_scaled_from_the_small_one():
    """As many patches, a learning rate scaled by the square root, an EMA over as many patches."""
    small, large = recipe_loader.load("spanv2"), recipe_loader.load("spanv2_large_batch")
    for scaled, base in zip(large.stage, small.stage, strict=True):
        k = scaled.data.batch_size / base.data.batch_size
        assert scaled.steps * k == base.steps
        assert scaled.data.hr_patch_sizes == base.data.hr_patch_sizes
        learning_rate = base.optimizer.learning_rate * k**0.5
        assert scaled.optimizer == replace(base.optimizer, learning_rate=learning_rate)
        assert scaled.ema == pytest.approx(base.ema**k, abs=1e-3)
        restarts = [scaled.schedule.warmup_steps + step for step in scaled.schedule.restarts]
        assert [step * k for step in restarts] == list(base.schedule.restarts)


@pytest.mark.parametrize(
    "name", mark_slow_except(set(NAMES) - {"dwmamba", "haesr", "smt_hat", "smt_mambairv2"})
)
def test_dry_run_misses_only_datasets_and_checkpoints(name):
    """At full size, without array values: globs, taps, pruning and initial weights match."""
    for plan in dry_run(recipe_loader.load(name)):
        assert plan.num_trained > 0
        for line in plan.missing:
            assert re.match(r"dataset |(init_from|teacher): No such checkpoint", line)


# --- reduced copies --------------------------------------------------------------------------

STEPS = 2
# by which hyperparameters of a network are divided; others stay
DIVISORS = {
    "channels": 2,
    "tail_channels": 4,
    "num_blocks": 5,
    "depth": 5,
    "num_groups": 2,
    "num_heads": 2,
    "window_size": 4,
    "d_state": 4,
}


@pytest.fixture
def image_dir(tmp_path):
    """A folder of three images, larger than the patches of any reduced recipe."""
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        image_io.write_image(tmp_path / "images" / f"{index}.png", coarse.repeat(8, 0).repeat(8, 1))
    return tmp_path / "images"


@pytest.mark.usefixtures("_fast_compilation")
@pytest.mark.parametrize("name", mark_slow_except(FAST))
def test_two_steps_of_every_stage(tmp_path, image_dir, name):
    recipe, reports = small_recipe(recipe_loader.load(name), image_dir), []
    train.run(recipe, tmp_path / "run", on_report=reports.append)
    assert [report.stage for report in reports] == [run.name for run in recipe.runs]
    assert [report.step for report in reports] == [STEPS * (run.index + 1) for run in recipe.runs]
    image_io = sorted((tmp_path / "run" / "stages").iterdir())
    results = [
        checkpoint_io.read_checkpoint(file).state_dict for file in (*image_io, tmp_path / "run")
    ]
    assert len(image_io) == len(recipe.runs)
    assert all(np.isfinite(array).all() for result in results for array in result.values())
    for before, after in pairwise(results[:-1]):
        assert any(not np.array_equal(before.get(key), value) for key, value in after.items())


def small_recipe(recipe: Recipe, image_dir: Path) -> Recipe:
    """Return the recipe with two steps per stage, 1/32 of the batch and few pixels."""
    hparams = {**registry.get_method(recipe.method).default_hparams(), **recipe.hparams}
    stages = tuple(small_stage(stage, recipe.method, image_dir) for stage in recipe.stage)
    if recipe.method != "haesr":  # its channels are divided by 4 twice
        hparams = small_hparams(hparams)
    return replace(recipe, stage=stages, hparams=hparams)


def small_stage(stage: Stage, method: str, image_dir: Path) -> Stage:
    ratio = STEPS / (stage.steps or STEPS)
    validation = stage.validation
    return replace(
        stage,
        steps=STEPS,
        epochs=None,
        repeat=min(stage.repeat, 2),
        hparams=small_hparams(stage.hparams),
        loss={term: small_weight(weight, ratio) for term, weight in stage.loss.items()},
        schedule=small_schedule(stage.schedule, ratio),
        validation=validation and replace(validation, dataset=str(image_dir), every=STEPS),
        data=small_data(stage.data, registry.get_method(method).min_side, image_dir),
        init_from=small_init(stage.init_source, method, image_dir.parent),
        teacher=stage.teacher and small_teacher(stage.teacher, method, image_dir.parent),
    )


def small_hparams(hparams):
    """Return reduced hparams; channels are divisible by 2, 3 and 4, window sizes by 4."""
    small = {key: max(2, -(-hparams[key] // DIVISORS[key])) for key in DIVISORS if key in hparams}
    if "window_size" in small:
        small["window_size"] += -small["window_size"] % 4
    if "channels" in small:
        small["channels"] += -small["channels"] % 12
    return {**hparams, **small}


def small_weight(weight, ratio):
    if isinstance(weight, float):
        return weight
    return tuple((int(step * ratio), value) for step, value in weight)


def small_schedule(schedule: Schedule, ratio: float) -> Schedule:
    def scale_steps(steps):
        return tuple(sorted({max(1, int(step * ratio)) for step in steps}))

    restarts = scale_steps(schedule.restarts)
    return replace(
        schedule,
        warmup_steps=int(schedule.warmup_steps * ratio),
        restarts=restarts,
        restart_weights=schedule.restart_weights[: len(restarts) + 1],
        milestones=scale_steps(schedule.milestones),
        step_size=max(1, int(schedule.step_size * ratio)) if schedule.step_size else 0,
    )


def small_data(data: Data, min_side: int, image_dir: Path) -> Data:
    """Return patches of 1/16 of the side length, of at least `min_side` LR pixels."""
    sizes = tuple(
        tuple(4 * max(side // 64, min_side) for side in size) for size in data.hr_patch_sizes
    )
    batch_size = -(-data.batch_size // 32)
    return replace(data, datasets=(str(image_dir),), hr_patch_sizes=sizes, batch_size=batch_size)


def small_init(init, method: str, folder: Path):
    """Return the initial weights, with a small checkpoint in place of a checkpoint."""
    if not isinstance(init, InitFrom) or init.checkpoint is None:
        return init
    file, hparams = write_checkpoint(init.method or method, init.hparams, folder)
    return replace(init, checkpoint=file, hparams=hparams)


def small_teacher(teacher: TeacherConfig, method: str, folder: Path) -> TeacherConfig:
    """Return the teacher with a small checkpoint; SPAN replaces a method that is not installed."""
    teacher_method = teacher.method if teacher.method in registry.names() else "span"
    taps = {
        scaled_tap(student_path, method): scaled_tap(
            teacher_path, method if teacher.stage else teacher_method
        )
        for student_path, teacher_path in teacher.taps.items()
    }
    if teacher.stage is not None:
        return replace(teacher, taps=taps)
    file, hparams = write_checkpoint(teacher_method, teacher.hparams, folder)
    return replace(teacher, method=teacher_method, checkpoint=file, hparams=hparams, taps=taps)


def scaled_tap(path: str, method: str) -> str:
    """Return the path of the block at the same relative depth in the small network."""
    num_blocks = registry.get_method(method).default_hparams().get("num_blocks")
    if not num_blocks:
        return path
    small = small_hparams({"num_blocks": num_blocks})["num_blocks"]
    return re.sub(r"(?<=blocks\.)\d+", lambda i: str(int(i[0]) * small // num_blocks), path)


def write_checkpoint(name: str, hparams, folder: Path):
    """Write small random weights in the form of the published ones; return path and hparams."""
    method = registry.get_method(name)
    forms = (weights.form for weights in method.weights.values() if weights.hparams == hparams)
    form = next(forms, "deploy")
    hparams = small_hparams({**method.default_hparams(), **hparams})
    net = method.build(**hparams)
    net = deploy(net) if form == "deploy" else net
    metadata = checkpoint_io.make_metadata(name, method, form, hparams)
    file = folder / f"{name}.safetensors"
    checkpoint_io.write_safetensors(file, to_state_dict(net, KeyMap(method.torch_names)), metadata)
    return str(file), hparams
