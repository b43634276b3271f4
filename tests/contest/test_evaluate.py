"""From pictures to a result that can be ranked."""

import json

import numpy as np
import pytest

from esrjax import load, registry
from esrjax.contest import record
from esrjax.contest.costs import costs
from esrjax.contest.evaluate import NotRankable, record_all, require_recordable
from esrjax.contest.record import UnwritableResults
from esrjax.method import Ensemble, Member
from esrjax.model import BadEnsemble, PictureTooSmall
from esrjax.network.cost import cost
from esrjax.pictures.files import write
from esrjax.pictures.score import score_each
from esrjax.pictures.sets import pairs
from esrjax.pictures.specs import NTIRE, Y

OFFICIAL = {"SPAN": "team00_SPAN.pth", "SPANV2": "team22_spanv2_c2.pth"}
KEYS = {"ntire": "rgb", "y": "y"}  # our specs -> how the reference file calls them


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 36, 3), np.uint8)
        write(tmp_path / f"Noise/{name}.png", noise)
    return tmp_path / "Noise"


@pytest.mark.parametrize("data", ["Set5", "Set14"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_picture_scores_what_the_official_code_gave(reference, name, data):
    held = json.loads((reference / "protocol/span_reference.json").read_text())
    wanted = held["results"][name][data]
    net = load(name.lower(), reference / "weights" / OFFICIAL[name])
    found = score_each(net, pairs(reference / "data" / data), [NTIRE, Y])
    for scores in found:
        key = KEYS[scores.spec]
        assert set(scores.images) == set(wanted["images"])
        for image, quality in scores.images.items():
            theirs = wanted["images"][image]
            assert quality.psnr == pytest.approx(theirs[f"psnr_{key}"], abs=1e-3)
            assert quality.ssim == pytest.approx(theirs[f"ssim_{key}"], abs=1e-4)
        assert scores.mean.psnr == pytest.approx(wanted["average"][f"psnr_{key}"], abs=1e-3)
        assert scores.mean.ssim == pytest.approx(wanted["average"][f"ssim_{key}"], abs=1e-4)


def test_eval_gives_scores_by_picture(esrjax, crumbs, pictures):
    found = esrjax("eval", "crumb", "--data", pictures, "--spec", "y", "--json").json
    assert list(found) == ["method", "spec", "mean", "images"]
    assert (found["method"], found["spec"], list(found["images"])) == ("crumb", "y", ["a", "b"])
    both = [found["images"][name]["psnr"] for name in "ab"]
    assert found["mean"]["psnr"] == pytest.approx(sum(both) / 2)


def test_several_methods_stand_side_by_side(esrjax, crumbs, pictures):
    words = ["crumb", "loaf", "crumbs", "--data", pictures]
    found = esrjax("eval", *words, "--json").json
    assert [each["method"] for each in found] == ["crumb", "loaf", "crumbs"]
    table = esrjax("eval", *words).out.splitlines()
    assert table[0] == "PSNR [dB] / SSIM under the metric spec 'ntire'"
    assert table[2].split() == "| picture | crumb | loaf | crumbs |".split()
    mean = found[0]["mean"]
    assert f"{mean['psnr']:.4f} / {mean['ssim']:.4f}" in table[-1]
    latex = esrjax("eval", *words, "--format", "latex").out
    assert latex.startswith("% PSNR") and rf"{mean['psnr']:.4f} / " in latex


def test_a_result_holds_quality_cost_runtime_and_whose_weights(esrjax, crumbs, pictures, tmp_path):
    said = esrjax("eval", "crumb", "--data", pictures, "-o", tmp_path / "results", "--json")
    path = tmp_path / "results/crumb.json"
    assert said.err == f"{path}\n"
    result = record.load(path)
    net = load("crumb")
    assert (result.method, result.team, result.spec) == ("crumb", "Bakery", "ntire")
    assert result.weights_sha256 == net.checkpoint.sha256
    assert result.quality["Noise"].psnr == pytest.approx(said.json["mean"]["psnr"])
    assert result.quality["Noise"].pictures == 2
    assert (result.params, result.macs, result.convs) == (30, 27 * 256**2, 1)
    assert result.runtime.shape == (1, 256, 256, 3) and result.runtime.median_ms > 0
    assert set(result.versions) >= {"esrjax", "jax"}
    assert result.quality["Noise"].each == pytest.approx(
        {name: quality["psnr"] for name, quality in said.json["images"].items()}
    )
    beside = result.baseline
    assert beside and (beside.method, beside.params, beside.macs) == (
        "span",
        150_688,
        9_833_807_872,
    )
    assert beside.runtime.conditions == result.runtime.conditions
    assert result.runtime.median_ms < beside.runtime.median_ms
    assert result.harness == {}


def test_the_harness_is_recorded_beside_the_median(esrjax, crumbs, pictures, tmp_path):
    results = tmp_path / "results"
    said = esrjax(
        "eval", "crumb", "loaf", "--data", pictures, "-o", results, "--harness", "--alone"
    )
    result = record.load(results / "crumb.json")
    run = result.harness["Noise"]
    assert (list(run.each), run.shapes, run.warm_up, result.baseline) == (["a", "b"], 1, 0, None)
    runtimes = said.out.split("Runtime on ")[1].splitlines()
    assert [line.split()[1] for line in runtimes[4:6]] == ["crumb", "loaf"]
    assert f"{result.runtime.median_ms:.3f}" in runtimes[4] and f"{run.mean_ms:.3f}" in runtimes[4]
    esrjax("eval", "crumb", "--data", pictures, "-o", results, "--alone")
    assert record.load(results / "crumb.json").harness == {"Noise": run}
    ranked = esrjax("rank", results, "--harness", "--without-floors", "--base", "published")
    assert ranked.code == 2 and "loaf" not in ranked.out


def test_the_set_is_called_by_its_folder_wherever_one_stands(esrjax, crumbs, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    esrjax("eval", "crumb", "--data", ".", "-o", "../results", "--alone")
    assert list(record.load(pictures.parent / "results/crumb.json").quality) == ["Noise"]


def test_sets_gather_in_one_result_as_long_as_weights_and_metric_are_the_same(
    esrjax, crumbs, pictures, tmp_path
):
    words = ["eval", "crumb", "--alone", "-o", tmp_path / "results"]
    for name in ("valid", "test"):
        (tmp_path / name).symlink_to(pictures)
        assert esrjax(*words, "--data", tmp_path / name).code == 0
    assert list(record.load(tmp_path / "results/crumb.json").quality) == ["valid", "test"]
    esrjax(*words, "--data", tmp_path / "test", "--spec", "y")
    assert list(record.load(tmp_path / "results/crumb.json").quality) == ["test"]


def test_nothing_is_measured_that_cannot_be_recorded(crumbs, tmp_path):
    single, fusion = load("crumb"), load("crumbs")
    assert require_recordable([single], tmp_path / "new/folder") == [single]
    assert not (tmp_path / "new").exists()
    with pytest.raises(NotRankable, match="evaluate its members: crumb, loaf"):
        require_recordable([single, fusion], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableResults, match="results go into a folder"):
        record_all([single], [], "Noise", tmp_path / "file/results")


def test_an_ensemble_costs_its_members_as_often_as_they_run(esrjax, crumbs):
    crumb, both = costs("crumb"), costs("crumbs")
    assert crumb == cost(load("crumb").net)
    assert (both.params, both.macs, both.convs) == (33, 8 * crumb.macs, 8)
    assert both.activations == 8 * crumb.activations
    assert sum(piece.macs for piece in both.work) == both.macs_honest
    assert {piece.path for piece in both.work} == {"crumb.filter"}
    found = esrjax("cost", "crumbs", "--json").json
    assert found == {
        "method": "crumbs",
        "params": 33,
        "params_honest": 33,
        "macs": 8 * 27 * 256**2,
        "macs_honest": 8 * 27 * 256**2,
        "activations": 8 * 3 * 256**2,
        "convs": 8,
    }


def test_windows_and_mirrors_are_counted_at_the_sizes_that_are_run(monkeypatch, crumbs):
    how = Member(windows={16: 1.0, 30: 1.0, 40: 1.0}, mirrored=8)  # cut in 4, and twice not at all
    mix = Ensemble(members={"crumb": how}, team="us", paper="none", license="MIT")
    known = registry.method
    monkeypatch.setattr(registry, "method", lambda name: mix if name == "mix" else known(name))
    counted = costs("mix", side=24)
    assert (counted.params, counted.convs) == (30, 5)
    assert counted.macs == 27 * (4 * 16**2 + 32**2)  # 13 pixels grow to 16, 24 to 32


def test_costs_are_asked_of_pictures_and_files_that_fit(crumbs):
    with pytest.raises(PictureTooSmall):
        costs("crumbs", side=5)
    with pytest.raises(BadEnsemble, match="has no weights or sizes of its own"):
        costs("crumbs", sizes={"side": 5})
    assert costs("crumb", sizes={"side": 5}).params == 3 * 25 + 3
