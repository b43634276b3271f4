"""Any LR -> SR function over a set of pairs, under one metric spec or several."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import Incomparable, Output, psnr, ssim
from esrjax.pictures.pairs import Pair, Progress
from esrjax.pictures.specs import Spec
from esrjax.pictures.upscale import to_8_bits

Upscale = Callable[[Pixels], Output]  # (h, w, 3) -> (scale·h, scale·w, 3)


class WrongOutput(UserError):
    """An upscaler whose output is no picture of the right size."""


class Unscorable(UserError):
    """A list of pairs over which no mean can be taken."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How close one SR picture, or a set of them on average, comes to the truth."""

    psnr: float  # dB
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The quality of every picture of a set, under the metric spec of this name."""

    spec: str
    images: Mapping[str, Quality]

    @property
    def mean(self) -> Quality:
        """The arithmetic means; of PSNR, the mean of the decibels."""
        qualities = self.images.values()
        return Quality(
            psnr=fmean(quality.psnr for quality in qualities),
            ssim=fmean(quality.ssim for quality in qualities),
        )

    def as_dict(self) -> dict[str, Any]:
        """`{"spec": ..., "mean": {"psnr", "ssim"}, "images": {NAME: {"psnr", "ssim"}}}`."""
        images = {name: asdict(quality) for name, quality in self.images.items()}
        return {"spec": self.spec, "mean": asdict(self.mean), "images": images}


def seen(net: Any, spec: Spec, **strategy: Any) -> Upscale:
    """What a spec sees of a model: its pictures, or the floats that it rounds to make them.

    strategy: how a model is run, as its `upscaler` takes it.
    """
    if not hasattr(net, "upscaler"):
        return net
    floats = net.upscaler(**strategy)
    return floats if spec.floats else to_8_bits(floats)


def score(upscale: Upscale, pairs: Sequence[Pair], spec: Spec, progress: Progress = iter) -> Scores:
    """The scores of `upscale` over all pairs."""
    return score_each(upscale, pairs, [spec], progress)[0]


def score_each(
    upscale: Upscale, pairs: Sequence[Pair], specs: Sequence[Spec], progress: Progress = iter
) -> tuple[Scores, ...]:
    """The scores under each spec, every picture upscaled once.

    `upscale` gives bytes, or, where a spec asks for what is before them, floats with white at 1.
    """
    _check_names(pairs)
    floats = any(spec.floats for spec in specs)
    images: list[dict[str, Quality]] = [{} for _ in specs]
    for pair in progress(pairs):
        sr, hr = _run(upscale, pair, floats)
        for spec, qualities in zip(specs, images, strict=True):
            qualities[pair.name] = _compare(sr, hr, spec, pair.name)
    return tuple(
        Scores(spec=spec.name, images=qualities)
        for spec, qualities in zip(specs, images, strict=True)
    )


def _run(upscale: Upscale, pair: Pair, floats: bool) -> tuple[Output, Pixels]:
    """The SR picture of a pair and its HR."""
    lr, hr = pair.load()
    sr = upscale(lr)
    kind = np.issubdtype(sr.dtype, np.floating) if floats else sr.dtype == np.uint8
    if kind and sr.shape == hr.shape:
        return sr, hr
    asked = "floats, white at 1, of shape" if floats else "uint8"
    raise WrongOutput(
        f"the output is {sr.dtype} {sr.shape} for an LR picture of {lr.shape}",
        place=pair.name,
        rule=f"it is {asked} {hr.shape}: {pair.scale} x the LR sides",
        remedy="check the scale of the method, and that its output is "
        + ("not rounded, as this metric asks" if floats else "turned into bytes"),
    )


def _compare(sr: Output, hr: Pixels, spec: Spec, name: str) -> Quality:
    try:
        return Quality(psnr=psnr(sr, hr, spec), ssim=ssim(sr, hr, spec))
    except Incomparable as error:
        raise Incomparable(
            error.problem, place=name, rule=error.rule, remedy=error.remedy
        ) from error


def _check_names(pairs: Sequence[Pair]) -> None:
    names = Counter(pair.name for pair in pairs)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice or not names:
        raise Unscorable(
            f"these names occur twice: {', '.join(twice)}" if twice else "there are no pairs",
            rule="scores are kept by name, over at least one pair",
            remedy="score sets one by one",
        )
