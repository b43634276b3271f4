"""Comparison of a mean PSNR with the threshold of a challenge, before and after rounding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from esrjax.contest.rules import Rules

Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
ThresholdOutcome = Literal["passes", "passes only after rounding", "waived", "fails", "not checked"]


@dataclass(frozen=True, kw_only=True)
class ThresholdCheck:
    """A mean PSNR and the threshold that it must reach.

    Attributes:
        split: Split of the challenge over which the mean was taken.
        psnr: Mean PSNR, dB.
        num_images: Number of images behind the mean.
        required_images: Number of images of the challenge's own split.
        threshold: PSNR to reach, dB.
        decimals: Decimals to which the challenge rounds the PSNR before it compares.
        waiver: Why the team is ranked even below the threshold, or None.
    """

    split: Split
    psnr: float
    num_images: int
    required_images: int
    threshold: float
    decimals: int
    waiver: str | None = None

    @property
    def rounded_margin_mdb(self) -> float:
        """Rounded PSNR minus threshold, in 0.001 dB; negative if the check fails."""
        return 1000 * round(round(self.psnr, self.decimals) - self.threshold, self.decimals)

    @property
    def unrounded_margin_mdb(self) -> float:
        """PSNR minus threshold, in 0.001 dB."""
        return 1000 * (self.psnr - self.threshold)

    @property
    def outcome(self) -> ThresholdOutcome:
        """Outcome under the rules; "not checked" if the images are not the whole split."""
        if self.num_images != self.required_images:
            return "not checked"
        if self.rounded_margin_mdb < 0:
            return "waived" if self.waiver else "fails"
        return "passes" if self.unrounded_margin_mdb >= 0 else "passes only after rounding"


def threshold_checks(
    means: Mapping[Split, tuple[float, int]], rules: Rules, team: str
) -> tuple[ThresholdCheck, ...]:
    """Return the threshold check of each split.

    Args:
        means: Split -> mean PSNR in dB, and the number of images behind it.
        rules: Rules with the thresholds.
        team: Team of the entry, which may have a waiver.
    """
    thresholds = rules.psnr_thresholds
    return tuple(
        ThresholdCheck(
            split=split,
            psnr=psnr,
            num_images=num_images,
            required_images=thresholds.num_images,
            threshold=thresholds.valid if split == "valid" else thresholds.test,
            decimals=thresholds.decimals,
            waiver=rules.waiver_reason(team),
        )
        for split, (psnr, num_images) in means.items()
    )
