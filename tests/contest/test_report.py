"""The report says what the ranking says, in one page that works wherever it is opened."""

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, found

from esrjax.contest import results, rules
from esrjax.contest.rank import rank
from esrjax.contest.report import comparison, page, series
from esrjax.contest.report.content import content
from esrjax.contest.rows import Row, Series
from esrjax.errors import UserError
from esrjax.pictures import metrics, sets
from esrjax.pictures.files import write

RULES = rules.load("ntire2026")
NASTY = "</script><!-- R&D \"50 %\" 'x' \u2028"
PICTURES = tuple(f"{k:04d}" for k in range(12))


def with_series(row: Row, shift: float) -> Row:
    psnr = tuple(27 + shift * k / 10 + 0.01 * k for k in range(12))
    times = (90.0, *(row.runtime_ms + 0.1 * k for k in range(11)))
    return replace(row, series={"valid": Series(psnr=psnr, runtime_ms=times, pictures=PICTURES)})


SPAN = Row(
    team="EfficientSR Organizers",
    method="span",
    psnr_valid=26.94,
    psnr_test=27.01,
    runtime_ms=8.0,
    params_m=0.15,
    flops_g=10.0,
    provenance={"runtime_ms": "span.json: median of 40 runs", "psnr_valid": "mean of 200"},
)
FAST = replace(SPAN, team="Fast", method="fast", runtime_ms=4.0)
HOSTILE = replace(SPAN, team=NASTY, method=NASTY, runtime_ms=6.0, params_m=0.05)
SLOW = replace(SPAN, team="Slow", method="slow", runtime_ms=8000.0, psnr_test=26.9, flops_g=1.0)
ROWS = [with_series(row, k / 9) for k, row in enumerate([SPAN, FAST, HOSTILE, SLOW])]


def said(rows, shown=(), **how):
    return content(rank(rows, RULES, **how), "results", shown)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> list[comparison.Comparison]:
    """Two pictures of a set, from a method that is perfect and one that is 16 levels too dark."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (96, 128, 3)), ("b", (160, 160, 3))):
        hr = rng.integers(16, 256, shape, np.uint8)
        write(folder / f"set/HR/{name}.png", hr)
        write(folder / f"perfect/{name}x4.png", hr)
        write(folder / f"dark/{name}x4x4.png", hr - np.uint8(16))
    pairs = sets.pairs(folder / "set")
    sources = comparison.stored({n: folder / n for n in ("perfect", "dark")}, pairs)
    return [comparison.compare(pair, sources, metrics.NTIRE, 128) for pair in pairs]


# --- what it says ------------------------------------------------------------------------------


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
    one = comparison.compare(pair, {}, metrics.NTIRE, 64)
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


# --- in a browser ------------------------------------------------------------------------------


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
