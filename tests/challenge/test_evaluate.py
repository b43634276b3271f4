"""Evaluation: scores against the official code's, and result files that can be ranked."""

import json
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import load, registry
from esrjax.challenge import evaluate, record, rules
from esrjax.challenge.evaluate import check_rankable, method_cost, write_results
from esrjax.data.datasets import list_folder_pairs
from esrjax.data.image_io import write_image
from esrjax.errors import ImageTooSmall, InvalidArgument, RankingError, UnwritableFile
from esrjax.evaluation.metrics import NTIRE, Y
from esrjax.evaluation.score import score_with_specs
from esrjax.method import Ensemble, Member
from esrjax.nn.cost import cost

OFFICIAL = {"SPAN": "team00_SPAN.pth", "SPANV2": "team22_spanv2_c2.pth"}
REFERENCE_KEYS = {"ntire": "rgb", "y": "y"}  # metric spec -> its name in the reference file


@pytest.fixture
def noise_dataset(tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 36, 3), np.uint8)
        write_image(tmp_path / f"Noise/{name}.png", noise)
    return tmp_path / "Noise"


@pytest.mark.parametrize("data", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OFFICIAL)
def test_scores_of_every_image_are_those_of_the_official_code(reference, name, data):
    content = json.loads((reference / "protocol/span_reference.json").read_text())
    expected = content["results"][name][data]
    model = load(name.lower(), reference / "weights" / OFFICIAL[name])
    pairs = list_folder_pairs(reference / "data" / data)
    for scores in score_with_specs(model, pairs, [NTIRE, Y]):
        key = REFERENCE_KEYS[scores.spec]
        assert set(scores.images) == set(expected["images"])
        for image, metrics in scores.images.items():
            official = expected["images"][image]
            assert metrics.psnr == pytest.approx(official[f"psnr_{key}"], abs=1e-3)
            assert metrics.ssim == pytest.approx(official[f"ssim_{key}"], abs=1e-4)
        assert scores.mean.psnr == pytest.approx(expected["average"][f"psnr_{key}"], abs=1e-3)
        assert scores.mean.ssim == pytest.approx(expected["average"][f"ssim_{key}"], abs=1e-4)


def test_eval_reports_scores_per_image(esrjax, crumbs, noise_dataset):
    scores = esrjax("eval", "crumb", "--data", noise_dataset, "--spec", "y", "--json").json
    names = ["method", "label", "dataset", "weights_origin", "weights_sha256", "lr_source"]
    assert list(scores)[:10] == [*names, "images_sha256", "spec", "mean", "images"]
    assert scores["lr_source"] == "bicubic from HR"
    assert (scores["label"], scores["dataset"], scores["weights_origin"]) == (
        "crumb",
        "Noise",
        "shipped",
    )
    assert (scores["method"], scores["spec"], list(scores["images"])) == ("crumb", "y", ["a", "b"])
    psnrs = [scores["images"][name]["psnr"] for name in "ab"]
    assert scores["mean"]["psnr"] == pytest.approx(sum(psnrs) / 2)


def test_several_methods_share_one_table(esrjax, crumbs, noise_dataset):
    args = ["crumb", "loaf", "crumbs", "--data", noise_dataset]
    scores = esrjax("eval", *args, "--json").json
    assert [method["method"] for method in scores] == ["crumb", "loaf", "crumbs"]
    table = esrjax("eval", *args).out.splitlines()
    assert "PSNR" in table[0] and "SSIM" in table[0] and "'ntire'" in table[0]
    assert table[2].split() == "| method | weights | Noise (2) |".split()
    mean = scores[0]["mean"]
    text = f"{mean['psnr']:.4f} / {mean['ssim']:.4f}"
    assert table[4].split()[1:4] == ["crumb", "|", "shipped"] and text in table[4]
    assert [line.split()[1] for line in table[4:]] == ["crumb", "loaf", "crumbs"]
    latex = esrjax("eval", *args, "--format", "latex").out
    assert latex.startswith("% PSNR") and rf"crumb & shipped & {text} \\" in latex
    images = esrjax("eval", *args, "--per-image").out.split("\n\n")[-1].splitlines()
    assert images[0].split() == "| image | crumb | loaf | crumbs |".split()
    assert images[-1].startswith("| mean ") and text in images[-1]


def test_result_has_quality_cost_runtime_and_weights_hash(esrjax, crumbs, noise_dataset, tmp_path):
    output = esrjax("eval", "crumb", "--data", noise_dataset, "-o", tmp_path / "results", "--json")
    path = tmp_path / "results/crumb.json"
    assert output.err.splitlines() == ["Noise: LR: bicubic from HR", str(path)]
    result = record.load_result(path)
    model = load("crumb")
    assert (result.method, result.team, result.spec) == ("crumb", "Bakery", "ntire")
    assert result.weights_sha256 == model.checkpoint.sha256
    assert result.quality["Noise"].psnr == pytest.approx(output.json["mean"]["psnr"])
    assert result.quality["Noise"].num_images == 2
    assert (result.params, result.macs, result.convs) == (30, 27 * 256**2, 1)
    assert result.runtime.shape == (1, 256, 256, 3) and result.runtime.median_ms > 0
    assert set(result.versions) >= {"esrjax", "jax"}
    assert result.quality["Noise"].psnr_per_image == pytest.approx(
        {name: metrics["psnr"] for name, metrics in output.json["images"].items()}
    )
    baseline = result.baseline
    assert baseline and (baseline.method, baseline.params, baseline.macs) == (
        "span",
        150_688,
        9_833_807_872,
    )
    assert baseline.runtime.conditions == result.runtime.conditions
    assert result.runtime.median_ms < baseline.runtime.median_ms
    assert result.protocol_timing == {}


def test_protocol_timing_is_recorded_in_addition_to_the_median(
    esrjax, crumbs, noise_dataset, tmp_path
):
    results = tmp_path / "results"
    options = ["--data", noise_dataset, "-o", results, "--no-baseline"]
    output = esrjax("eval", "crumb", "loaf", *options, "--protocol-timing")
    result = record.load_result(results / "crumb.json")
    timing = result.protocol_timing["Noise"]
    assert list(timing.ms_per_image) == ["a", "b"]
    assert (timing.num_shapes, timing.warmup_passes, result.baseline) == (1, 0, None)
    table = output.out.split("Runtime on ")[1].splitlines()
    assert [line.split()[1] for line in table[4:6]] == ["crumb", "loaf"]
    assert f"{result.runtime.median_ms:.3f}" in table[4] and f"{timing.mean_ms:.3f}" in table[4]
    esrjax("eval", "crumb", *options)
    assert record.load_result(results / "crumb.json").protocol_timing == {"Noise": timing}
    ranking = esrjax(
        "rank", results, "--protocol-timing", "--ignore-thresholds", "--baseline", "published"
    )
    assert ranking.code == 2 and "loaf" not in ranking.out


def test_dataset_is_named_by_its_folder_even_if_that_is_the_working_directory(
    esrjax, crumbs, noise_dataset, monkeypatch
):
    monkeypatch.chdir(noise_dataset)
    esrjax("eval", "crumb", "--data", ".", "-o", "../results", "--no-baseline")
    result = record.load_result(noise_dataset.parent / "results/crumb.json")
    assert list(result.quality) == ["Noise"]


def test_result_accumulates_datasets_while_weights_and_metric_are_the_same(
    esrjax, crumbs, noise_dataset, tmp_path
):
    args = ["eval", "crumb", "--no-baseline", "-o", tmp_path / "results"]
    path = tmp_path / "results/crumb.json"
    for name in ("valid", "test"):
        (tmp_path / name).symlink_to(noise_dataset)
        assert esrjax(*args, "--data", tmp_path / name).code == 0
    assert list(record.load_result(path).quality) == ["valid", "test"]
    esrjax(*args, "--data", tmp_path / "test", "--spec", "y")
    assert list(record.load_result(path).quality) == ["test"]


def test_ensembles_and_unwritable_folders_are_rejected_before_measuring(crumbs, tmp_path):
    models = {"crumb": load("crumb")}
    assert check_rankable(models, tmp_path / "new/folder") == models
    assert not (tmp_path / "new").exists()
    with pytest.raises(RankingError, match="evaluate its members: crumb, loaf"):
        check_rankable({**models, "crumbs": load("crumbs")}, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableFile, match="file/results"):
        write_results([], tmp_path / "file/results")


def test_cost_of_an_ensemble_is_that_of_all_its_passes(esrjax, crumbs):
    crumb, ensemble = method_cost("crumb"), method_cost("crumbs")
    assert crumb == cost(load("crumb").net)
    assert (ensemble.params, ensemble.macs, ensemble.convs) == (33, 8 * crumb.macs, 8)
    assert ensemble.activations == 8 * crumb.activations
    assert sum(op.macs_full for op in ensemble.ops) == ensemble.macs_full
    assert {op.path for op in ensemble.ops} == {"crumb.filter"}
    assert esrjax("method", "cost", "crumbs", "--json").json == {
        "method": "crumbs",
        "params": 33,
        "params_full": 33,
        "macs": 8 * 27 * 256**2,
        "macs_full": 8 * 27 * 256**2,
        "activations": 8 * 3 * 256**2,
        "convs": 8,
    }


def test_cost_of_windows_is_counted_at_the_padded_window_size(monkeypatch, crumbs):
    # An image of 24 pixels: 4 windows of 16, and uncut for windows of 30 and of 40.
    member = Member(windows={16: 1.0, 30: 1.0, 40: 1.0}, pad_multiple=8)
    mix = Ensemble(members={"crumb": member}, team="us", paper="none", license="MIT")
    get_entry = registry.get_entry
    monkeypatch.setattr(
        registry, "get_entry", lambda name: mix if name == "mix" else get_entry(name)
    )
    mix_cost = method_cost("mix", image_size=(24, 24))
    assert (mix_cost.params, mix_cost.convs) == (30, 5)
    assert mix_cost.macs == 27 * (4 * 16**2 + 32**2)  # 13 pixels are padded to 16, 24 to 32


def test_cost_checks_image_size_and_hparams(crumbs):
    with pytest.raises(ImageTooSmall):
        method_cost("crumbs", image_size=(5, 5))
    with pytest.raises(InvalidArgument, match="crumbs"):
        method_cost("crumbs", hparams={"kernel_size": 5})
    assert method_cost("crumb", hparams={"kernel_size": 5}).params == 3 * 25 + 3


# --- Protocol timing: each image once, in order, with compilation outside the timing ---


RULES = rules.load_rules("ntire2026")
HR_SIZES = {"a": (32, 32), "b": (40, 32), "c": (32, 32)}


@pytest.fixture
def pairs(tmp_path):
    for name, (h, w) in HR_SIZES.items():
        noise = np.random.default_rng(ord(name)).integers(0, 256, (h, w, 3), np.uint8)
        write_image(tmp_path / f"Photos/{name}.png", noise)
    return list_folder_pairs(tmp_path / "Photos")


@pytest.fixture
def model(crumbs):
    return load("crumb")


def record_sizes(monkeypatch, trace_s: float = 0.0):
    """Lists that receive the LR size of every trace, which takes `trace_s`, and of every run."""
    traced, ran = [], []

    def forward_fn(net):
        def call(lr):
            time.sleep(trace_s)
            traced.append(lr.shape[1:3])
            jax.debug.callback(lambda shape=lr.shape: ran.append(shape[1:3]))
            return lr * 2

        return call

    monkeypatch.setattr(evaluate, "forward_fn", forward_fn)
    return traced, ran


def test_each_image_runs_once_in_order_and_each_size_compiles_once(model, pairs, monkeypatch):
    traced, ran = record_sizes(monkeypatch)
    timing = evaluate.time_by_protocol(model, pairs, RULES)
    jax.effects_barrier()
    assert traced == [(8, 8), (10, 8)]
    assert ran == [(8, 8), (10, 8), (8, 8)]
    assert list(timing.ms_per_image) == ["a", "b", "c"]
    assert (timing.num_shapes, timing.warmup_passes) == (2, 0)


def test_team_has_the_warmup_of_its_code(model, pairs, monkeypatch):
    traced, ran = record_sizes(monkeypatch)
    disp = replace(model, method=replace(model.method, team="DISP"))
    timing = evaluate.time_by_protocol(disp, pairs, RULES)
    jax.effects_barrier()
    assert timing.warmup_passes == 20
    assert ran == [(256, 256)] * 20 + [(8, 8), (10, 8), (8, 8)]
    assert len(traced) == 3 and timing.num_shapes == 2


def test_compilation_is_not_timed(model, pairs, monkeypatch):
    record_sizes(monkeypatch, trace_s=0.3)
    timing = evaluate.time_by_protocol(model, pairs, RULES)
    assert timing.compile_s > 0.6
    assert max(timing.ms_per_image.values()) < 300
    assert timing.first_ms == timing.ms_per_image["a"]
    assert timing.mean_ms == pytest.approx(sum(timing.ms_per_image.values()) / 3)


def test_first_image_counts_in_the_mean(model, pairs, monkeypatch):
    times = iter([100.0, 1.0, 1.0])
    monkeypatch.setattr(evaluate.timing, "time_forward_ms", lambda compiled, lr: next(times))
    timing = evaluate.time_by_protocol(model, pairs, RULES)
    assert (timing.first_ms, timing.mean_ms) == (100.0, 34.0)


def test_images_have_the_data_range_of_the_method(model, pairs, monkeypatch):
    inputs = []
    monkeypatch.setattr(
        evaluate.timing, "time_forward_ms", lambda compiled, lr: inputs.append(lr) or 1.0
    )
    range_255 = replace(model, method=replace(model.method, data_range=255.0))
    evaluate.time_by_protocol(range_255, pairs, RULES)
    assert [lr.shape for lr in inputs] == [(1, 8, 8, 3), (1, 10, 8, 3), (1, 8, 8, 3)]
    for lr, pair in zip(inputs, pairs, strict=True):
        assert lr.dtype == jnp.float32
        np.testing.assert_array_equal(lr[0], pair.load()[0])


def test_too_small_image_is_rejected_before_anything_runs(model, pairs, monkeypatch):
    traced, _ = record_sizes(monkeypatch)
    large = replace(model, method=replace(model.method, min_side=9))
    with pytest.raises(ImageTooSmall, match=r"crumb .*\b9\b"):
        evaluate.time_by_protocol(large, pairs, RULES)
    assert traced == []
