"""What `rank` says beside its table, in words and for a program."""

import pytest

TABLE = """team,method,psnr_val,psnr_test,runtime_avg_ms,params_m,flops_g,score_main
EfficientSR Organizers,SPAN,26.94,27.01,8.0,0.150,10.00,7.39
Fast,fast,26.90,27.00,4.0,0.150,10.00,3.65
Close,close,26.8951,27.00,6.0,0.150,10.00,5.06
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def test_sensitivity_in_words(esrjax, table):
    text = esrjax("rank", table, "--sensitivity").out
    assert (
        "1 reach a floor only because their PSNR is rounded to 2 decimals: Close (valid: 26.8951"
        in text
    )
    assert "not rounded**: main: Close 2 → unranked; flops: Close 1 → unranked;" in text
    assert "No bootstrap: the runtimes are not means over pictures." in text
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("| ")}
    spare = rows["Close"]  # the last table that names it
    assert spare[-4:-1] == ["+0.1", "|", "+15.0"]


def test_sensitivity_for_a_program(esrjax, table):
    found = esrjax("rank", table, "--sensitivity", "--json").json["sensitivity"]
    assert list(found) == ["scenarios", "bootstrap", "margins"]
    fast, close = found["margins"]
    assert (fast["gain_ms"], close["spare_ms"]) == (None, None)
    assert fast["spare_ms"] == pytest.approx(2.0) == close["gain_ms"]
    assert close["rounded"] == ["valid"]


def test_the_first_two_places_of_the_contest_hold(esrjax, reference):
    words = ["rank", reference / "protocol/results.json", "--sensitivity"]
    held = esrjax(*words, "--json").json["sensitivity"]["bootstrap"]
    assert [each["team"] for each in held[:2]] == ["XiaomiMM", "BOE AIoT"]
    assert [(each["best"], each["worst"]) for each in held[:2]] == [(1, 1), (2, 2)]
    assert all(each["low_ms"] < each["runtime_ms"] < each["high_ms"] for each in held)
    assert "**without the first picture (cold start)**: none" in esrjax(*words).out


def test_what_if_changes_the_table_and_says_what_moved(esrjax, table):
    words = ["rank", table, "--what-if", "close:runtime=-3", "--what-if", "fast:psnr=-0.01"]
    text = esrjax(*words).out
    assert (
        "- **What if close runtime -3 ms, fast psnr -0.01 dB**: main: Fast 1 → unranked, Close 2"
        in text
    )
    found = esrjax(*words, "--json").json
    assert [row["team"] for row in found["rows"] if row["ranked"]] == ["Close"]
    assert {"team": "Close", "method": "close", "track": "main", "before": 2, "after": 1} in found[
        "what_if"
    ]["moves"]


def test_against_a_print_counts_and_explains(esrjax, table, tmp_path):
    said = tmp_path / "print.csv"
    other = TABLE.replace("4.0,0.150", "4.0,0.160").replace("26.8951", "26.90")
    said.write_text(f"{other}Else,else,27,27,1,1,1,1\n")
    text = esrjax("rank", table, "--against", said).out
    assert "Against print.csv: 17 of 18 cells agree as printed (psnr_val 3/3," in text
    assert "In one of the two alone, so that ranks are not compared: Else." in text
    (line,) = [line for line in text.splitlines() if line.endswith("| not explained |")]
    assert line.split() == "| Fast | params_m | 0.150 | 0.160 | -6.25 % | not explained |".split()
    found = esrjax("rank", table, "--against", said, "--json").json["against"]
    assert found["agree"]["params_m"] == [2, 3] and found["strangers"] == ["Else"]
    assert [each["reasons"] for each in found["disagreements"]] == [[]]


def test_the_organisers_table_from_raw_figures(esrjax, reference):
    """The one command of docs/contest.md: every cell that differs has a reason."""
    folder = reference / "protocol"
    text = esrjax("rank", folder / "results.json", "--against", folder / "table1.csv").out
    assert "Against table1.csv: 134 of 240 cells agree as printed" in text
    assert "not explained" not in text
    reasons = [line for line in text.splitlines() if line.startswith("(")]
    assert [line[:12] for line in reasons] == ["(1) one run ", "(2) results.", "(3) the prin"]
