"""PSNR and SSIM of an upscaler over a dataset, under one metric spec or several."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from esrjax.data.datasets import Pair, PairImages, Progress, lr_source
from esrjax.data.image_arrays import as_array
from esrjax.data.image_io import Pixels
from esrjax.errors import IncomparableImages, InvalidArgument, InvalidOutput
from esrjax.evaluation.metrics import MetricSpec, SRImage, psnr, ssim
from esrjax.evaluation.upscale import uint8_upscaler

# (h, w, 3) uint8 -> (scale·h, scale·w, 3), uint8 or floats in [0, 1].
ScorableUpscaler = Callable[[Pixels], SRImage]


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """PSNR and SSIM of one SR image, or their means over a dataset.

    Attributes:
        psnr: In dB.
        ssim: In [-1, 1].
    """

    psnr: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """PSNR and SSIM of every image of a dataset.

    Attributes:
        spec: Name of the metric spec.
        images: Name of a pair -> its metrics.
        lr_source: Where the LR images come from, see `datasets.lr_source`.
        images_sha256: SHA-256 of the names and the pixels of all images, LR and HR, as read.
        notes: Name of a pair -> what reading its images has changed; none where nothing was.
    """

    spec: str
    images: Mapping[str, ImageMetrics]
    lr_source: str
    images_sha256: str
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def mean(self) -> ImageMetrics:
        """The arithmetic means over the images; PSNR is averaged in dB."""
        metrics = self.images.values()
        return ImageMetrics(
            psnr=fmean(m.psnr for m in metrics), ssim=fmean(m.ssim for m in metrics)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `mean` in plain types: images as `{NAME: {"psnr", "ssim"}}`.

        "notes" is `{NAME: [NOTE]}`, of the images that have any.
        """
        head = {"lr_source": self.lr_source, "images_sha256": self.images_sha256}
        head |= {"spec": self.spec, "mean": asdict(self.mean)}
        images = {name: asdict(metrics) for name, metrics in self.images.items()}
        notes = {name: list(texts) for name, texts in self.notes.items()}
        return {**head, "images": images, "notes": notes}


def as_scorable(net: Any, spec: MetricSpec, **strategy: Any) -> ScorableUpscaler:
    """Return a model as a function with the output that a metric spec needs.

    Args:
        net: A `Model` or `EnsembleModel`; any other callable is returned unchanged.
        spec: Decides whether the output is uint8, or floats in [0, 1] before rounding.
        **strategy: Keyword arguments of `net.upscaler`: self_ensemble, windows.
    """
    if not hasattr(net, "upscaler"):
        return _check_callable(net)
    upscaler = net.upscaler(**strategy)
    return upscaler if spec.needs_float_output else uint8_upscaler(upscaler)


def _check_callable(net: Any) -> ScorableUpscaler:
    from flax import nnx

    if callable(net) and not isinstance(net, nnx.Module):
        return net  # pyright: ignore[reportReturnType] # any callable
    raise InvalidArgument(
        f"{type(net).__name__} cannot be scored",
        rule="a model, as `esrjax.load` returns, or a function from LR images (h, w, 3), uint8, to "
        "SR images (s·h, s·w, 3), uint8",
        remedy='load a method by name: `esrjax.load("span")`; around a network, write a function',
    )


def score(
    upscaler: ScorableUpscaler, pairs: Sequence[Pair], spec: MetricSpec, progress: Progress = iter
) -> Scores:
    """Return the scores of an upscaler over all pairs (see `score_with_specs`)."""
    return score_with_specs(upscaler, pairs, [spec], progress)[0]


def score_with_specs(
    upscaler: ScorableUpscaler,
    pairs: Sequence[Pair],
    specs: Sequence[MetricSpec],
    progress: Progress = iter,
) -> tuple[Scores, ...]:
    """Return the scores under each spec; every image is upscaled once.

    Args:
        upscaler: (h, w, 3) uint8 -> (scale·h, scale·w, 3), uint8, or floats in [0, 1] if any of the
            specs needs float output (see `as_scorable`).
        pairs: With unique names.
        specs: The metric specs.
        progress: Wraps the pairs, for instance in a progress bar.

    Raises:
        InvalidOutput: If the output has the wrong shape or dtype.
        InvalidArgument: If there are no pairs, or two of the same name.
        IncomparableImages: If an image is too small for a spec.
    """
    names = Counter(pair.name for pair in pairs)
    duplicates = sorted(name for name, count in names.items() if count > 1)
    if duplicates or not names:
        raise InvalidArgument(
            f"Duplicate image names: {', '.join(duplicates)}" if duplicates else "No image pairs",
            rule="scores are stored by image name, and averaged over at least one pair",
            remedy="score one dataset at a time",
        )
    as_floats = any(spec.needs_float_output for spec in specs)
    metrics: dict[str, list[ImageMetrics]] = {}
    notes: dict[str, tuple[str, ...]] = {}
    digest = hashlib.sha256()
    for pair in progress(pairs):
        images = pair.read()
        digest.update(repr((pair.name, images.lr.shape)).encode())
        digest.update(images.lr.tobytes())
        digest.update(images.hr.tobytes())
        metrics[pair.name] = _measure(upscaler, pair, images, specs, as_floats)
        notes |= {pair.name: images.notes} if images.notes else {}
    source = lr_source(pairs)
    of_specs = [{name: row[i] for name, row in metrics.items()} for i in range(len(specs))]
    return tuple(
        Scores(
            spec=spec.name,
            images=images,
            lr_source=source,
            images_sha256=digest.hexdigest(),
            notes=notes,
        )
        for spec, images in zip(specs, of_specs, strict=True)
    )


def _measure(
    upscaler: ScorableUpscaler,
    pair: Pair,
    images: PairImages,
    specs: Sequence[MetricSpec],
    as_floats: bool,
) -> list[ImageMetrics]:
    """Return the metrics of one image under each spec."""
    lr, hr = images.lr, images.hr
    output = upscaler(lr)
    try:
        sr = as_array(output)
    except InvalidArgument as error:
        raise InvalidOutput(
            error.problem.replace("the image", "the output", 1),
            location=pair.name,
            rule="the output is an array of NumPy or JAX, a PIL image, or a PyTorch tensor",
            remedy=error.remedy,
        ) from error
    specs = [spec.at_scale(pair.scale) for spec in specs]
    is_valid_dtype = np.issubdtype(sr.dtype, np.floating) if as_floats else sr.dtype == np.uint8
    if not is_valid_dtype or sr.shape != hr.shape:
        expected = "floats in [0, 1] of shape" if as_floats else "uint8"
        raise InvalidOutput(
            f"the output is {sr.dtype} {sr.shape} for an LR image of {lr.shape}",
            location=pair.name,
            rule=f"the output is {expected} {hr.shape}: {pair.scale} x the LR size",
            remedy="check the scale of the method, and that its output is "
            + ("not rounded, as this metric requires" if as_floats else "converted to uint8"),
        )
    try:
        return [ImageMetrics(psnr=psnr(sr, hr, spec), ssim=ssim(sr, hr, spec)) for spec in specs]
    except IncomparableImages as error:
        raise error.with_location(pair.name) from error
