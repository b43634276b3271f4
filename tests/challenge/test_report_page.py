"""The report's page in a browser: no errors or requests, and mouse, touch and keyboard work."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from fields import RULES
from showcase import FAST, HOSTILE, HOSTILE_NAME, ROWS, SLOW, SPAN, report_content, with_series

from esrjax.challenge import report as page
from esrjax.challenge import results
from esrjax.challenge.rank import rank
from esrjax.challenge.report import content
from esrjax.challenge.results import ImageSeries
from esrjax.cli import rank as rank_command
from esrjax.data import datasets
from esrjax.data.image_io import write_image
from esrjax.errors import InvalidArgument, UnwritableFile, UserError
from esrjax.evaluation import metrics


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not find_browser():
        pytest.skip("no Chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def full_page(comparisons, tmp_path_factory) -> Path:
    """A page with everything that a report can have."""
    path = tmp_path_factory.mktemp("full") / "report.html"
    page.write_page(path, report_content(ROWS, comparisons))
    return path


def check_page(browser: Browser, path: Path) -> None:
    """Assert: no console messages, no requests, no horizontal overflow, no undefined values."""
    assert browser.console_messages == []
    assert browser.requests == [path.as_uri()]
    content_width, window_width = browser.js(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert content_width <= window_width
    text = re.sub(r'"data:[^"]*"', "", browser.js("document.getElementById('report').outerHTML"))
    assert not re.search(r"NaN|undefined|Infinity|\[object", text)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_full_page_has_no_errors(browser, full_page, width, dark):
    browser.open(full_page, width, dark=dark)
    browser.wait_until("document.querySelectorAll('.tile canvas').length === 7")
    check_page(browser, full_page)
    teams = browser.js("[...document.querySelectorAll('tbody .team')].map(e => e.textContent)")
    assert set(teams) == {row.team for row in ROWS}
    assert browser.js("document.querySelectorAll('#pareto svg .point').length") == 8
    assert browser.js("document.querySelectorAll('#distributions .strip').length") == 7


@pytest.mark.parametrize(
    "rows",
    [
        [SPAN],
        [replace(SPAN, psnr_valid=None, psnr_test=None)],
        [SPAN, SLOW],
        [SPAN, replace(FAST, params_m=0.0, flops_g=0.0)],
        [with_series(SPAN, 0)],
        [SPAN, with_series(FAST, 1)],
    ],
    ids=["one method", "no PSNR", "infinite", "free", "baseline only", "no series of the baseline"],
)
def test_page_with_few_figures_has_no_errors(browser, tmp_path, rows):
    path = tmp_path / "report.html"
    page.write_page(path, report_content(rows))
    browser.open(path, 390)
    check_page(browser, path)
    assert browser.js("document.querySelectorAll('tbody .team').length") == len(rows)


def test_other_origins_are_blocked(browser, full_page):
    browser.open(full_page)
    directive = browser.js(
        "new Promise(done => { addEventListener('securitypolicyviolation', e => "
        "done(e.violatedDirective)); new Image().src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert directive == "img-src"


def methods_in_order(browser: Browser) -> list[str]:
    return browser.js(
        "[...document.querySelectorAll('tbody tr:not(.status)')]"
        ".map(e => e.querySelector('.method').textContent)"
    )


def test_headings_sort_within_each_status(browser, full_page):
    browser.open(full_page)
    assert methods_in_order(browser) == ["fast", HOSTILE_NAME, "slow", "span"]
    params_index = browser.js(
        "[...document.querySelectorAll('thead th')].findIndex(e => /Params M/.test(e.textContent))"
    )
    heading = f"thead th:nth-child({params_index + 1}) button"
    browser.click(heading)
    assert methods_in_order(browser) == [HOSTILE_NAME, "fast", "slow", "span"]
    browser.click(heading)
    assert methods_in_order(browser) == ["fast", HOSTILE_NAME, "slow", "span"]
    direction = "document.querySelector('thead [aria-sort]').getAttribute('aria-sort')"
    assert browser.js(direction) == "descending"


def tooltip(browser: Browser) -> str:
    return browser.js("(t => t.hidden ? '' : t.innerText)(document.getElementById('tooltip'))")


def test_tooltips_show_the_provenance_of_figures(browser, full_page):
    browser.open(full_page)
    figure = ".ranked tr:nth-child(2) .figure"
    browser.hover(figure)
    assert "Fast: PSNR valid" in tooltip(browser) and "mean of 200" in tooltip(browser)
    browser.hover("h1")
    assert tooltip(browser) == ""
    browser.js(f"document.querySelector({figure!r}).focus()")
    assert "mean of 200" in tooltip(browser)
    for key in ("ArrowRight", "ArrowRight"):
        browser.key(key)
    assert "Fast: Runtime" in tooltip(browser) and "median of 40 runs" in tooltip(browser)
    browser.key("Escape")
    assert tooltip(browser) == ""
    browser.hover(".below_threshold .figure.below_threshold")
    assert "Below the threshold of 26.99 dB." in tooltip(browser)
    browser.hover("#pareto .point")
    assert "ms" in tooltip(browser)
    browser.hover("#distributions .strip .cold-start")
    assert "0000: 90.000 ms" in tooltip(browser) and "start-up cost" in tooltip(browser)
    browser.open(full_page, 390)
    browser.tap(figure)
    browser.wait_until("!document.getElementById('tooltip').hidden")
    assert "mean of 200" in tooltip(browser)


def test_divider_follows_mouse_touch_and_keyboard(browser, full_page):
    position = "parseFloat(document.querySelector('.bar').style.left)"
    browser.open(full_page)
    browser.wait_until("document.querySelector('.compare-frame')")
    browser.drag(".compare-frame", 0.5, 0.2)
    assert browser.js(position) == pytest.approx(20, abs=1)
    clip_path = "document.querySelectorAll('.compare-frame img')[1].style.clipPath"
    assert browser.js(clip_path).startswith("inset(0px 8")
    before = browser.js(position)
    browser.js("document.querySelector('.compare-slider input').focus()")
    browser.key("ArrowRight")
    assert browser.js(position) == before + 0.5
    browser.open(full_page, 390)
    browser.wait_until("document.querySelector('.compare-frame')")
    browser.swipe(".compare-frame", 0.5, 0.8)
    assert browser.js(position) == pytest.approx(80, abs=1)


def test_error_maps_are_in_gray_levels(browser, full_page):
    browser.open(full_page)
    browser.wait_until("document.querySelectorAll('.tile canvas').length === 7")
    levels = (
        "[...document.querySelectorAll('[aria-label$=\", error\"]')].slice(1).map(c => "
        "[...new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)].sort())"
    )
    assert browser.js(levels) == [[0, 255], [128, 255]]  # with opacity; 16 of 32 levels
    browser.js(
        "document.querySelector('.compare-aside .choice:last-of-type input[value=\"64\"]').click()"
    )
    assert browser.js(levels) == [[0, 255], [255, 64]]
    region_left = "document.querySelector('.region').style.left"
    browser.js("document.querySelector('.region').focus()")
    before = browser.js(region_left)
    browser.key("ArrowRight")
    assert browser.js(region_left) != before


def test_report_of_the_organisers_results(browser, reference, tmp_path, esrjax):
    path = tmp_path / "report.html"
    assert esrjax("report", reference / "protocol/results.json", "-o", path).code == 0
    browser.open(path, 390)
    check_page(browser, path)
    rows = results.read_rows(reference / "protocol/results.json", RULES)
    assert len(methods_in_order(browser)) == len(rows)
    below = "document.querySelectorAll('.ranked .figure.below_threshold').length"
    assert browser.js(below) == 1  # IN2GM


# --- Content and page of the report, and its image comparisons ---


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
    (dataset,) = content.per_dataset_series(rank([base, other], RULES).entries)
    assert (dataset["image_names"], dataset["baseline"]) == (["c", "b", "a"], 1)
    assert [row["psnr"] for row in dataset["rows"]] == [[3.0, 4.0, None], [None, 2.0, 1.0]]
    unnamed = replace(SPAN, series={"S": ImageSeries(psnr=(1.0, 2.0), runtime_ms=(3.0,))})
    (dataset,) = content.per_dataset_series(rank([unnamed], RULES).entries)
    assert dataset["image_names"] == ["no. 1", "no. 2"]
    assert dataset["rows"] == [{"entry": 0, "psnr": [1.0, 2.0], "runtime_ms": [3.0, None]}]


def luminance(color):
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_texts_have_a_contrast_of_at_least_4_5():
    style = (resources.files("esrjax.challenge.report") / "assets/style.css").read_text()
    themes = re.findall(r"--background: #[0-9a-f]{6}[^}]*", style)
    assert len(themes) == 2  # light and dark; the one for paper has short colors
    for theme in themes:
        colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", theme))
        for text in ("text", "text-muted", "text-faint", "accent", "cold-start", "error"):
            for back in ("background", "surface", "image-background"):
                dark, light = sorted(map(luminance, (colors[text], colors[back])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


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
        with pytest.raises(UnwritableFile):
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
    image = content.compare_image(pair, {}, metrics.NTIRE, 64)
    assert {crop.shape for crop in image.crops.values()} == {(48, 48, 3)}
    assert (image.crops["original"] == hr[:, image.left : image.left + 48]).all()


def test_images_are_evenly_spaced_over_the_dataset():
    pairs = [datasets.Pair(name=str(k), hr=Path()) for k in range(10)]
    assert [pair.name for pair in content.evenly_spaced(pairs, 2)] == ["2", "7"]
    assert len({pair.name for pair in content.evenly_spaced(pairs, 4)}) == 4
    assert content.evenly_spaced(pairs, 99) == tuple(pairs)


def test_all_missing_images_are_reported(tmp_path):
    write_image(tmp_path / "mine/a.png", np.zeros((8, 8, 3), np.uint8))
    pairs = [datasets.Pair(name=name, hr=Path()) for name in ("a", "b")]
    folders = {"mine": tmp_path / "mine", "other": tmp_path / "none"}
    with pytest.raises(UserError) as error:
        content.folder_sources(folders, pairs)
    assert error.value.problem.count("has no") == 3


def test_report_refuses_other_weights_than_the_results(esrjax, crumbs, tmp_path):
    write_image(tmp_path / "Photos/a.png", np.zeros((32, 32, 3), np.uint8))
    rows = [replace(SPAN, team="Bakery", method="crumb", weights_sha256="0" * 64), SPAN]
    file = crumbs / "crumbs/crumb.safetensors"
    pairs = datasets.list_pairs(tmp_path / "Photos")
    with pytest.raises(InvalidArgument, match="other weights of 'crumb'") as error:
        rank_command.sr_sources([], [f"crumb={file}"], pairs, rows)
    assert "0" * 64 in error.value.rule and "LABEL:crumb=FILE" in error.value.remedy
    sources = rank_command.sr_sources([], [f"mine:crumb={file}"], pairs, rows)
    assert list(sources) == ["mine, shipped weights"]
    rows[0] = replace(rows[0], weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert list(rank_command.sr_sources([], [f"crumb={file}"], pairs, rows)) == [
        "crumb, shipped weights"
    ]


def test_headline_and_table_say_whose_weights(browser, tmp_path):
    team = results.credited_team("XiaomiMM", "own")
    rows = [SPAN, replace(FAST, team=team, method="mine", weights_origin="own")]
    path, page_content = tmp_path / "report.html", report_content(rows)
    assert "Own weights (XiaomiMM) leads with the lowest main score" in page_content["summary"]
    page.write_page(path, page_content)
    browser.open(path)
    check_page(browser, path)
    assert browser.js("[...document.querySelectorAll('.weights')].map(e => e.textContent)") == [
        "own weights"
    ]
