"""Where the weights of a stage come from."""

import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network import archive
from esrjax.network.lora import LoRAConv2d
from esrjax.network.naming import Naming
from esrjax.network.weights import leaves, tensors
from esrjax.training import origin
from esrjax.training import recipe as recipes
from esrjax.training.files import WeightsNotFound
from esrjax.training.origin import Held
from esrjax.training.outcome import Outcomes, named
from esrjax.training.rehearsal import rehearse

SMALL = {"channels": 4, "tail": 6}


@pytest.fixture
def recipe(said):
    """Two stages of PKDSR; `change` says what the second one says besides."""

    def change(**second):
        both = [said["stage"][0], said["stage"][1] | second]
        return recipes.parse(said | {"method": "pkdsr", "sizes": SMALL, "stage": both})

    return change


def begun(recipe, left=None):
    """What the second stage begins with."""
    return origin.begin(recipe, recipe.runs[1], lambda name: left)


def held(method="pkdsr", form="deploy", sizes=SMALL, seed=7):
    net = registry.plain(method).build(seed=seed, **sizes)
    one = Held(method=method, net=net, form="train", sizes=sizes)
    return one.deployed() if form == "deploy" else one


def values(net):
    return {path: np.asarray(leaf[...]) for path, leaf in leaves(net)}


def same(ours, theirs, paths=None):
    assert ours.keys() == theirs.keys()
    for path in paths or ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


def test_previous_goes_on_with_what_was_left(recipe):
    left = held(form="train")
    after = begun(recipe(), left)
    assert after.form == "train"
    same(values(after.net), values(left.net))


def test_deploy_fuses_first(recipe):
    left = held(form="train")
    after = begun(recipe(form="deploy"), left)
    assert after.form == "deploy"
    same(values(after.net), values(left.deployed().net))


def test_a_file_of_another_method_fills_what_is_not_fresh(recipe, tmp_path):
    wide = held("spanf", sizes={"channels": 4, "tail": 8})
    file = tmp_path / "spanf.safetensors"
    spanf = registry.plain("spanf")
    said = archive.describe("spanf", spanf, "deploy", wide.sizes)
    archive.write_safetensors(file, tensors(wide.net, Naming(spanf.torch_names)), said)
    start = {"file": str(file), "method": "spanf"}
    after = begun(recipe(start=start, fresh=["conv_cat.*", "conv_2.*"]))
    ours, theirs = values(after.net), values(wide.net)
    assert ours["conv_cat.weight"].shape[-1] == 6 and after.form == "deploy"
    for path in ours.keys() - {p for p in ours if p.startswith(("conv_cat.", "conv_2."))}:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_a_narrower_network_keeps_the_first_channels(recipe):
    left = held()
    after = begun(recipe(network={"tail": 5}, prune={"keep": "first"}), left)
    assert after.sizes == {"channels": 4, "tail": 5}
    ours, theirs = values(after.net), values(left.net)
    np.testing.assert_array_equal(ours["conv_cat.weight"], theirs["conv_cat.weight"][..., :5])
    np.testing.assert_array_equal(ours["conv_2.weight"], theirs["conv_2.weight"][..., :5, :])


def test_another_size_without_prune_or_fresh_is_an_error(recipe):
    with pytest.raises(origin.BadStart) as error:
        begun(recipe(network={"tail": 5}), held())
    text = str(error.value)
    assert "conv_cat.weight is (1, 1, 56, 6) in the start and (1, 1, 56, 5) here" in text
    assert "narrow them with prune, or name with fresh" in text


def test_a_glob_of_fresh_matches_something(recipe):
    with pytest.raises(origin.BadStart, match=r"'conv_cut\.\*' match no weight"):
        begun(recipe(fresh=["conv_cut.*"]), held())


def test_adapters_stay_while_stages_agree_and_are_merged_when_not(recipe):
    lora = {"rank": 2, "alpha": 2.0, "where": ["block_2.*"]}
    first = begun(recipe(lora=lora), held())
    adapted = [part for _, part in nnx.iter_modules(first.net) if isinstance(part, LoRAConv2d)]
    assert len(adapted) == 3
    for part in adapted:
        part.lora_B.set_value(part.lora_B[...] + 0.1)
    assert begun(recipe(lora=lora), first).net is first.net
    merged = begun(recipe(), first)
    assert merged.lora is None
    assert not any(isinstance(part, LoRAConv2d) for _, part in nnx.iter_modules(merged.net))
    kernel = values(merged.net)["block_2.c1.weight"]
    assert any(np.array_equal(kernel, part.kernel()) for part in adapted)


def test_what_a_stage_leaves_is_read_back_bit_for_bit(recipe, tmp_path):
    said = recipe(lora={"rank": 2, "alpha": 2.0, "where": ["block_2.*"]})
    left, run = begun(said, held()), said.runs[1]
    outcomes = Outcomes(tmp_path, said)
    assert not outcomes.has(run)
    outcomes.save(run, left)
    back = outcomes.load(run)
    assert outcomes.has(run) and (back.form, back.lora) == (left.form, left.lora)
    same(values(back.net), values(left.net))


def test_names_mean_the_last_run_of_a_stage(said):
    both = said | {"repeat": [{"stages": ["first", "second"], "times": 2}]}
    runs = recipes.parse(both).runs
    assert [run.name for run in runs] == ["first 1/2", "second 1/2", "first 2/2", "second 2/2"]
    assert named(runs, 3, "first").index == 2 and named(runs, 3, None).index == 2
    assert runs[0].stage.start == "new" and runs[2].stage.start == "previous"


def test_weights_that_are_not_there_are_told_with_where_they_were_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    with pytest.raises(WeightsNotFound) as error:
        origin.opened("span", "nothing.pth", {})
    assert "no weights 'nothing.pth'" in str(error.value) and str(tmp_path) in str(error.value)


def test_a_rehearsal_knows_shapes_rules_and_what_is_missing(recipe):
    said = recipe(
        start={"file": "nowhere.pth", "method": "spanf"},
        network={"tail": 5},
        prune={"keep": "l1"},
        optimiser={"name": "muadamw", "lr": 1e-3, "muon_lr": 1e-2},
        freeze=["block_1.*"],
        teacher={"stage": "first"},
        loss={"l1": 1.0, "teacher_l1": 1.0},
    )
    first, second = rehearse(said)
    assert second.missing == ("start: there are no weights 'nowhere.pth'",)
    assert first.form == "train" and second.sizes["tail"] == 5
    assert second.leaves["conv_cat.weight"] == ((1, 1, 56, 5), "muon")
    assert second.leaves["conv_cat.bias"] == ((5,), "adamw")
    assert not any(path.startswith("block_1.") for path in second.leaves) and second.frozen
    assert set(first.step.memory) and first.step.macs > 0


def test_a_rehearsal_finds_what_cannot_work(recipe):
    with pytest.raises(origin.BadStart):
        rehearse(recipe(network={"tail": 5}))
    with pytest.raises(Exception, match="no part 'blok_1' runs"):
        rehearse(
            recipe(
                teacher={"stage": "first", "taps": {"blok_1": "block_2"}},
                loss={"teacher_features": 1.0},
            )
        )
