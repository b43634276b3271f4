"""Rows with everything that a report shows, and with names that could break a page."""

from dataclasses import replace

from fields import RULES
from fields import SPAN as BASELINE

from esrjax.challenge.rank import rank
from esrjax.challenge.report.content import build_content
from esrjax.challenge.results import ImageSeries, Row

HOSTILE_NAME = "</script><!-- R&D \"50 %\" 'x' \u2028"
IMAGE_NAMES = tuple(f"{k:04d}" for k in range(12))


def with_series(row: Row, shift: float) -> Row:
    psnr = tuple(27 + shift * k / 10 + 0.01 * k for k in range(12))
    times = (90.0, *(row.runtime_ms + 0.1 * k for k in range(11)))
    series = ImageSeries(psnr=psnr, runtime_ms=times, image_names=IMAGE_NAMES)
    return replace(row, series={"valid": series})


SPAN = replace(
    BASELINE,
    method="span",
    provenance={"runtime_ms": "span.json: median of 40 runs", "psnr_valid": "mean of 200"},
)
FAST = replace(SPAN, team="Fast", method="fast", runtime_ms=4.0)
HOSTILE = replace(SPAN, team=HOSTILE_NAME, method=HOSTILE_NAME, runtime_ms=6.0, params_m=0.05)
SLOW = replace(SPAN, team="Slow", method="slow", runtime_ms=8000.0, psnr_test=26.9, flops_g=1.0)
ROWS = [with_series(row, k / 9) for k, row in enumerate([SPAN, FAST, HOSTILE, SLOW])]


def report_content(rows, comparisons=(), **rank_options):
    return build_content(rank(rows, RULES, **rank_options), "results", comparisons)
