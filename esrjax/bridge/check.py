"""`ExportCheck`, the comparison of an exported network with JAX in float32, and its tolerances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float32", "float16", "bfloat16"]
NchwForward = Callable[
    [NDArray[np.float32]], NDArray[np.float32]
]  # (1, 3, h, w) -> (1, 3, s·h, s·w)

IMAGE_SIZES = ((16, 24), (33, 21), (75, 131))  # (h, w), LR pixels: odd sides and several tiles
MAX_FLOAT32_DIFF = 1e-4  # of data_range, for exports in float32
MIN_PSNR_DB = 50.0  # against JAX in float32, for exports in float16 and bfloat16


@dataclass(frozen=True, kw_only=True)
class ExportCheck:
    """Difference between an exported network and JAX in float32.

    Attributes:
        image_sizes: (h, w) of the LR images, pixels.
        max_abs_diff: Largest absolute difference, as a fraction of `data_range`.
        psnr: PSNR of the exported network's outputs against JAX's, dB; None if they are equal.
        is_finite: Whether all outputs are finite.
    """

    image_sizes: tuple[tuple[int, int], ...]
    max_abs_diff: float
    psnr: float | None
    is_finite: bool

    def within_tolerance(self, dtype: Dtype) -> bool:
        """Return whether the exported network computes the same as JAX, for its precision.

        Args:
            dtype: Precision of the exported network.
        """
        if dtype == "float32":
            return self.is_finite and self.max_abs_diff < MAX_FLOAT32_DIFF
        return self.is_finite and (self.psnr is None or self.psnr >= MIN_PSNR_DB)


def image_sizes(min_side: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes (h, w) of the images of the check, none smaller than `min_side`."""
    return tuple((max(h, min_side), max(w, min_side)) for h, w in IMAGE_SIZES)


def photo_like_noise(size: tuple[int, int], data_range: float) -> NDArray[np.float32]:
    """Return noise with the spectrum of photographs, whose amplitude falls as 1 / frequency.

    Args:
        size: (h, w), pixels.
        data_range: Value of white.

    Returns:
        `(1, 3, h, w)`, float32, in [0, `data_range`].
    """
    noise = np.random.default_rng(0).standard_normal((3, *size))
    rows, columns = (np.fft.fftfreq(side) for side in size)
    frequency = np.hypot(rows[:, None], columns[None])
    spectrum = np.fft.fft2(noise) / np.maximum(frequency, 1 / max(size))
    image = np.fft.ifft2(spectrum).real
    image = (image - image.min()) / np.ptp(image)
    return (data_range * image[None]).astype(np.float32)


def compare(
    exported_forward: NchwForward,
    images: Sequence[Any],
    references: Sequence[Any],
    data_range: float,
) -> ExportCheck:
    """Compare an exported network with JAX.

    Args:
        exported_forward: The exported network.
        images: LR images `(1, 3, h, w)`.
        references: JAX's outputs in float32, `(1, 3, s·h, s·w)`.
        data_range: Value of white.
    """
    diffs = [
        (exported_forward(lr) - sr) / data_range for lr, sr in zip(images, references, strict=True)
    ]
    errors = np.concatenate([diff.ravel() for diff in diffs]).astype(np.float64)
    mse = float(np.mean(errors**2))
    return ExportCheck(
        image_sizes=tuple(lr.shape[2:] for lr in images),
        max_abs_diff=float(np.max(np.abs(errors))),
        psnr=float(-10 * np.log10(mse)) if mse > 0 else None,
        is_finite=bool(np.isfinite(errors).all()),
    )
