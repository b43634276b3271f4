"""Image comparison of the report: crops of bicubic, of each method, and of the original."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from esrjax.data import resize, visualize
from esrjax.data.datasets import Pair
from esrjax.data.image_io import Pixels, list_images, read_image
from esrjax.errors import UserError
from esrjax.evaluation import metrics
from esrjax.evaluation.metrics import MetricSpec
from esrjax.schema import bullet_list

SRSource = Callable[[Pair], Pixels]  # returns the SR image of an LR/HR pair

BICUBIC = "bicubic"
ORIGINAL = "original"

_REGION_SIZE = 64  # side of the region that is enlarged at first, HR pixels


class MissingImages(UserError):
    """Raised when folders lack SR images of a dataset."""


@dataclass(frozen=True, kw_only=True)
class ImageComparison:
    """One crop of an image, as bicubic, every method and the original show it.

    Attributes:
        name: Name of the image.
        top: First row of the crop in the HR image.
        left: First column of the crop in the HR image.
        hr_size: (height, width) of the HR image.
        psnr: Label -> PSNR of the full SR image, dB.
        crops: Label -> crop, uint8 (h, w, 3).
    """

    name: str
    top: int
    left: int
    hr_size: tuple[int, int]
    psnr: Mapping[str, float]
    crops: Mapping[str, Pixels]

    def as_dict(self) -> dict[str, Any]:
        """Return the data of the page: crops as data URIs, an infinite PSNR as None."""
        finite = {label: v for label, v in self.psnr.items() if math.isfinite(v)}
        views = [
            {"label": label, "psnr": finite.get(label), "uri": _data_uri(pixels)}
            for label, pixels in self.crops.items()
        ]
        height, width = next(iter(self.crops.values())).shape[:2]
        box = {"top": self.top, "left": self.left, "height": height, "width": width}
        center = {"detail_center": _detail_center(self.crops[ORIGINAL])}
        return {"name": self.name, "hr_size": list(self.hr_size), **box, **center, "views": views}


def evenly_spaced(pairs: Sequence[Pair], limit: int) -> tuple[Pair, ...]:
    """Return at most `limit` pairs, evenly spaced over all of them."""
    count = min(limit, len(pairs))
    return tuple(pairs[round((k + 0.5) * len(pairs) / count - 0.5)] for k in range(count))


def compare_image(
    pair: Pair, sources: Mapping[str, SRSource], spec: MetricSpec, crop_size: int
) -> ImageComparison:
    """Compare methods on one image, in the square crop with the most detail.

    Args:
        pair: LR/HR pair.
        sources: Label -> source of a method's SR image.
        spec: Metric specification of the PSNR.
        crop_size: Side of the crop, HR pixels; an image of no more pixels is shown in full.

    Raises:
        IncomparableImages: An SR image has another size than the HR image.
    """
    lr, hr = pair.load()
    images = {BICUBIC: resize.bicubic_upscale(lr, pair.scale)}
    images |= {label: source(pair) for label, source in sources.items()}
    psnr = {label: _psnr(sr, hr, spec, f"{pair.name} of {label}") for label, sr in images.items()}
    images[ORIGINAL] = hr
    top, left, height, width = _crop_box(hr, crop_size)
    box = slice(top, top + height), slice(left, left + width)
    crops = {label: pixels[box] for label, pixels in images.items()}
    hr_size = (hr.shape[0], hr.shape[1])
    return ImageComparison(
        name=pair.name, top=top, left=left, hr_size=hr_size, psnr=psnr, crops=crops
    )


def upscaling_source(upscale: Callable[[Pixels], Pixels]) -> SRSource:
    """Return a source that upscales the LR image of a pair."""
    return lambda pair: upscale(pair.load()[0])


def folder_sources(folders: Mapping[str, Path], pairs: Sequence[Pair]) -> dict[str, SRSource]:
    """Return sources that read SR images from folders.

    Args:
        folders: Label -> folder. The SR image of NAME is NAME, NAMEx4 or, if it was upscaled from
            an LR image NAMEx4, NAMEx4x4; with any image extension.
        pairs: Pairs whose SR images are needed.

    Raises:
        MissingImages: SR images are missing; all of them are listed.
    """
    files_of = {label: _files_by_name(folder, pairs) for label, folder in folders.items()}
    missing = [
        f"{label}: '{folders[label]}' has no {pair.name}"
        for label, files in files_of.items()
        for pair in pairs
        if pair.name not in files
    ]
    if missing:
        raise MissingImages(
            f"Missing SR images: {bullet_list(missing, 'image')}",
            rule="a folder contains one image NAME.png or NAMEx4.png for every NAME that is shown",
            remedy="upscale the LR images of the dataset into it with `esrjax upscale`",
        )
    return {
        label: lambda pair, f=files: read_image(f[pair.name]).pixels
        for label, files in files_of.items()
    }


def _files_by_name(folder: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    files = {path.stem: path for path in list_images(folder)} if folder.is_dir() else {}
    stems_of = {pair.name: [pair.name + f"x{pair.scale}" * n for n in range(3)] for pair in pairs}
    return {
        name: next(files[stem] for stem in stems if stem in files)
        for name, stems in stems_of.items()
        if files.keys() & set(stems)
    }


def _crop_box(hr: Pixels, crop_size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop."""
    height, width = hr.shape[:2]
    if height * width <= crop_size * crop_size:
        return 0, 0, height, width
    side = min(crop_size, height, width)
    return *visualize.most_detailed_crop(hr, side), side, side


def _detail_center(pixels: Pixels) -> list[int]:
    """[x, y] of the center of the region with the most detail."""
    side = min(_REGION_SIZE, *pixels.shape[:2])
    top, left = visualize.most_detailed_crop(pixels, side)
    return [left + side // 2, top + side // 2]


def _psnr(sr: Pixels, hr: Pixels, spec: MetricSpec, location: str) -> float:
    try:
        return metrics.psnr(sr, hr, spec)
    except metrics.IncomparableImages as error:
        raise metrics.IncomparableImages(
            error.problem, location=location, rule=error.rule, remedy=error.remedy
        ) from error


def _data_uri(pixels: Pixels) -> str:
    """Lossless WebP, as the page computes error maps from these pixels."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
