"""Every shipped recipe: what it names is there, and all its stages run, made small."""

import math
import re
from dataclasses import replace
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
from esrjax.training.recipe import Recipe, Schedule, Stage, Start
from esrjax.training.rehearsal import rehearse

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.toml"))
NAMES = [file.stem for file in CONFIGS if file.stem != "ntire2026"]  # which is the rules
METHODS = [name for name in NAMES if name != "quick"]
HEAVY = {"dwmamba"}  # half a minute and more: a teacher of 24 blocks


def heavy(names):
    marks = {name: pytest.mark.slow for name in HEAVY}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


@pytest.fixture(autouse=True)
def _as_optax_promotes():
    """optax raises floats to the power of its integer step, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


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
    assert f"| `{name}` |" in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("name", heavy(NAMES))
def test_nothing_is_missing_but_sets_and_weights(name):
    """At full size and without numbers: globs, taps, pruning and starts fit their networks."""
    for each in rehearse(recipes.load(name)):
        assert each.trained > 0
        for line in each.missing:
            assert re.match(r"set .*there is no set|(start|teacher): there are no weights", line)


# --- made small ------------------------------------------------------------------------------

STEPS = 2
HEADS = {6: 3, 4: 2}


@pytest.fixture
def pictures(tmp_path):
    """A folder of three HR pictures, as large as the largest patch that is left."""
    draw = np.random.default_rng(0)
    for index in range(3):
        coarse = draw.integers(0, 256, (12, 12, 3)).astype(np.uint8)
        files.write(tmp_path / "pictures" / f"{index}.png", coarse.repeat(8, 0).repeat(8, 1))
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", heavy(NAMES))
def test_two_steps_of_every_stage(tmp_path, pictures, name):
    recipe, told = small(recipes.load(name), pictures), []
    loop.run(recipe, tmp_path / "run", tell=told.append)
    assert [report.stage for report in told] == [run.name for run in recipe.runs]
    assert all(math.isfinite(report.loss) for report in told) and recipe.steps == told[-1].step
    left = [archive.read(file).tensors for file in sorted((tmp_path / "run").glob("*/*.safe*"))]
    assert len(left) == len(recipe.runs)
    for held in left:
        assert all(np.isfinite(value).all() for value in held.values())
    for before, after in zip(left, left[1:], strict=False):
        assert any(not np.array_equal(before.get(key), after[key]) for key in after)


def small(recipe: Recipe, pictures: Path) -> Recipe:
    """The recipe at 1/32: two steps of all stages, few channels, blocks and pixels."""
    method = registry.plain(recipe.method)
    stages = [small_stage(stage, recipe.method, pictures) for stage in recipe.stage]
    return replace(
        recipe, stage=tuple(stages), sizes=small_sizes({**method.sizes(), **recipe.sizes})
    )


def small_stage(stage: Stage, method: str, pictures: Path) -> Stage:
    least = small_sizes({"window": registry.plain(method).min_side})["window"]
    stage = replace(
        stage,
        steps=STEPS,
        epochs=None,
        repeat=min(stage.repeat, 2),
        network=small_sizes(stage.network),
        loss={term: small_weight(weight) for term, weight in stage.loss.items()},
        schedule=small_schedule(stage.schedule, stage.steps or 1),
        data=replace(
            stage.data,
            sets=(str(pictures),),
            batch=-(-stage.data.batch // 32) * stage.accumulate,
            patches=tuple(tuple(4 * max(n // 64, least) for n in s) for s in stage.data.patches),
        ),
    )
    return small_teacher(small_start(stage, method, pictures.parent), pictures.parent)


def small_sizes(sizes):
    """The arguments of a network, fewer of each; what all networks have in common stays."""
    shares = {"channels": 4, "tail": 4, "blocks": 5, "groups": 4, "heads": 2, "window": 4}
    shares |= {"states": 4, "kinds": 8, "rank": 8}
    return {
        key: value if key not in shares else -(-value // shares[key])
        for key, value in sizes.items()
    }
