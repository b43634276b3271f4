"""The timing of JAX and ONNX Runtime on one tile."""

import statistics
from collections.abc import Callable
from datetime import date

import numpy as np

from esrjax.bridge import check
from esrjax.cli.verdicts import EngineTiming
from esrjax.contest.turns import time_interleaved
from esrjax.data.image_io import Pixels
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import ImageSize, Upscaler

REPEATS = 3  # timed repetitions; each engine runs the tile nine times in all, and once to compare


def compare_engines(
    jax: Upscaler, onnxruntime: Upscaler, tile_size: ImageSize
) -> EngineTiming | None:
    """Time both engines interleaved on an image of `tile_size`.

    Returns None where their outputs differ by more than an exported network may
    (`esrjax.bridge.check`).
    """
    lr = noise_image(tile_size)
    if not outputs_agree(jax(lr), onnxruntime(lr)):
        return None
    calls: dict[str, Callable[[], object]] = {
        "jax": lambda: jax(lr),
        "onnxruntime": lambda: onnxruntime(lr),
    }
    timings = time_interleaved(calls, num_runs=REPEATS, prime_before_each=True)
    ratio = statistics.median(timings.ratios("onnxruntime", "jax"))
    return EngineTiming(ratio=ratio, day=str(date.today()))


def noise_image(size: ImageSize) -> Pixels:
    """Return `(h, w, 3)` uint8 noise with the spectrum of photographs."""
    return to_uint8(check.photo_like_noise(size, 1.0)[0].transpose(1, 2, 0), 1.0)


def outputs_agree(jax_out: np.ndarray, onnx_out: np.ndarray) -> bool:
    """Return whether two float images in [0, 1] are equal but for rounding; NaN never is."""
    return float(np.max(np.abs(onnx_out - jax_out))) < check.MAX_FLOAT32_DIFF
