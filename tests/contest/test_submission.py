"""Submission: the entry has the organisers' keys and types, and `rank` reads its figures back."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from esrjax.contest import results, rules
from esrjax.contest.factsheet import factsheet_markdown
from esrjax.contest.gates import threshold_checks
from esrjax.contest.record import BaselineTiming, DatasetMetrics, ProtocolTiming, Result
from esrjax.contest.rows import row_of_result
from esrjax.contest.submission import (
    InvalidModelNumber,
    UnknownMemory,
    model_number,
    results_entry,
    results_json,
)

RULES = rules.load_rules("ntire2026")
TWO_IMAGES = replace(RULES, psnr_thresholds=replace(RULES.psnr_thresholds, num_images=2))
SHARED_FIELDS = "psnr_valid psnr_test runtime_ms params_m flops_g".split()


@pytest.fixture
def both_splits(result: Result) -> Result:
    """A result with quality and protocol timing of both splits, two images each."""
    splits = {
        "valid": ({"a": 27.0, "b": 26.5}, {"a": 30.0, "b": 10.0}),
        "test": ({"c": 28.0, "d": 27.25}, {"c": 9.0, "d": 11.0}),
    }
    timing = {
        "warmup_passes": 0,
        "num_shapes": 1,
        "compile_s": 1.0,
        "device": "Some GPU",
        "peak_mib": 812.5,
    }
    return replace(
        result,
        method="net",
        team="Ours",
        quality={
            split: DatasetMetrics(psnr=sum(psnr.values()) / 2, num_images=2, psnr_per_image=psnr)
            for split, (psnr, _) in splits.items()
        },
        protocol_timing={
            split: ProtocolTiming(ms_per_image=times, **timing)
            for split, (_, times) in splits.items()
        },
    )


def test_entry_has_the_organisers_keys_in_their_order_and_types(
    reference: Path, both_splits: Result
) -> None:
    official = json.loads((reference / "protocol/results.json").read_text())
    ours = json.loads(results_json("23_net", results_entry(both_splits)))["23_net"]
    for entry in official.values():
        assert list(entry) == list(ours)
        assert {key: type(value) for key, value in entry.items()} == {
            key: type(value) for key, value in ours.items()
        }


def test_row_read_from_an_entry_is_the_row_of_the_result(tmp_path: Path, both_splits: Result):
    (tmp_path / "results.json").write_text(results_json("23_net", results_entry(both_splits)))
    (read,) = results.read_rows(tmp_path / "results.json", TWO_IMAGES)
    row = row_of_result(both_splits, TWO_IMAGES, protocol_timing=True)
    assert {name: getattr(read, name) for name in SHARED_FIELDS} == pytest.approx(
        {name: getattr(row, name) for name in SHARED_FIELDS}
    )
    assert (read.method, read.psnr_valid, read.runtime_ms) == ("net", 26.75, 15.0)
    for split in ("valid", "test"):
        # results.json has no image names, and only valid starts cold in the organisers' program.
        assert replace(read.series[split], image_names=(), cold_start=True) == replace(
            row.series[split], image_names=()
        )


def test_entry_has_the_organisers_units(both_splits: Result) -> None:
    entry = results_entry(both_splits)
    assert (entry.num_parameters, entry.flops, entry.num_conv) == (0.150688, 9.833807872, 22)
    assert (entry.valid_memory, entry.valid_runtime) == (812.5, (30.0, 10.0))


def test_memory_falls_back_to_the_compilers_plan(both_splits: Result) -> None:
    def with_memory(**memory: float | None) -> Result:
        timings = {s: replace(t, **memory) for s, t in both_splits.protocol_timing.items()}
        return replace(both_splits, protocol_timing=timings)

    assert results_entry(with_memory(peak_mib=None, executable_mib=20.5)).test_memory == 20.5
    with pytest.raises(UnknownMemory, match="Some GPU"):
        results_entry(with_memory(peak_mib=None))


@pytest.mark.parametrize(
    ("team", "requested", "number"),
    [("XiaomiMM", None, 22), ("XiaomiMM", 22, 22), ("XiaomiMM", 77, 77), ("Ours", 23, 23)],
)
def test_model_number_is_the_requested_or_the_assigned_one(team, requested, number):
    assert model_number(RULES, team, requested) == number


def test_missing_number_and_that_of_another_team_are_rejected() -> None:
    with pytest.raises(InvalidModelNumber, match="--id 22 belongs to XiaomiMM"):
        model_number(RULES, "Ours", 22)
    with pytest.raises(InvalidModelNumber, match="'Ours'") as error:
        model_number(RULES, "Ours", None)
    assert "--id" in error.value.remedy


def test_factsheet_has_every_figure_and_the_baselines_runtime(both_splits: Result) -> None:
    runtime = replace(both_splits.runtime, median_ms=9.5)
    baseline = BaselineTiming(method="span", team="O", params=1, macs=1, runtime=runtime)
    result = replace(both_splits, baseline=baseline)
    means = {split: (quality.psnr, 200) for split, quality in result.quality.items()}
    checks = threshold_checks(means, RULES, "Ours")
    entry = results_entry(result)
    text = factsheet_markdown("23_net", result, entry, checks, ["on DIV2K"], ["net.pth"])
    assert text.startswith("# 23_net, Ours\n")
    for line in (
        "| FLOPs | 9.8338 G |",
        "| memory, test | 812.50 MiB | the allocator's peak |",
        "| runtime, average | 15.000 ms |",
        "| runtime, one size | 5.000 ms | median of 40 runs at 256x256",
        "| runtime of span, one size | 9.500 ms |",
        "| PSNR, valid | 26.7500 dB | threshold 26.90 dB: -150 mdB",
        "## Training\n\n- on DIV2K\n",
        "- device: Some GPU",
    ):
        assert line in text
    without_baseline = factsheet_markdown("", both_splits, results_entry(both_splits), (), [], [])
    assert "runtime of" not in without_baseline
    assert set(asdict(entry)) and text.endswith("\n")
