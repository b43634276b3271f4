"""The report's page in a browser: no errors or requests, and mouse, touch and keyboard work."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, find_browser
from fields import RULES
from showcase import FAST, HOSTILE_NAME, ROWS, SLOW, SPAN, report_content, with_series

from esrjax.contest import results
from esrjax.contest.report import page


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
