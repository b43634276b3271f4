"""How far what was exported is from JAX: on which pictures, how measured, within which bounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal["float32", "float16", "bfloat16"]
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # NCHW, as the artefact

SIZES = ((16, 24), (33, 21), (75, 131))  # of the pictures of the check, LR pixels
EXACT = 1e-4  # of white: how far float32 may be from JAX
CLOSE = 50.0  # dB: what less precise formats must reach against JAX in float32


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far an artefact is from JAX in float32, on pictures of these LR sizes.

    max_abs: the largest difference, of white. psnr: of the difference, dB; None where there is
    none. finite: every number is one.
    """

    sizes: tuple[tuple[int, int], ...]
    max_abs: float
    psnr: float | None
    finite: bool

    def keeps(self, dtype: Dtype) -> bool:
        """Whether the artefact may be used in the place of the network."""
        if dtype == "float32":
            return self.finite and self.max_abs < EXACT
        return self.finite and (self.psnr is None or self.psnr >= CLOSE)


def sizes(least: int) -> tuple[tuple[int, int], ...]:
    """The sizes of the check, for a method that accepts pictures of at least `least` pixels."""
    return tuple((max(h, least), max(w, least)) for h, w in SIZES)


def picture(size: tuple[int, int], white: float) -> NDArray[np.float32]:
    """Noise with the spectrum of photographs, whose amplitude falls as 1 / frequency."""
    noise = np.random.default_rng(0).standard_normal((3, *size))
    rows, columns = (np.fft.fftfreq(side) for side in size)
    frequency = np.hypot(rows[:, None], columns[None])
    spectrum = np.fft.fft2(noise) / np.maximum(frequency, 1 / max(size))
    line = np.fft.ifft2(spectrum).real
    line = (line - line.min()) / np.ptp(line)
    return (white * line[None]).astype(np.float32)


def compare(run: Run, pictures: Sequence[Any], truth: Sequence[Any], white: float) -> Check:
    """What `run` makes of the pictures against the truth."""
    apart = [(run(lr) - sr) / white for lr, sr in zip(pictures, truth, strict=True)]
    errors = np.concatenate([each.ravel() for each in apart]).astype(np.float64)
    power = float(np.mean(errors**2))
    return Check(
        sizes=tuple(lr.shape[2:] for lr in pictures),
        max_abs=float(np.max(np.abs(errors))),
        psnr=float(-10 * np.log10(power)) if power > 0 else None,
        finite=bool(np.isfinite(errors).all()),
    )
