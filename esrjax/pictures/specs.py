"""Metric specs: the named conventions behind a PSNR or an SSIM, each stated in full."""

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from esrjax.errors import UserError

Metric = Literal["psnr", "ssim"]


class UnknownSpec(UserError):
    """A name that no metric spec has."""


@dataclass(frozen=True, kw_only=True)
class Luma:
    """One channel of three: `(red·R + green·G + blue·B) / over + black`, levels of 0 to 255."""

    name: str
    weights: tuple[float, float, float]  # of red, green, blue
    over: int = 1
    black: int = 0


STUDIO = Luma(
    name="luma of BT.601 (16 to 235)", weights=(65.481, 128.553, 24.966), over=255, black=16
)
FULL = Luma(name="luma of full range", weights=(299, 587, 114), over=1000)
# BT.601 in 256ths begins with 65.738.
SLIPPED = Luma(
    name="luma with 64.738 for red", weights=(64.738, 129.057, 25.064), over=256, black=16
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All that two people must agree on before they can compare decibels.

    version: another number is another metric under the same name. used: by whom. luma: the one
    channel that is compared; where None, red, green and blue, in one mean. levels: the metrics for
    which luma is rounded to whole levels. quantiser: how a network's output becomes levels; an
    8-bit picture is taken as it is. border: dropped at each side, pixels. window, sigma: side and
    standard deviation of SSIM's Gaussian, pixels. peak: the level of white. epsilon: added to the
    mean squared error, white at 1. anticorrelated: what SSIM makes of places where the pictures
    vary against each other.
    """

    name: str
    version: int = 1
    used: str
    luma: Luma | None = None
    levels: tuple[Metric, ...] = ()
    quantiser: Literal["round", "truncate", "none"] = "round"
    border: int = 4
    window: int = 11
    sigma: float = 1.5
    peak: int = 255
    epsilon: float = 0.0
    anticorrelated: Literal["negative", "zero"] = "negative"

    @property
    def floats(self) -> bool:
        """Whether it asks for a network's output before that is rounded to a picture."""
        return self.quantiser != "round"

    @property
    def words(self) -> str:
        """What it does, from its fields."""
        said = [
            self.luma.name + _LEVELS[self.levels] if self.luma else "RGB in one mean",
            _QUANTISERS[self.quantiser],
            f"border {self.border}",
            f"squared error + {self.epsilon:g}" if self.epsilon else "",
            "no SSIM below 0" if self.anticorrelated == "zero" else "",
        ]
        return "; ".join(filter(None, said))


_LEVELS: dict[tuple[Metric, ...], str] = {
    (): ", not rounded",
    ("ssim",): ", rounded for SSIM",
    ("psnr", "ssim"): ", rounded",
}
_QUANTISERS = {
    "round": "output rounded to 8 bits",
    "truncate": "output truncated to 8 bits",
    "none": "output clipped, not rounded",
}

NTIRE = Spec(name="ntire", used="the NTIRE challenge on efficient SR")
Y = Spec(name="y", used="papers; KAIR", luma=STUDIO, levels=("psnr", "ssim"))
BASICSR_Y = Spec(name="basicsr_y", used="BasicSR, test_y_channel", luma=STUDIO)
PYIQA_Y = Spec(
    name="pyiqa_y",
    used="pyiqa, psnry and ssim, crop_border=4",
    luma=FULL,
    levels=("ssim",),
    epsilon=1e-8,
    anticorrelated="zero",
)
SUPERIMAGE_Y = Spec(name="superimage_y", used="super-image", luma=SLIPPED, quantiser="none")

SPECS = {
    spec.name: spec
    for spec in (
        NTIRE,
        Y,
        BASICSR_Y,
        PYIQA_Y,
        replace(PYIQA_Y, name="pyiqa_y_border0", used="pyiqa as it comes", border=0),
        SUPERIMAGE_Y,
        replace(NTIRE, name="rgb_border0", used="programs that drop no border", border=0),
        replace(NTIRE, name="rgb_border10", used="programs that drop 6 + scale", border=10),
        replace(NTIRE, name="rgb_truncated", used="casts without rounding", quantiser="truncate"),
        replace(NTIRE, name="rgb_unrounded", used="losses; tensors as they are", quantiser="none"),
    )
}


def named(name: str) -> Spec:
    """The spec of that name."""
    if name in SPECS:
        return SPECS[name]
    near = difflib.get_close_matches(name.lower(), SPECS, n=1)
    raise UnknownSpec(
        f"there is no metric spec '{name}'",
        rule=f"the specs are {', '.join(SPECS)}",
        remedy=f"did you mean '{near[0]}'?" if near else "choose one of these",
    )
