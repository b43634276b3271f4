"""Every source gives the same kind of rows, and says what is wrong with it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from esrjax import registry
from esrjax.contest import rank, record, results, rows, rules
from esrjax.contest.record import Companion, Harness, Quality, Result, Timing
from esrjax.method import Method

RULES = rules.load("ntire2026")
HEAD = (
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


def table(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join([f"{HEAD},rank_main", *lines]) + "\n")
    return path


def official(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def test_a_table_gives_rows(tmp_path: Path):
    path = table(tmp_path, "Ours,net,26.91,,5.7,4.81,5.256,0.139,9.11,1")
    assert results.read(path, RULES) == (
        rows.Row(
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


def test_a_table_tells_every_bad_cell(tmp_path: Path):
    path = table(tmp_path, "Ours,net,good,27,1,1,1,1,1,1", "Theirs,net,27,27,1,1,,1,1,1")
    with pytest.raises(results.SourceError) as error:
        results.read(path, RULES)
    assert "2 mistakes" in str(error.value)
    assert "line 2: psnr_valid should be a valid number" in str(error.value)
    assert "line 3: runtime_ms is missing" in str(error.value)


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
def test_the_keys_of_the_organisers_name_a_team(tmp_path: Path, key: str, team: str, method: str):
    (row,) = results.read(official(tmp_path, {key: ENTRY}), RULES)
    assert (row.team, row.method) == (team, method)
    assert (row.runtime_ms, row.params_m, row.flops_g) == (7.5, 0.15, 9.8)


def test_an_entry_without_its_test_half_is_told(tmp_path: Path):
    half = {key: value for key, value in ENTRY.items() if not key.startswith("test")}
    with pytest.raises(results.SourceError, match=r"2 mistakes:\n    01_PDS: test_ave_psnr is m"):
        results.read(official(tmp_path, {"01_PDS": half}), RULES)


def test_one_result_file_is_not_the_organisers(tmp_path: Path, result: Result):
    record.save(result, tmp_path / "span.json")
    with pytest.raises(results.UnknownSource, match="by naming their folder"):
        results.read(tmp_path / "span.json", RULES)


def test_a_folder_gives_a_row_for_each_result(tmp_path: Path, result: Result, timing: Timing):
    record.save(result, tmp_path / "a.json")
    record.save(replace(result, method="pds", team="BOE AIoT"), tmp_path / "b.json")
    span, pds = results.read(tmp_path, RULES)
    assert (span.method, pds.team) == ("span", "BOE AIoT")
    assert (span.runtime_ms, span.params_m, span.flops_g) == (5.0, 0.150688, 9.833807872)
    assert (span.device, span.conditions, span.spec) == ("Some GPU", timing.conditions, "ntire")


def test_every_broken_file_of_a_folder_is_told(tmp_path: Path):
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(results.SourceError) as error:
        results.read(tmp_path, RULES)
    assert "2 mistakes" in str(error.value)
    assert "a.json: the whole" in str(error.value) and "b.json: the whole" in str(error.value)


def test_floors_speak_only_of_the_contest_s_whole_sets(result: Result):
    whole, part = Quality(psnr=26.9, pictures=200), Quality(psnr=27.0, pictures=20)
    mine = replace(result, quality={"valid": whole, "test": part, "Set5": part})
    row = rows.measured(mine, RULES)
    assert (row.psnr_valid, row.psnr_test) == (26.9, None)
    assert row.psnr_elsewhere == {"test (20)": 27.0, "Set5 (20)": 27.0}
    assert rows.measured(replace(mine, spec="y"), RULES).psnr_valid is None


def test_nothing_to_read_is_told(tmp_path: Path):
    with pytest.raises(results.UnknownSource, match="no method in"):
        results.read(tmp_path, RULES)
    with pytest.raises(results.UnknownSource, match="no results at"):
        results.read(tmp_path / "absent.csv", RULES)
    with pytest.raises(results.UnknownSource, match="no method in"):
        results.read(table(tmp_path), RULES)
    with pytest.raises(results.UnknownSource, match="no method in"):
        results.read(official(tmp_path, {}), RULES)


def test_both_official_sources_agree_to_two_decimals(reference: Path):
    table_rows = results.read(reference / "protocol" / "table1.csv", RULES)
    raw = {row.team: row for row in results.read(reference / "protocol" / "results.json", RULES)}
    assert len(table_rows) == len(raw) == 16
    for row in table_rows:
        mine = raw[row.team]
        assert (round(mine.psnr_valid or 0, 2), round(mine.psnr_test or 0, 2)) == (
            row.psnr_valid,
            row.psnr_test,
        )
        assert round(mine.params_m, 3) == row.params_m


def test_lists_of_the_organisers_become_series(tmp_path: Path):
    lists = {"valid_psnr": [26.0, 27.8], "valid_runtime": [100.0, 5.0]}
    (row,) = results.read(official(tmp_path, {"01_PDS": {**ENTRY, **lists}}), RULES)
    assert row.series["valid"] == rows.Series(psnr=(26.0, 27.8), runtime_ms=(100.0, 5.0), cold=True)
    assert row.series["test"] == rows.Series()


def test_every_picture_of_the_organisers_goes_by_its_name(reference: Path):
    order = json.loads((reference / "protocol/image_order.json").read_text())
    raw = results.read(reference / "protocol/results.json", RULES)
    for row in raw:
        for name, mean in (("valid", row.psnr_valid), ("test", row.psnr_test)):
            series = row.series[name]
            assert [f"{picture}.png" for picture in series.pictures] == order[name]
            assert len(series.psnr) == len(series.runtime_ms) == 200
            assert fmean(series.psnr) == pytest.approx(mean)


def test_a_figure_says_where_it_comes_from(tmp_path: Path, result: Result):
    path = table(tmp_path, "Ours,net,26.91,,5.7,4.81,5.256,0.139,9.11,1")
    (row,) = results.read(path, RULES)
    assert row.provenance["runtime_ms"] == "table.csv, line 2, column runtime_avg_ms"
    (row,) = results.read(official(tmp_path, {"   01_PDS": ENTRY}), RULES)
    assert (
        row.provenance["psnr_test"] == "results.json, 01_PDS: test_ave_psnr, the mean of test_psnr"
    )
    (tmp_path / "ours").mkdir()
    record.save(replace(result, weights_sha256="ab" * 32), tmp_path / "ours/span.json")
    (row,) = results.read(tmp_path / "ours", RULES)
    for name, words in {
        "runtime_ms": ("span.json: median of 40 runs", "on Some GPU", "jax 0.10.2", "2026-08-01"),
        "flops_g": ("counted", "weights sha256 abababababababab,"),
        "psnr_elsewhere": ("by the metric 'ntire'",),
    }.items():
        assert all(word in f"{row.provenance[name]}," for word in words)


def test_neither_series_nor_provenance_crowd_a_line_for_json(tmp_path: Path):
    lists = {"valid_psnr": [26.0, 27.8], "valid_runtime": [100.0, 5.0]}
    found = results.read(official(tmp_path, {"00_SPAN": {**ENTRY, **lists}}), RULES)
    (line,) = rank.rank(found, RULES).lines
    assert line.row.series and line.row.provenance
    assert not line.entry().keys() & {"series", "provenance"}


def test_scores_of_pictures_come_through_a_result_file(tmp_path: Path, result: Result):
    scored = Quality(psnr=28.0, pictures=2, each={"b": 27.0, "a": 29.0})
    record.save(replace(result, quality={"Set5": scored}), tmp_path / "span.json")
    (row,) = results.read(tmp_path, RULES)
    assert row.series == {"Set5": rows.Series(psnr=(27.0, 29.0), pictures=("b", "a"))}


RUN = Harness(each={"a": 30.0, "b": 10.0}, warm_up=1, shapes=2, compile_s=1.0, device="Some GPU")


def test_the_harness_runtime_stands_beside_the_median_or_is_scored(tmp_path: Path, result: Result):
    record.save(replace(result, harness={"Set5": RUN}), tmp_path / "span.json")
    (row,) = results.read(tmp_path, RULES)
    assert (row.runtime_ms, row.harness_ms) == (5.0, {"Set5": 20.0})
    (row,) = results.read(tmp_path, RULES, harness=True)
    assert (row.runtime_ms, row.conditions) == (
        20.0,
        "as the organisers time, each picture of Set5 once",
    )
    assert (row.series["Set5"].runtime_ms, row.series["Set5"].cold) == ((30.0, 10.0), True)


def test_a_result_without_a_harness_runtime_is_told(tmp_path: Path, result: Result):
    record.save(replace(result, harness={"Set5": RUN}), tmp_path / "a.json")
    record.save(result, tmp_path / "b.json")
    with pytest.raises(results.SourceError, match=r"1 gap:\n    b\.json: no such runtime"):
        results.read(tmp_path, RULES, harness=True)


def test_the_baseline_timed_in_turn_is_the_reference(tmp_path: Path, result: Result, timing):
    """Drift of the machine between two evaluations moves no score."""
    mine = replace(result, team="Ours", method="net")
    for name, pace, created in (("a", 1.0, "2026-08-01"), ("b", 1.5, "2026-08-02")):
        slower = replace(timing, median_ms=5.0 * pace)
        beside = Companion(
            method="span",
            team="EfficientSR Organizers",
            params=150_688,
            macs=9_833_807_872,
            runtime=replace(timing, median_ms=10.0 * pace),
        )
        new = replace(mine, method=name, runtime=slower, baseline=beside, created=created)
        record.save(new, tmp_path / f"{name}.json")
    ranking = rank.rank(results.read(tmp_path, RULES), RULES, floors=False)
    (baseline,) = ranking.of("baseline")
    assert (baseline.row.runtime_ms, baseline.row.psnr_elsewhere) == (15.0, {})
    assert [line.score("runtime") for line in ranking.of("ranked")] == pytest.approx([math.e] * 2)
    record.save(result, tmp_path / "span.json")  # once measured itself, that is the baseline's row
    found = [row for row in results.read(tmp_path, RULES) if row.method == "span"]
    assert [row.psnr_elsewhere for row in found] == [{"Set5 (5)": 30.1}]


ORDER = """spanv2 pds pkdsr disp dscf errn2 rfdn_span amcanet hfenet zenosr mambagate_sr vscinet
haesr dwmamba""".split()


def test_the_methods_own_figures_are_the_published_table():
    """Order of the report's Table 1; MDAP below the floor, the baseline apart."""
    said = rules.load("ntire2026")
    every = {name: registry.method(name) for name in registry.names()}
    field = rows.published({n: m for n, m in every.items() if isinstance(m, Method)})
    ranking = rank.rank(field, said, base="published", figures="printed")
    assert [line.row.method for line in ranking.of("ranked")] == ORDER
    assert [line.row.method for line in ranking.of("missed")] == ["safmn_deep15"]
    assert [line.row.method for line in ranking.of("baseline")] == ["span"]
