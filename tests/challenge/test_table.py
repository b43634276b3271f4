"""Ranked tables in Markdown and LaTeX: figures, formats, notes, and sentences per status."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fields import RULES, SPAN

from esrjax.challenge import results, table
from esrjax.challenge.rank import rank

FAST = replace(SPAN, team="R&D_50%", method="a|b", runtime_ms=4.0)
SLOW = replace(SPAN, team="Slow", method="slow", runtime_ms=40.0, psnr_test=26.9)
NO_PSNR = replace(
    FAST, team="Else", psnr_valid=None, psnr_test=None, psnr_other={"Set5 (5)": 30.123}
)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (5.8, "5.80"),
        (893.84, "893.84"),
        (999.994, "999.99"),
        (999.996, "1.00e3"),
        (6756.0, "6.76e3"),
        (2.22e12, "2.22e12"),
        (float("inf"), "inf"),
    ],
)
def test_scores_are_formatted_as_in_the_report(score: float, text: str):
    assert table.format_score(score) == text


def test_markdown_has_scale_status_figures_and_ranks():
    scale, status, lines, *_ = table.markdown(rank([SLOW, FAST, SPAN], RULES)).split("\n\n")
    assert scale.startswith("**NTIRE 2026 Efficient Super-Resolution.**")
    for words in ("exp(2 · value / baseline)", "8.000 ms", "0.150 M", "10.00 G"):
        assert words in scale
    assert status == "Ranked: at least 26.90 dB on valid and 26.99 dB on test."
    assert " ".join(lines.splitlines()[2].split()) == (
        r"| 1 | R&D_50% | a\|b | 26.94 | 27.01 | 4.000 | 0.150 | 10.00 "
        "| 2.72 (1) | 7.39 (1) | 7.39 (1) | 3.65 (1) |"
    )


def test_markdown_has_one_table_per_status():
    text = table.markdown(rank([SLOW, FAST, SPAN, NO_PSNR], RULES))
    paragraphs = text.split("\n\n")
    titles = [p.split(":")[0] for p in paragraphs if not p.startswith("|")][1:]
    assert titles == ["Ranked"] + ["Not ranked"] * 3
    tables = [p.splitlines() for p in paragraphs if p.startswith("|")]
    assert [len(lines) for lines in tables] == [3, 3, 3, 3]
    assert len({len(line) for lines in tables for line in lines}) == 1


def test_measured_rows_have_device_conditions_and_metric():
    conditions = {"device": "GPU A", "conditions": "float32[1, 8, 8, 3]", "spec": "y"}
    text = table.markdown(rank([replace(SPAN, **conditions)], RULES))
    assert "FLOPs. Timed on GPU A, float32[1, 8, 8, 3]. PSNR by the metric 'y'.\n" in text


def test_empty_columns_are_omitted():
    assert "Set5" not in table.markdown(rank([SPAN, FAST], RULES))
    assert "PSNR Set5 (5)" in table.markdown(rank([SPAN, NO_PSNR], RULES))


def test_protocol_timing_and_interleaved_baseline_have_columns():
    rows = [SPAN, replace(FAST, baseline_ms=7.5, protocol_ms={"Set5": 4.25})]
    head, _, line = table.markdown(rank(rows, RULES)).split("\n\n")[2].splitlines()
    cells = dict(zip(*([c.strip() for c in t.split(" | ")] for t in (head, line)), strict=True))
    assert (cells["protocol Set5, ms"], cells["Runtime, ms"]) == ("4.250", "4.000")
    assert cells["Baseline interleaved, ms"] == "7.500"
    assert cells["Runtime score"].startswith(f"{math.exp(2 * 4 / 7.5):.2f} ")
    assert "timed interleaved" in table.markdown(rank(rows, RULES))
    assert "interleaved" not in table.markdown(rank([SPAN, FAST], RULES))


def test_waivers_are_noted_with_their_reason():
    ranking = rank([SPAN, replace(SLOW, team="IN2GM")], RULES)
    assert table.markdown(ranking).endswith(f"\n\nIN2GM: {RULES.waiver_reason('IN2GM')}.\n")


def test_latex_escapes_names_and_writes_powers_of_ten():
    text = table.latex(rank([SLOW, FAST, SPAN], RULES))
    assert r"R\&D\_50\%" in text
    assert r"$2.20 \times 10^{4}$" in text
    assert r"\underline{26.90}" in text
    assert text.count(r"\multicolumn{12}{c}{Not ranked") == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
    assert [line.count(" & ") for line in rows] == [11] * 4
    assert r"\begin{tabular}{rllrrrrrrrrr}" in text


def test_published_cells_are_in_the_table(reference: Path):
    path = reference / "protocol" / "table1.csv"
    text = table.markdown(rank(results.read_rows(path, RULES), RULES))
    assert "2.30e6 (14) | 893.84 (14) |  2.50e5 (11) |" in text
    assert "|    *26.80* |   *26.91* |   131.948 |" in text


def test_without_thresholds_the_table_is_marked_as_no_ranking_of_the_challenge():
    ranking = rank([SPAN, SLOW, NO_PSNR], RULES, apply_thresholds=False)
    paragraphs = table.markdown(ranking).split("\n\n")
    assert paragraphs[1].startswith("Ranked by score alone: ")
    assert "not a ranking of the challenge" in paragraphs[1]
    assert [line.split(" | ")[0] for line in paragraphs[2].splitlines()[2:]] == [
        "|    1",
        "|    2",
    ]
    assert "26.90 dB" not in "".join(paragraphs)


def test_notes_follow_the_table():
    ranking = rank([SPAN, replace(FAST, team="XiaomiMM", flops_g=1.59)], RULES)
    assert "\n\nXiaomiMM: results.json gives 1.59 G FLOPs, " in table.markdown(ranking)
    assert "% XiaomiMM: results.json gives 1.59 G FLOPs, " in table.latex(ranking)
