"""The report says what the ranking says, and shows pictures as they are."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fields import RULES
from showcase import FAST, HOSTILE, NASTY, ROWS, SPAN, said

from esrjax.contest.rank import rank
from esrjax.contest.report import comparison, page, series
from esrjax.contest.rows import Series
from esrjax.errors import UserError
from esrjax.pictures import sets, specs
from esrjax.pictures.files import write


def test_every_figure_has_its_origin_and_every_score_its_reckoning():
    told = said([SPAN, FAST])
    fast, span = told["lines"]
    assert fast["cells"]["runtime_ms"] == {
        "text": "4.000",
        "value": 4.0,
        "note": "span.json: median of 40 runs",
        "missed": False,
    }
    assert fast["cells"]["params_m"]["note"] == "as results gives it"
    assert fast["cells"]["runtime"]["note"] == "exp(2 · 4 / 8) = 2.72; rank 1 of 1"
    main = "0.8 · 2.72 (runtime) + 0.1 · 7.39 (params) + 0.1 · 7.39 (flops); rank 1 of 1"
    assert fast["cells"]["main"]["note"] == main
    assert span["cells"]["main"]["note"].endswith("; not ranked")
    assert all(cell["note"] for line in told["lines"] for cell in line["cells"].values())
    assert told["lede"].startswith("1 of 2 methods is ranked. Fast leads with the lowest main")


def test_columns_are_those_in_which_somebody_has_a_figure():
    elsewhere = replace(FAST, psnr_valid=None, psnr_test=None, psnr_elsewhere={"Set5 (5)": 30.1})
    told = said([replace(SPAN, psnr_valid=None, psnr_test=None), elsewhere])
    keys = [column["key"] for column in told["columns"]]
    assert keys == ["psnr_elsewhere.Set5 (5)", "runtime_ms", "params_m", "flops_g"]
    assert [keys[0] in line["cells"] for line in told["lines"]] == [True, False]
    assert told["lede"].startswith("None of 2 methods is ranked. Fast has the lowest main score")


def test_a_score_that_no_float_holds_is_sorted_all_the_same():
    (slow,) = (line for line in said(ROWS)["lines"] if line["team"] == "Slow")
    assert slow["cells"]["main"]["text"] == "inf" and math.isfinite(slow["cells"]["main"]["value"])
    assert "over 1.8e308" in slow["cells"]["runtime"]["note"]
    assert slow["cells"]["psnr_test"]["missed"] and not slow["cells"]["psnr_valid"]["missed"]


def test_series_are_aligned_by_the_names_of_their_pictures():
    base = replace(SPAN, series={"S": Series(psnr=(1.0, 2.0), pictures=("a", "b"))})
    other = replace(FAST, series={"S": Series(psnr=(3.0, 4.0), pictures=("c", "b"))})
    (held,) = series.sets(rank([base, other], RULES).lines)
    assert (held["pictures"], held["base"]) == (["c", "b", "a"], 1)
    assert [row["psnr"] for row in held["rows"]] == [[3.0, 4.0, None], [None, 2.0, 1.0]]
    unnamed = replace(SPAN, series={"S": Series(psnr=(1.0, 2.0), runtime_ms=(3.0,))})
    (held,) = series.sets(rank([unnamed], RULES).lines)
    assert held["pictures"] == ["no. 1", "no. 2"]
    assert held["rows"] == [{"line": 0, "psnr": [1.0, 2.0], "runtime": [3.0, None]}]


def test_the_page_allows_only_what_it_carries_and_nothing_ends_its_data():
    text = page.render(said([SPAN, HOSTILE]))
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(held)["lines"][0]["team"] == NASTY
    assert not re.search("[<>&\u2028]", held)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert "default-src 'none'; img-src data:" in policy
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.html"
    page.write(path, said([SPAN]))
    before = path.read_bytes()
    with pytest.raises(ValueError):
        page.write(path, {**said([SPAN]), "lines": [math.nan]})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    for place in (tmp_path, path / "inner.html"):
        with pytest.raises(page.UnwritablePage):
            page.write(place, said([SPAN]))


# --- pictures ----------------------------------------------------------------------------------


def test_a_comparison_shows_one_window_of_everybody(shown):
    small, large = shown
    assert list(small.windows) == ["bicubic", "perfect", "dark", "original"]
    assert (small.top, small.left) == (0, 0)
    assert {w.shape for w in small.windows.values()} == {(96, 128, 3)}  # no more than 128 x 128
    assert {w.shape for w in large.windows.values()} == {(128, 128, 3)}
    assert large.whole == (160, 160)
    assert (large.windows["perfect"] == large.windows["original"]).all()
    assert large.psnr["perfect"] == math.inf
    assert large.psnr["dark"] == pytest.approx(20 * math.log10(255 / 16))
    assert [v["psnr"] for v in large.data()["views"]][1] is None


def test_a_narrow_picture_is_shown_at_its_full_height(tmp_path):
    hr = np.random.default_rng(0).integers(0, 256, (48, 160, 3), np.uint8)
    write(tmp_path / "a.png", hr)
    (pair,) = sets.pairs(tmp_path)
    one = comparison.compare(pair, {}, specs.NTIRE, 64)
    assert {w.shape for w in one.windows.values()} == {(48, 48, 3)}
    assert (one.windows["original"] == hr[:, one.left : one.left + 48]).all()


def test_pictures_are_spread_over_the_set():
    pairs = [sets.Pair(name=str(k), hr=Path()) for k in range(10)]
    assert [pair.name for pair in comparison.spread(pairs, 2)] == ["2", "7"]
    assert len({pair.name for pair in comparison.spread(pairs, 4)}) == 4
    assert comparison.spread(pairs, 99) == tuple(pairs)


def test_all_pictures_that_are_missing_are_told(shown, tmp_path):
    write(tmp_path / "mine/a.png", np.zeros((8, 8, 3), np.uint8))
    pairs = [sets.Pair(name=name, hr=Path()) for name in ("a", "b")]
    with pytest.raises(UserError) as error:
        comparison.stored({"mine": tmp_path / "mine", "other": tmp_path / "none"}, pairs)
    assert error.value.problem.count("has no") == 3
