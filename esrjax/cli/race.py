"""A race of two engines over one tile."""

import statistics
from collections.abc import Callable
from datetime import date

import numpy as np

from esrjax.bridge import check
from esrjax.cli.verdicts import Verdict
from esrjax.contest.turns import turns
from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import quantise
from esrjax.pictures.upscale import Size, Upscaler

ROUNDS = 3  # that count; each engine runs the tile nine times in all, once for the check more


def race(jax: Upscaler, onnxruntime: Upscaler, tile: Size) -> Verdict | None:
    """Which is the faster, in turn over one picture of the size of `tile`.

    None where they differ by more than an exported network may (`esrjax.bridge.check`).
    """
    lr = picture(tile)
    if not agree(jax(lr), onnxruntime(lr)):
        return None
    calls: dict[str, Callable[[], object]] = {
        "jax": lambda: jax(lr),
        "onnxruntime": lambda: onnxruntime(lr),
    }
    taken = turns(calls, repeats=ROUNDS, settled=True)
    ratio = statistics.median(taken.ratios("onnxruntime", "jax"))
    return Verdict(ratio=ratio, day=str(date.today()))


def picture(size: Size) -> Pixels:
    """`(h, w, 3)` bytes with the spectrum of photographs."""
    return quantise(check.picture(size, 1.0)[0].transpose(1, 2, 0), 1.0)


def agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two pictures, floats with white at 1, are the same but for rounding."""
    return float(np.max(np.abs(theirs - ours))) < check.EXACT  # of NaN nothing is true
