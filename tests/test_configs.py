"""Every shipped recipe: what it names is there, and all its stages run, made small."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest

from esrjax import registry
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.pictures import files
from esrjax.training import loop
from esrjax.training import recipe as recipes
from esrjax.training.recipe import Data, Recipe, Schedule, Stage, Start, Teacher
from esrjax.training.rehearsal import rehearse

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.toml"))
NAMES = [file.stem for file in CONFIGS if file.stem != "ntire2026"]  # which is the rules
OURS = {"quick", "spanv2_large_batch", *(name for name in NAMES if name.endswith("_291"))}
METHODS = [name for name in NAMES if name not in OURS and not name.startswith("smt_")]
# Starts, teachers of both kinds, pruning, adapters, taps and epochs, by what compiles soonest; the
# others take nine minutes together, most of them DWMamba and HAESR.
LIGHT = {"quick", "spanv2", "pds", "pkdsr", "safmn_deep15"}


def slow_but(light):
    marks = {name: () if name in light else pytest.mark.slow for name in NAMES}
    return [pytest.param(name, marks=marks[name]) for name in NAMES]


@pytest.fixture(autouse=True)
def _as_optax_promotes():
    """optax raises floats to the power of its integer step, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def _compiled_in_haste():
    """Two steps are not worth a good program."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", METHODS)
def test_the_header_says_what_the_organisers_measured(name):
    text, method = (ROOT / "configs" / f"{name}.toml").read_text(), registry.plain(name)
    said = re.search(r"Expected: ([\d.]+) / ([\d.]+) dB", text)
    assert said and [*map(float, said.groups())] == [
        method.reported["psnr_valid"],
        method.reported["psnr_test"],
    ]
    assert f"({method.team}, NTIRE 2026 team " in text and f"esrjax train {name} -o" in text
    assert recipes.load(name).method == name and re.search(r"# Hardware: \S", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_in_the_list_of_the_manual(name):
    rows = (ROOT / "docs" / "training.md").read_text().splitlines()
    assert any(row.startswith("| `") and f"`{name}`" in row.split("|")[1] for row in rows)


def test_the_large_batch_sees_what_the_small_one_sees():
    """As many patches; the rate grows by the square root, and the average looks as far back."""
    small, large = recipes.load("spanv2"), recipes.load("spanv2_large_batch")
    for ours, theirs in zip(large.stage, small.stage, strict=True):
        times = ours.data.batch / theirs.data.batch
        assert ours.steps * times == theirs.steps and ours.data.patches == theirs.data.patches
        assert ours.optimiser == replace(theirs.optimiser, lr=theirs.optimiser.lr * times**0.5)
        assert ours.ema == pytest.approx(theirs.ema**times, abs=1e-3)
        restarts = [ours.schedule.warmup_steps + step for step in ours.schedule.restarts]
        assert [step * times for step in restarts] == list(theirs.schedule.restarts)


@pytest.mark.parametrize(
    "name", slow_but(set(NAMES) - {"dwmamba", "haesr", "smt_hat", "smt_mambairv2"})
)
def test_nothing_is_missing_but_sets_and_weights(name):
    """At full size and without numbers: globs, taps, pruning and starts fit their networks."""
    for each in rehearse(recipes.load(name)):
        assert each.trained > 0
        for line in each.missing:
            assert re.match(r"set .*there is no set|(start|teacher): there are no weights", line)


# --- made small ------------------------------------------------------------------------------

STEPS = 2
# of a network there is less by so many times; what is not named stays
SHARES = {"channels": 2, "tail": 4, "blocks": 5, "groups": 2, "heads": 2, "window": 4, "states": 4}


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures, larger than any patch that is left."""
    draw = np.random.default_rng(0)
    for index in range(3):
        coarse = draw.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        files.write(tmp_path / "pictures" / f"{index}.png", coarse.repeat(8, 0).repeat(8, 1))
    return tmp_path / "pictures"


@pytest.mark.usefixtures("_compiled_in_haste")
@pytest.mark.parametrize("name", slow_but(LIGHT))
def test_two_steps_of_every_stage(tmp_path, pictures, name):
    recipe, told = small(recipes.load(name), pictures), []
    loop.run(recipe, tmp_path / "run", tell=told.append)
    assert [report.stage for report in told] == [run.name for run in recipe.runs]
    assert [report.step for report in told] == [STEPS * (run.index + 1) for run in recipe.runs]
    files = sorted((tmp_path / "run" / "stages").iterdir())
    left = [archive.read(file).tensors for file in (*files, tmp_path / "run")]
    assert len(files) == len(recipe.runs)
    assert all(np.isfinite(value).all() for held in left for value in held.values())
    for before, after in pairwise(left[:-1]):
        assert any(not np.array_equal(before.get(key), value) for key, value in after.items())


def small(recipe: Recipe, pictures: Path) -> Recipe:
    """The recipe, short: two steps of every stage, with 1/32 of the batch and few pixels."""
    sizes = {**registry.plain(recipe.method).sizes(), **recipe.sizes}
    stages = tuple(small_stage(stage, recipe.method, pictures) for stage in recipe.stage)
    less = (
        sizes if recipe.method == "haesr" else small_sizes(sizes)
    )  # quarters of quarters: none left
    return replace(recipe, stage=stages, sizes=less)


def small_stage(stage: Stage, method: str, pictures: Path) -> Stage:
    share = STEPS / (stage.steps or STEPS)
    return replace(
        stage,
        steps=STEPS,
        epochs=None,
        repeat=min(stage.repeat, 2),
        network=small_sizes(stage.network),
        loss={term: small_weight(weight, share) for term, weight in stage.loss.items()},
        schedule=small_schedule(stage.schedule, share),
        validate=stage.validate and replace(stage.validate, set=str(pictures), every=STEPS),
        data=small_data(stage.data, registry.plain(method).min_side, pictures),
        start=small_start(stage.origin, method, pictures.parent),
        teacher=stage.teacher and small_teacher(stage.teacher, method, pictures.parent),
    )


def small_sizes(sizes):
    """The arguments of a network; channels are shared by 2, 3 and 4, sides of windows by 4."""
    less = {key: max(2, -(-sizes[key] // SHARES[key])) for key in SHARES if key in sizes}
    if "window" in less:
        less["window"] += -less["window"] % 4
    if "channels" in less:
        less["channels"] += -less["channels"] % 12
    return {**sizes, **less}


def small_weight(weight, share):
    if isinstance(weight, float):
        return weight
    return tuple((int(step * share), value) for step, value in weight)


def small_schedule(schedule: Schedule, share: float) -> Schedule:
    def sooner(steps):
        return tuple(sorted({max(1, int(step * share)) for step in steps}))

    restarts = sooner(schedule.restarts)
    return replace(
        schedule,
        warmup_steps=int(schedule.warmup_steps * share),
        restarts=restarts,
        restart_weights=schedule.restart_weights[: len(restarts) + 1],
        milestones=sooner(schedule.milestones),
        every=max(1, int(schedule.every * share)) if schedule.every else 0,
    )


def small_data(data: Data, least: int, pictures: Path) -> Data:
    """Patches of 1/16 of the side, of no less than `least` LR pixels."""
    shapes = tuple(tuple(4 * max(side // 64, least) for side in shape) for shape in data.patches)
    return replace(data, sets=(str(pictures),), patches=shapes, batch=-(-data.batch // 32))


def small_start(start, method: str, folder: Path):
    """The same, of a small file where it is a file."""
    if not isinstance(start, Start) or start.file is None:
        return start
    file, sizes = written(start.method or method, start.sizes, folder)
    return replace(start, file=file, sizes=sizes)


def small_teacher(teacher: Teacher, method: str, folder: Path) -> Teacher:
    """The same, with a small file; SPAN stands in for a method that is not there."""
    known = teacher.method if teacher.method in registry.names() else "span"
    taps = {
        small_part(ours, method): small_part(theirs, method if teacher.stage else known)
        for ours, theirs in teacher.taps.items()
    }
    if teacher.stage is not None:
        return replace(teacher, taps=taps)
    file, sizes = written(known, teacher.sizes, folder)
    return replace(teacher, method=known, weights=file, sizes=sizes, taps=taps)


def small_part(path: str, method: str) -> str:
    """The block as deep in the small network as `path` is in the whole one."""
    of = registry.plain(method).sizes().get("blocks")
    less = of and small_sizes({"blocks": of})["blocks"]
    return re.sub(r"(?<=blocks\.)\d+", lambda i: str(int(i[0]) * less // of), path) if of else path


def written(name: str, said, folder: Path):
    """A file of fresh weights in the form in which the method's own were published; its sizes."""
    method = registry.plain(name)
    forms = (each.form for each in method.weights.values() if each.sizes == said)
    form = next(forms, "deploy")
    sizes = small_sizes({**method.sizes(), **said})
    net = method.build(**sizes)
    net = deploy(net) if form == "deploy" else net
    manifest = archive.describe(name, method, form, sizes)
    file = folder / f"{name}.safetensors"
    archive.write_safetensors(file, tensors(net, Naming(method.torch_names)), manifest)
    return str(file), sizes
