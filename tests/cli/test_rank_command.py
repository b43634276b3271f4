"""`rank --sensitivity`, `--what-if` and `--against`, as text and as JSON."""

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


def test_sensitivity_as_text(esrjax, table):
    text = esrjax("rank", table, "--sensitivity").out
    (rounded,) = [line for line in text.splitlines() if "rounded to 2 decimals" in line]
    assert rounded.startswith("1 reach a PSNR threshold") and "Close (valid: 26.8951" in rounded
    assert "**: main: Close 2 → unranked; flops: Close 1 → unranked;" in text
    assert "No bootstrap: " in text
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("| ")}
    margins = rows["Close"]  # the last table with this team
    assert margins[-4:-1] == ["+0.1", "|", "+15.0"]


def test_sensitivity_as_json(esrjax, table):
    sensitivity = esrjax("rank", table, "--sensitivity", "--json").json["sensitivity"]
    assert list(sensitivity) == ["scenarios", "bootstrap", "margins"]
    fast, close = sensitivity["margins"]
    assert (fast["speedup_to_next_ms"], close["slack_ms"]) == (None, None)
    assert fast["slack_ms"] == pytest.approx(2.0) == close["speedup_to_next_ms"]
    assert close["passes_by_rounding"] == ["valid"]


def test_first_two_ranks_of_the_challenge_are_stable(esrjax, reference):
    args = ["rank", reference / "protocol/results.json", "--sensitivity"]
    rows = esrjax(*args, "--json").json["sensitivity"]["bootstrap"]
    assert [row["team"] for row in rows[:2]] == ["XiaomiMM", "BOE AIoT"]
    assert [(row["best_rank"], row["worst_rank"]) for row in rows[:2]] == [(1, 1), (2, 2)]
    assert all(row["low_ms"] < row["runtime_ms"] < row["high_ms"] for row in rows)
    (cold,) = [line for line in esrjax(*args).out.splitlines() if "cold start" in line]
    assert cold.endswith("**: none")


def test_what_if_changes_the_table_and_shows_changed_ranks(esrjax, table):
    args = ["rank", table, "--what-if", "close:runtime=-3", "--what-if", "fast:psnr=-0.01"]
    text = esrjax(*args).out
    assert "close runtime -3 ms, fast psnr -0.01 dB**: main: Fast 1 → unranked, Close 2" in text
    report = esrjax(*args, "--json").json
    assert [row["team"] for row in report["rows"] if row["ranked"]] == ["Close"]
    change = {"team": "Close", "method": "close", "track": "main", "before": 2, "after": 1}
    assert change in report["what_if"]["rank_changes"]


def test_against_a_published_table_counts_and_explains(esrjax, table, tmp_path):
    published = tmp_path / "print.csv"
    text = TABLE.replace("4.0,0.150", "4.0,0.160").replace("26.8951", "26.90")
    published.write_text(f"{text}Else,else,27,27,1,1,1,1\n")
    text = esrjax("rank", table, "--against", published).out
    assert "Against print.csv: 17 of 18 cells agree as printed (psnr_val 3/3," in text
    assert any(line.endswith(": Else.") for line in text.splitlines())
    (line,) = [line for line in text.splitlines() if line.endswith("| not explained |")]
    assert line.split() == "| Fast | params_m | 0.150 | 0.160 | -6.25 % | not explained |".split()
    comparison = esrjax("rank", table, "--against", published, "--json").json["against"]
    assert comparison["agreement"]["params_m"] == [2, 3]
    assert comparison["unmatched_teams"] == ["Else"]
    assert [diff["reasons"] for diff in comparison["cell_diffs"]] == [[]]


def test_published_table_from_raw_figures(esrjax, reference):
    """The command of docs/contest.md: every cell that differs has a reason."""
    folder = reference / "protocol"
    text = esrjax("rank", folder / "results.json", "--against", folder / "table1.csv").out
    assert "Against table1.csv: 134 of 240 cells agree as printed" in text
    assert "not explained" not in text
    reasons = [line for line in text.splitlines() if line.startswith("(")]
    assert [line[:12] for line in reasons] == ["(1) one run ", "(2) results.", "(3) the publ"]
