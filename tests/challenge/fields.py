"""Made-up rows, and Hypothesis strategies for lists of them."""

import math
from dataclasses import replace

from hypothesis import strategies as st

from esrjax.challenge import rules
from esrjax.challenge.results import ImageSeries, Row

RULES = rules.load_rules("ntire2026")
SPAN = Row(
    team="EfficientSR Organizers",
    method="SPAN",
    psnr_valid=26.94,
    psnr_test=27.01,
    runtime_ms=8.0,
    params_m=0.15,
    flops_g=10.0,
)


def make_row(name: str, **figures: object) -> Row:
    """The baseline's row under another name, with some figures changed."""
    return replace(SPAN, team=name, method=name.lower(), **figures)


def with_image_runtimes(row: Row, valid: list[float], test: list[float]) -> Row:
    """The row with runtimes per image, and their mean as the organisers take it."""
    valid_series = ImageSeries(runtime_ms=tuple(valid), cold_start=True)
    series = {"valid": valid_series, "test": ImageSeries(runtime_ms=tuple(test))}
    mean = (math.fsum(valid) / len(valid) + math.fsum(test) / len(test)) / 2
    return replace(row, runtime_ms=mean, series=series)


_COSTS = st.floats(0.5, 30.0)
_ROWS = st.builds(
    Row,
    team=st.uuids().map(str),
    method=st.just("net"),
    psnr_valid=st.floats(26.88, 27.2),
    psnr_test=st.floats(26.97, 27.2),
    runtime_ms=_COSTS,
    params_m=_COSTS,
    flops_g=_COSTS,
)
ROW_LISTS = st.lists(_ROWS, min_size=1, max_size=6).map(lambda rows: [SPAN, *rows])
