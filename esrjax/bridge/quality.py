"""PSNR of the JAX and the PyTorch network on a dataset, and the uint8 values that differ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esrjax.data.datasets import Pair
from esrjax.evaluation import upscale
from esrjax.evaluation.metrics import NTIRE, psnr

NhwcForward = Callable[[Any], Any]  # (1, h, w, 3) -> (1, s·h, s·w, 3), in [0, data_range]

MAX_PSNR_DIFF_MDB = 1.0  # largest difference of the mean PSNR that passes, mdB


@dataclass(frozen=True, kw_only=True)
class QualityComparison:
    """Results of both networks on a dataset.

    Attributes:
        spec: Name of the metric spec.
        num_images: Number of images.
        jax_psnr: Mean PSNR of the JAX network, dB.
        torch_psnr: Mean PSNR of the PyTorch network, dB.
        num_changed_u8: uint8 values of the SR images that differ.
        num_values: All uint8 values of the SR images.
    """

    spec: str
    num_images: int
    jax_psnr: float
    torch_psnr: float
    num_changed_u8: int
    num_values: int

    @property
    def diff_mdb(self) -> float:
        """JAX's mean PSNR minus PyTorch's, mdB."""
        return 1000 * (self.jax_psnr - self.torch_psnr) if self.jax_psnr != self.torch_psnr else 0.0

    @property
    def passed(self) -> bool:
        """Whether the mean PSNR differs by at most `MAX_PSNR_DIFF_MDB`; NaN does not pass."""
        return abs(self.diff_mdb) <= MAX_PSNR_DIFF_MDB

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `diff_mdb` and `passed` in plain types, for JSON."""
        return {**vars(self), "diff_mdb": self.diff_mdb, "passed": self.passed}


def compare_quality(
    jax_forward: NhwcForward, torch_forward: NhwcForward, data_range: float, pairs: Sequence[Pair]
) -> QualityComparison:
    """Score both networks with the challenge's metric (`specs.NTIRE`).

    Args:
        jax_forward: The JAX network, `(1, h, w, 3) -> (1, s·h, s·w, 3)`.
        torch_forward: The PyTorch network, likewise.
        data_range: Value of white in both networks.
        pairs: LR and HR images.
    """
    upscalers = [
        upscale.uint8_upscaler(upscale.single_pass(forward, data_range))
        for forward in (jax_forward, torch_forward)
    ]
    psnrs: list[tuple[float, ...]] = []
    num_changed, num_values = 0, 0
    for pair in pairs:
        lr, hr = pair.load()
        jax_sr, torch_sr = (upscaler(lr) for upscaler in upscalers)
        psnrs.append(tuple(psnr(sr, hr, NTIRE) for sr in (jax_sr, torch_sr)))
        num_changed, num_values = (
            num_changed + int(np.sum(jax_sr != torch_sr)),
            num_values + jax_sr.size,
        )
    jax_mean, torch_mean = np.mean(psnrs, axis=0)
    return QualityComparison(
        spec=NTIRE.name,
        num_images=len(pairs),
        jax_psnr=float(jax_mean),
        torch_psnr=float(torch_mean),
        num_changed_u8=num_changed,
        num_values=num_values,
    )
