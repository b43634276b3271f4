"""The page of a report in a browser: calm, and it answers mouse, finger and keys."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, found
from fields import RULES
from showcase import FAST, NASTY, ROWS, SLOW, SPAN, said, with_series

from esrjax.contest import results
from esrjax.contest.report import page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not found():
        pytest.skip("no Chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def whole(shown, tmp_path_factory) -> Path:
    """A page with everything on it."""
    path = tmp_path_factory.mktemp("whole") / "report.html"
    page.write(path, said(ROWS, shown))
    return path


def require_calm(browser: Browser, path: Path) -> None:
    """Nothing said, nothing asked for, nothing wider than the window, nothing that is no figure."""
    assert browser.complaints == []
    assert browser.asked == [path.as_uri()]
    wide, window = browser.js(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window
    text = re.sub(r'"data:[^"]*"', "", browser.js("document.getElementById('report').outerHTML"))
    assert not re.search(r"NaN|undefined|Infinity|\[object", text)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_is_calm(browser, whole, width, dark):
    browser.open(whole, width, dark=dark)
    browser.until("document.querySelectorAll('.tile canvas').length === 7")
    require_calm(browser, whole)
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
def test_a_page_of_little_is_calm_too(browser, tmp_path, rows):
    path = tmp_path / "report.html"
    page.write(path, said(rows))
    browser.open(path, 390)
    require_calm(browser, path)
    assert browser.js("document.querySelectorAll('tbody .team').length") == len(rows)


def test_what_comes_from_elsewhere_is_refused(browser, whole):
    browser.open(whole)
    refused = browser.js(
        "new Promise(done => { addEventListener('securitypolicyviolation', e => "
        "done(e.violatedDirective)); new Image().src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert refused == "img-src"


def order(browser: Browser) -> list[str]:
    return browser.js(
        "[...document.querySelectorAll('tbody tr:not(.standing)')]"
        ".map(e => e.querySelector('.method').textContent)"
    )


def test_headings_sort_within_each_standing(browser, whole):
    browser.open(whole)
    assert order(browser) == ["fast", NASTY, "slow", "span"]
    by_params = browser.js(
        "[...document.querySelectorAll('thead th')].findIndex(e => /Params M/.test(e.textContent))"
    )
    heading = f"thead th:nth-child({by_params + 1}) button"
    browser.click(heading)
    assert order(browser) == [NASTY, "fast", "slow", "span"]
    browser.click(heading)
    assert order(browser) == ["fast", NASTY, "slow", "span"]
    sorted_by = "document.querySelector('thead [aria-sort]').getAttribute('aria-sort')"
    assert browser.js(sorted_by) == "descending"


def tip(browser: Browser) -> str:
    return browser.js("(t => t.hidden ? '' : t.innerText)(document.getElementById('tip'))")


def test_notes_say_where_a_figure_comes_from(browser, whole):
    browser.open(whole)
    figure = ".ranked tr:nth-child(2) .figure"
    browser.hover(figure)
    assert "Fast: PSNR valid" in tip(browser) and "mean of 200" in tip(browser)
    browser.hover("h1")
    assert tip(browser) == ""
    browser.js(f"document.querySelector({figure!r}).focus()")
    assert "mean of 200" in tip(browser)
    for key in ("ArrowRight", "ArrowRight"):
        browser.key(key)
    assert "Fast: Runtime" in tip(browser) and "median of 40 runs" in tip(browser)
    browser.key("Escape")
    assert tip(browser) == ""
    browser.hover(".missed .figure.missed")
    assert "Under the threshold of 26.99 dB." in tip(browser)
    browser.hover("#pareto .point")
    assert "ms" in tip(browser)
    browser.hover("#distributions .strip .cold")
    assert "0000: 90.000 ms" in tip(browser) and "cost of starting" in tip(browser)
    browser.open(whole, 390)
    browser.tap(figure)
    browser.until("!document.getElementById('tip').hidden")
    assert "mean of 200" in tip(browser)


def test_the_divider_follows_mouse_finger_and_keys(browser, whole):
    left = "parseFloat(document.querySelector('.bar').style.left)"
    browser.open(whole)
    browser.until("document.querySelector('.stage')")
    browser.drag(".stage", 0.5, 0.2)
    assert browser.js(left) == pytest.approx(20, abs=1)
    assert browser.js("document.querySelectorAll('.stage img')[1].style.clipPath").startswith(
        "inset(0px 8"
    )
    before = browser.js(left)
    browser.js("document.querySelector('.divider input').focus()")
    browser.key("ArrowRight")
    assert browser.js(left) == before + 0.5
    browser.open(whole, 390)
    browser.until("document.querySelector('.stage')")
    browser.swipe(".stage", 0.5, 0.8)
    assert browser.js(left) == pytest.approx(80, abs=1)


def test_error_maps_are_in_grey_levels(browser, whole):
    browser.open(whole)
    browser.until("document.querySelectorAll('.tile canvas').length === 7")
    levels = (
        "[...document.querySelectorAll('[aria-label$=\", error\"]')].slice(1).map(c => "
        "[...new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)].sort())"
    )
    assert browser.js(levels) == [[0, 255], [128, 255]]  # with opacity; 16 of 32 levels
    browser.js("document.querySelector('.aside .choice:last-of-type input[value=\"64\"]').click()")
    assert browser.js(levels) == [[0, 255], [255, 64]]
    frame = "document.querySelector('.frame').style.left"
    browser.js("document.querySelector('.frame').focus()")
    before = browser.js(frame)
    browser.key("ArrowRight")
    assert browser.js(frame) != before


def test_the_report_of_the_organisers_results(browser, reference, tmp_path, esrjax):
    path = tmp_path / "report.html"
    assert esrjax("report", reference / "protocol/results.json", "-o", path).code == 0
    browser.open(path, 390)
    require_calm(browser, path)
    rows = results.read(reference / "protocol/results.json", RULES)
    assert len(order(browser)) == len(rows)
    assert browser.js("document.querySelectorAll('.ranked .figure.missed').length") == 1  # IN2GM
