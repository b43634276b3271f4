"""Content and page of the report, and its image comparisons."""

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
from showcase import FAST, HOSTILE, HOSTILE_NAME, ROWS, SPAN, report_content

from esrjax.contest.rank import rank
from esrjax.contest.report import comparison, page, series
from esrjax.contest.rows import ImageSeries
from esrjax.data import datasets
from esrjax.data.image_io import write_image
from esrjax.errors import UserError
from esrjax.evaluation import metrics


def test_figures_have_provenance_and_scores_their_formula():
    content = report_content([SPAN, FAST])
    fast, span = content["entries"]
    assert fast["cells"]["runtime_ms"] == {
        "text": "4.000",
        "value": 4.0,
        "note": "span.json: median of 40 runs",
        "below_threshold": False,
    }
    assert fast["cells"]["params_m"]["note"] == "from results"
    assert fast["cells"]["runtime"]["note"] == "exp(2 · 4 / 8) = 2.72; rank 1 of 1"
    main = "0.8 · 2.72 (runtime) + 0.1 · 7.39 (params) + 0.1 · 7.39 (flops); rank 1 of 1"
    assert fast["cells"]["main"]["note"] == main
    assert span["cells"]["main"]["note"].endswith("; not ranked")
    assert all(cell["note"] for entry in content["entries"] for cell in entry["cells"].values())
    assert content["summary"].startswith(
        "1 of 2 methods is ranked. Fast leads with the lowest main"
    )


def test_only_columns_with_figures_are_shown():
    other_dataset = replace(FAST, psnr_valid=None, psnr_test=None, psnr_other={"Set5 (5)": 30.1})
    content = report_content([replace(SPAN, psnr_valid=None, psnr_test=None), other_dataset])
    keys = [column["key"] for column in content["columns"]]
    assert keys == ["psnr_other.Set5 (5)", "runtime_ms", "params_m", "flops_g"]
    assert [keys[0] in entry["cells"] for entry in content["entries"]] == [True, False]
    assert content["summary"].startswith("None of 2 methods is ranked. Fast has the lowest main")


def test_score_that_overflows_a_float_is_sorted_by_its_logarithm():
    (slow,) = (entry for entry in report_content(ROWS)["entries"] if entry["team"] == "Slow")
    cells = slow["cells"]
    assert cells["main"]["text"] == "inf" and math.isfinite(cells["main"]["value"])
    assert "over 1.8e308" in cells["runtime"]["note"]
    assert cells["psnr_test"]["below_threshold"] and not cells["psnr_valid"]["below_threshold"]


def test_series_are_aligned_by_image_name():
    base = replace(SPAN, series={"S": ImageSeries(psnr=(1.0, 2.0), image_names=("a", "b"))})
    other = replace(FAST, series={"S": ImageSeries(psnr=(3.0, 4.0), image_names=("c", "b"))})
    (dataset,) = series.per_dataset_series(rank([base, other], RULES).entries)
    assert (dataset["image_names"], dataset["baseline"]) == (["c", "b", "a"], 1)
    assert [row["psnr"] for row in dataset["rows"]] == [[3.0, 4.0, None], [None, 2.0, 1.0]]
    unnamed = replace(SPAN, series={"S": ImageSeries(psnr=(1.0, 2.0), runtime_ms=(3.0,))})
    (dataset,) = series.per_dataset_series(rank([unnamed], RULES).entries)
    assert dataset["image_names"] == ["no. 1", "no. 2"]
    assert dataset["rows"] == [{"entry": 0, "psnr": [1.0, 2.0], "runtime_ms": [3.0, None]}]


def test_page_allows_only_its_own_content_and_names_cannot_end_its_data():
    text = page.render_page(report_content([SPAN, HOSTILE]))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert json.loads(data)["entries"][0]["team"] == HOSTILE_NAME
    assert not re.search("[<>&\u2028]", data)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert "default-src 'none'; img-src data:" in policy
    for tag in ("style", "script"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_failed_write_keeps_the_old_page(tmp_path):
    path = tmp_path / "new" / "report.html"
    page.write_page(path, report_content([SPAN]))
    before = path.read_bytes()
    with pytest.raises(ValueError):
        page.write_page(path, {**report_content([SPAN]), "entries": [math.nan]})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    for unwritable in (tmp_path, path / "inner.html"):
        with pytest.raises(page.UnwritablePage):
            page.write_page(unwritable, report_content([SPAN]))


# --- image comparisons ---------------------------------------------------------------------------


def test_comparison_shows_the_same_crop_of_every_method(comparisons):
    small, large = comparisons
    assert list(small.crops) == ["bicubic", "perfect", "dark", "original"]
    assert (small.top, small.left) == (0, 0)
    assert {crop.shape for crop in small.crops.values()} == {(96, 128, 3)}  # below 128 x 128 pixels
    assert {crop.shape for crop in large.crops.values()} == {(128, 128, 3)}
    assert large.hr_size == (160, 160)
    assert (large.crops["perfect"] == large.crops["original"]).all()
    assert large.psnr["perfect"] == math.inf
    assert large.psnr["dark"] == pytest.approx(20 * math.log10(255 / 16))
    assert [view["psnr"] for view in large.as_dict()["views"]][1] is None


def test_narrow_image_is_cropped_to_its_height(tmp_path):
    hr = np.random.default_rng(0).integers(0, 256, (48, 160, 3), np.uint8)
    write_image(tmp_path / "a.png", hr)
    (pair,) = datasets.list_folder_pairs(tmp_path)
    image = comparison.compare_image(pair, {}, metrics.NTIRE, 64)
    assert {crop.shape for crop in image.crops.values()} == {(48, 48, 3)}
    assert (image.crops["original"] == hr[:, image.left : image.left + 48]).all()


def test_images_are_evenly_spaced_over_the_dataset():
    pairs = [datasets.Pair(name=str(k), hr=Path()) for k in range(10)]
    assert [pair.name for pair in comparison.evenly_spaced(pairs, 2)] == ["2", "7"]
    assert len({pair.name for pair in comparison.evenly_spaced(pairs, 4)}) == 4
    assert comparison.evenly_spaced(pairs, 99) == tuple(pairs)


def test_all_missing_images_are_reported(tmp_path):
    write_image(tmp_path / "mine/a.png", np.zeros((8, 8, 3), np.uint8))
    pairs = [datasets.Pair(name=name, hr=Path()) for name in ("a", "b")]
    folders = {"mine": tmp_path / "mine", "other": tmp_path / "none"}
    with pytest.raises(UserError) as error:
        comparison.folder_sources(folders, pairs)
    assert error.value.problem.count("has no") == 3
