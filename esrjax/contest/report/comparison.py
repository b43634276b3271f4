"""Pictures of a set side by side: bicubic, each method, the original."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from esrjax.errors import UserError
from esrjax.pictures import metrics, panels, resize
from esrjax.pictures.files import Pixels, inside, read
from esrjax.pictures.sets import Pair
from esrjax.pictures.specs import Spec
from esrjax.schema import listing

Source = Callable[[Pair], Pixels]  # the SR picture of a pair

BICUBIC = "bicubic"
ORIGINAL = "original"

_REGION = 64  # side of the part to look at first, HR pixels


class MissingPictures(UserError):
    """Folders that lack SR pictures of a set."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A window of one picture, as everyone gives it. psnr: of whole pictures, dB."""

    name: str
    top: int
    left: int
    whole: tuple[int, int]  # (h, w) of the HR picture
    psnr: Mapping[str, float]
    windows: Mapping[str, Pixels]

    def data(self) -> dict[str, Any]:
        """For the page: windows as data URIs, an infinite PSNR as None."""
        finite = {label: v for label, v in self.psnr.items() if math.isfinite(v)}
        views = [
            {"label": label, "psnr": finite.get(label), "uri": _uri(pixels)}
            for label, pixels in self.windows.items()
        ]
        height, width = next(iter(self.windows.values())).shape[:2]
        extent = {"top": self.top, "left": self.left, "height": height, "width": width}
        detail = {"detail": _detail(self.windows[ORIGINAL])}
        return {"name": self.name, "whole": list(self.whole), **extent, **detail, "views": views}


def spread(pairs: Sequence[Pair], limit: int) -> tuple[Pair, ...]:
    """At most `limit` pairs, evenly spread over all."""
    count = min(limit, len(pairs))
    return tuple(pairs[round((k + 0.5) * len(pairs) / count - 0.5)] for k in range(count))


def compare(pair: Pair, sources: Mapping[str, Source], spec: Spec, side: int) -> Comparison:
    """The square of `side` HR pixels with the most detail; a picture of no more pixels, whole."""
    lr, hr = pair.load()
    every = {BICUBIC: resize.upscale(lr, pair.scale)}
    every |= {label: source(pair) for label, source in sources.items()}
    psnr = {label: _psnr(sr, hr, spec, f"{pair.name} of {label}") for label, sr in every.items()}
    every[ORIGINAL] = hr
    top, left, height, width = _window(hr, side)
    inner = slice(top, top + height), slice(left, left + width)
    windows = {label: pixels[inner] for label, pixels in every.items()}
    whole = (hr.shape[0], hr.shape[1])
    return Comparison(name=pair.name, top=top, left=left, whole=whole, psnr=psnr, windows=windows)


def upscaled(upscale: Callable[[Pixels], Pixels]) -> Source:
    """The SR pictures that a method makes now."""
    return lambda pair: upscale(pair.load()[0])


def stored(folders: Mapping[str, Path], pairs: Sequence[Pair]) -> dict[str, Source]:
    """The SR pictures in folders, where NAME is NAME, NAMEx4 or, made from NAMEx4, NAMEx4x4."""
    found = {label: _by_pair(folder, pairs) for label, folder in folders.items()}
    lacking = [
        f"{label}: '{folders[label]}' has no {pair.name}"
        for label, files in found.items()
        for pair in pairs
        if pair.name not in files
    ]
    if lacking:
        raise MissingPictures(
            f"SR pictures are missing: {listing(lacking, 'picture')}",
            rule="a folder holds one picture NAME.png or NAMEx4.png for every NAME that is shown",
            remedy="upscale the LR pictures of the set into it with `esrjax upscale`",
        )
    return {
        label: lambda pair, f=files: read(f[pair.name]).pixels for label, files in found.items()
    }


def _by_pair(folder: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    files = {path.stem: path for path in inside(folder)} if folder.is_dir() else {}
    spellings = {pair.name: [pair.name + f"x{pair.scale}" * n for n in range(3)] for pair in pairs}
    return {
        name: next(files[stem] for stem in stems if stem in files)
        for name, stems in spellings.items()
        if files.keys() & set(stems)
    }


def _window(hr: Pixels, side: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what is shown."""
    height, width = hr.shape[:2]
    if height * width <= side * side:
        return 0, 0, height, width
    square = min(side, height, width)
    return *panels.busiest(hr, square), square, square


def _detail(pixels: Pixels) -> list[int]:
    """[x, y] of the middle of what has most detail."""
    square = min(_REGION, *pixels.shape[:2])
    top, left = panels.busiest(pixels, square)
    return [left + square // 2, top + square // 2]


def _psnr(sr: Pixels, hr: Pixels, spec: Spec, place: str) -> float:
    try:
        return metrics.psnr(sr, hr, spec)
    except metrics.Incomparable as error:
        raise metrics.Incomparable(
            error.problem, place=place, rule=error.rule, remedy=error.remedy
        ) from error


def _uri(pixels: Pixels) -> str:
    """Lossless, so that the page can tell errors in grey levels."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
