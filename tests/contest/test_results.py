"""Every source gives the same kind of rows, and says what is wrong with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esrjax import registry
from esrjax.contest import rank, record, results, rules
from esrjax.contest.record import Quality, Result, Timing
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
    row = results.row(mine, RULES)
    assert (row.psnr_valid, row.psnr_test) == (26.9, None)
    assert row.psnr_elsewhere == {"test (20)": 27.0, "Set5 (20)": 27.0}
    assert results.row(replace(mine, spec="y"), RULES).psnr_valid is None


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


ORDER = """spanv2 pds pkdsr disp dscf errn2 rfdn_span amcanet hfenet zenosr mambagate_sr vscinet
haesr dwmamba""".split()


def test_the_methods_own_figures_are_the_published_table():
    """Order of the report's Table 1; MDAP below the floor, the baseline apart."""
    said = rules.load("ntire2026")
    every = {name: registry.method(name) for name in registry.names()}
    rows = results.published({n: m for n, m in every.items() if isinstance(m, Method)})
    ranking = rank.rank(rows, said, base="published", figures="printed")
    assert [line.row.method for line in ranking.of("ranked")] == ORDER
    assert [line.row.method for line in ranking.of("missed")] == ["safmn_deep15"]
    assert [line.row.method for line in ranking.of("baseline")] == ["span"]
