"""Readers of rows: tables, the organisers' results.json, and folders of result files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from esrjax import registry
from esrjax.bench import Timing
from esrjax.challenge import rank, record, results, rules
from esrjax.challenge.record import BaselineTiming, DatasetMetrics, ProtocolTiming, Result
from esrjax.errors import NotFound, UnreadableFile
from esrjax.method import Method

RULES = rules.load_rules("ntire2026")
HEADER = (
    "team,method,psnr_val,psnr_test,runtime_val_ms,runtime_test_ms,runtime_avg_ms,params_m,flops_g"
)
ENTRY = {
    "valid_ave_psnr": 26.9,
    "test_ave_psnr": 27.0,
    "valid_ave_runtime": 8.0,
    "test_ave_runtime": 7.0,
    "num_parameters": 0.15,
    "flops": 9.8,
    "num_conv": 22,
}


def write_table(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([f"{HEADER},rank_main", *lines]) + "\n")
    return path


def write_official(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_table_gives_rows(tmp_path: Path):
    path = write_table(tmp_path, "Ours,net,26.91,,5.7,4.81,5.256,0.139,9.11,1")
    assert results.read_rows(path, RULES) == (
        results.Row(
            team="Ours",
            method="net",
            psnr_valid=26.91,
            runtime_valid_ms=5.7,
            runtime_test_ms=4.81,
            runtime_ms=5.256,
            params_m=0.139,
            flops_g=9.11,
        ),
    )


def test_all_invalid_cells_of_a_table_are_reported(tmp_path: Path):
    lines = ["Ours,net,good,27,1,1,1,1,1,1", "Theirs,net,27,27,1,1,,1,1,1"]
    with pytest.raises(UnreadableFile) as error:
        results.read_rows(write_table(tmp_path, *lines), RULES)
    invalid, missing = error.value.problem.splitlines()[1:]
    assert "line 2: psnr_valid " in invalid and "'good'" in invalid
    assert "line 3: runtime_ms " in missing


@pytest.mark.parametrize(
    ("key", "team", "method"),
    [
        ("22_SPANV2_ESR_C2", "XiaomiMM", "SPANV2_ESR_C2"),
        ("009_RFDN_SPAN", "IN2GM", "RFDN_SPAN"),
        (" " * 9 + "11_VSCINet", "XuptSR", "VSCINet"),
        ("00_SPAN", "EfficientSR Organizers", "SPAN"),
        ("33_Newcomer", "Newcomer", "Newcomer"),
    ],
)
def test_keys_of_results_json_identify_teams(tmp_path: Path, key: str, team: str, method: str):
    (row,) = results.read_rows(write_official(tmp_path, {key: ENTRY}), RULES)
    assert (row.team, row.method) == (team, method)
    assert (row.runtime_ms, row.params_m, row.flops_g) == (7.5, 0.15, 9.8)


def test_entry_without_test_figures_is_reported(tmp_path: Path):
    valid_only = {key: value for key, value in ENTRY.items() if not key.startswith("test")}
    with pytest.raises(UnreadableFile) as error:
        results.read_rows(write_official(tmp_path, {"01_PDS": valid_only}), RULES)
    problems = error.value.problem.splitlines()[1:]
    assert [line.split()[1] for line in problems] == ["test_ave_psnr", "test_ave_runtime"]
    assert all(line.strip().startswith("01_PDS: ") for line in problems)


def test_result_file_is_not_taken_for_results_json(tmp_path: Path, result: Result):
    record.save_result(result, tmp_path / "span.json")
    with pytest.raises(NotFound, match=r"span\.json") as error:
        results.read_rows(tmp_path / "span.json", RULES)
    assert "folder" in error.value.remedy


def test_folder_gives_a_row_for_each_result(tmp_path: Path, result: Result, timing: Timing):
    record.save_result(result, tmp_path / "a.json")
    record.save_result(replace(result, method="pds", team="BOE AIoT"), tmp_path / "b.json")
    span, pds = results.read_rows(tmp_path, RULES)
    assert (span.method, pds.team) == ("span", "BOE AIoT")
    assert (span.runtime_ms, span.params_m, span.flops_g) == (5.0, 0.150688, 9.833807872)
    assert (span.device, span.conditions, span.spec) == ("Some GPU", timing.conditions, "ntire")


def test_all_broken_files_of_a_folder_are_reported(tmp_path: Path):
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UnreadableFile) as error:
        results.read_rows(tmp_path, RULES)
    problems = [line.strip() for line in error.value.problem.splitlines()[1:]]
    assert [line.split(":")[0] for line in problems] == ["a.json", "b.json"]


def test_psnr_counts_for_a_split_only_over_all_images_with_the_official_metric(result: Result):
    full, subset = (
        DatasetMetrics(psnr=26.9, num_images=200),
        DatasetMetrics(psnr=27.0, num_images=20),
    )
    mixed = replace(result, quality={"valid": full, "test": subset, "Set5": subset})
    row = results.row_of_result(mixed, RULES)
    assert (row.psnr_valid, row.psnr_test) == (26.9, None)
    assert row.psnr_other == {"test (20)": 27.0, "Set5 (20)": 27.0}
    assert results.row_of_result(replace(mixed, spec="y"), RULES).psnr_valid is None


def test_empty_or_missing_sources_are_rejected(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for source in (
        tmp_path / "empty",
        tmp_path / "absent.csv",
        write_table(tmp_path),
        write_official(tmp_path, {}),
    ):
        with pytest.raises(NotFound) as error:
            results.read_rows(source, RULES)
        assert str(source) in error.value.problem


def test_both_official_sources_agree_to_two_decimals(reference: Path):
    folder = reference / "protocol"
    table_rows = results.read_rows(folder / "table1.csv", RULES)
    raw = {row.team: row for row in results.read_rows(folder / "results.json", RULES)}
    assert len(table_rows) == len(raw) == 16
    for row in table_rows:
        exact = raw[row.team]
        assert (round(exact.psnr_valid or 0, 2), round(exact.psnr_test or 0, 2)) == (
            row.psnr_valid,
            row.psnr_test,
        )
        assert round(exact.params_m, 3) == row.params_m


def test_lists_of_results_json_become_series(tmp_path: Path):
    lists = {"valid_psnr": [26.0, 27.8], "valid_runtime": [11.0, 5.0]}
    (row,) = results.read_rows(write_official(tmp_path, {"01_PDS": {**ENTRY, **lists}}), RULES)
    assert row.series["valid"] == results.ImageSeries(
        psnr=(26.0, 27.8), runtime_ms=(11.0, 5.0), cold_start=True
    )
    assert row.series["test"] == results.ImageSeries()


def test_figures_of_results_json_are_matched_to_image_names(reference: Path):
    order = json.loads((reference / "protocol/image_order.json").read_text())
    for row in results.read_rows(reference / "protocol/results.json", RULES):
        for split, mean in (("valid", row.psnr_valid), ("test", row.psnr_test)):
            series = row.series[split]
            assert [f"{name}.png" for name in series.image_names] == order[split]
            assert len(series.psnr) == len(series.runtime_ms) == 200
            assert fmean(series.psnr) == pytest.approx(mean)


def test_figures_have_provenance(tmp_path: Path, result: Result):
    path = write_table(tmp_path, "Ours,net,26.91,,5.7,4.81,5.256,0.139,9.11,1")
    (row,) = results.read_rows(path, RULES)
    assert row.provenance["runtime_ms"] == "table.csv, line 2, column runtime_avg_ms"
    (row,) = results.read_rows(write_official(tmp_path, {"   01_PDS": ENTRY}), RULES)
    assert (
        row.provenance["psnr_test"] == "results.json, 01_PDS: test_ave_psnr, the mean of test_psnr"
    )
    (tmp_path / "ours").mkdir()
    record.save_result(replace(result, weights_sha256="ab" * 32), tmp_path / "ours/span.json")
    (row,) = results.read_rows(tmp_path / "ours", RULES)
    for field, words in {
        "runtime_ms": ("span.json: median of 40 runs", "on Some GPU", "jax 0.10.2", "2026-08-01"),
        "flops_g": ("counted", "weights sha256 abababababababab,"),
        "psnr_other": ("by the metric 'ntire'",),
    }.items():
        assert all(word in f"{row.provenance[field]}," for word in words)


def test_json_of_an_entry_has_neither_series_nor_provenance(tmp_path: Path):
    lists = {"valid_psnr": [26.0, 27.8], "valid_runtime": [11.0, 5.0]}
    path = write_official(tmp_path, {"00_SPAN": {**ENTRY, **lists}})
    (entry,) = rank.rank(results.read_rows(path, RULES), RULES).entries
    assert entry.row.series and entry.row.provenance
    assert not entry.as_dict().keys() & {"series", "provenance"}


def test_psnr_per_image_is_read_from_a_result_file(tmp_path: Path, result: Result):
    metrics = DatasetMetrics(psnr=28.0, num_images=2, psnr_per_image={"b": 27.0, "a": 29.0})
    record.save_result(replace(result, quality={"Set5": metrics}), tmp_path / "span.json")
    (row,) = results.read_rows(tmp_path, RULES)
    assert row.series == {"Set5": results.ImageSeries(psnr=(27.0, 29.0), image_names=("b", "a"))}


PROTOCOL_TIMING = ProtocolTiming(
    ms_per_image={"a": 30.0, "b": 10.0},
    warmup_passes=1,
    num_shapes=2,
    compile_s=1.0,
    device="Some GPU",
)


def test_protocol_timing_is_listed_or_scored(tmp_path: Path, result: Result):
    timed = replace(result, protocol_timing={"Set5": PROTOCOL_TIMING})
    record.save_result(timed, tmp_path / "span.json")
    (row,) = results.read_rows(tmp_path, RULES)
    assert (row.runtime_ms, row.protocol_ms) == (5.0, {"Set5": 20.0})
    (row,) = results.read_rows(tmp_path, RULES, protocol_timing=True)
    assert row.runtime_ms == 20.0
    assert row.conditions and "protocol" in row.conditions and "Set5" in row.conditions
    assert (row.series["Set5"].runtime_ms, row.series["Set5"].cold_start) == ((30.0, 10.0), True)


def test_result_without_protocol_timing_is_reported(tmp_path: Path, result: Result):
    timed = replace(result, protocol_timing={"Set5": PROTOCOL_TIMING})
    record.save_result(timed, tmp_path / "a.json")
    record.save_result(result, tmp_path / "b.json")
    with pytest.raises(UnreadableFile, match=r"b\.json: ") as error:
        results.read_rows(tmp_path, RULES, protocol_timing=True)
    assert "a.json" not in error.value.problem


def test_interleaved_baseline_is_the_reference(tmp_path: Path, result: Result, timing):
    """Drift of the machine between two evaluations changes no score."""
    ours = replace(result, team="Ours", method="net")
    for name, factor, created in (("a", 1.0, "2026-08-01"), ("b", 1.5, "2026-08-02")):
        runtime = replace(timing, median_ms=5.0 * factor)
        baseline = BaselineTiming(
            method="span",
            team="EfficientSR Organizers",
            params=150_688,
            macs=9_833_807_872,
            runtime=replace(timing, median_ms=10.0 * factor),
        )
        new = replace(ours, method=name, runtime=runtime, baseline=baseline, created=created)
        record.save_result(new, tmp_path / f"{name}.json")
    ranking = rank.rank(results.read_rows(tmp_path, RULES), RULES, apply_thresholds=False)
    (baseline,) = ranking.with_status("baseline")
    assert (baseline.row.runtime_ms, baseline.row.psnr_other) == (15.0, {})
    scores = [entry.score("runtime") for entry in ranking.with_status("ranked")]
    assert scores == pytest.approx([math.e] * 2)
    record.save_result(result, tmp_path / "span.json")  # a result of its own takes precedence
    span_rows = [row for row in results.read_rows(tmp_path, RULES) if row.method == "span"]
    assert [row.psnr_other for row in span_rows] == [{"Set5 (5)": 30.1}]


PUBLISHED_ORDER = """spanv2 pds pkdsr disp dscf errn2 rfdn_span amcanet hfenet zenosr mambagate_sr
vscinet haesr dwmamba""".split()


def test_reported_figures_of_methods_give_the_published_table():
    """Order of the report's Table 1; MDAP below the threshold, the baseline separate."""
    ntire = rules.load_rules("ntire2026")
    entries = {name: registry.get_entry(name) for name in registry.names()}
    methods = {name: entry for name, entry in entries.items() if isinstance(entry, Method)}
    published = results.published_rows(methods)
    ranking = rank.rank(published, ntire, baseline_source="published", figures="printed")

    def methods_with(status):
        return [entry.row.method for entry in ranking.with_status(status)]

    assert methods_with("ranked") == PUBLISHED_ORDER
    assert methods_with("below_threshold") == ["safmn_deep15"]
    assert methods_with("baseline") == ["span"]


# --- whose weights -----------------------------------------------------------------------------


def test_rows_say_whose_weights_they_have(tmp_path: Path, result: Result):
    origins = {"a": "official", "b": "shipped", "c": "own", "d": None}
    for label, origin in origins.items():
        labelled = replace(result, method="pds", label=label, team="T", weights_origin=origin)
        record.save_result(labelled, tmp_path / f"{label}.json")
    rows = results.read_rows(tmp_path, RULES)
    assert [(row.method, row.team) for row in rows] == [
        ("a", "T"),
        ("b", "shipped weights (T)"),
        ("c", "own weights (T)"),
        ("d", "T"),
    ]
    assert [row.weights_origin for row in rows] == list(origins.values())


def test_own_weights_are_neither_the_baseline_nor_waived(tmp_path: Path, result: Result, timing):
    baseline = BaselineTiming(
        method="span", team=result.team, params=result.params, macs=result.macs, runtime=timing
    )
    full = DatasetMetrics(psnr=26.98, num_images=200)  # below the threshold on test
    own = replace(result, weights_origin="own", baseline=baseline)
    for name, team in (("span", result.team), ("rfdn_span", "IN2GM")):
        entry = replace(own, method=name, team=team, quality={"valid": full, "test": full})
        record.save_result(entry, tmp_path / f"{name}.json")
    ranking = rank.rank(results.read_rows(tmp_path, RULES), RULES)
    assert {entry.row.team: (entry.status, entry.waiver) for entry in ranking.entries} == {
        f"own weights ({result.team})": ("below_threshold", None),
        "own weights (IN2GM)": ("below_threshold", None),
        result.team: ("baseline", None),
    }


def test_duplicate_result_files_are_reported(tmp_path: Path, result: Result):
    for name in ("a.json", "b.JSON"):
        record.save_result(result, tmp_path / name)
    notes: list[str] = []
    (tmp_path / "table.csv").write_text("team\n")
    with pytest.raises(UnreadableFile, match=r"a\.json and b\.JSON"):
        results.read_rows(tmp_path, RULES, on_note=notes.append)
    assert len(notes) == 1 and "table.csv" in notes[0]


def test_result_file_that_contradicts_itself_is_reported(tmp_path: Path, result: Result):
    wrong_mean = DatasetMetrics(psnr=28.5, num_images=2, psnr_per_image={"b": 27.0, "a": 29.0})
    wrong_count = DatasetMetrics(psnr=28.0, num_images=3, psnr_per_image={"b": 27.0, "a": 29.0})
    quality = {"Set5": wrong_mean, "Set14": wrong_count}
    record.save_result(replace(result, quality=quality), tmp_path / "span.json")
    with pytest.raises(UnreadableFile, match=r"28\.5") as error:
        results.read_rows(tmp_path, RULES)
    assert "Set14 has 3 images, and PSNR of 2" in error.value.problem
