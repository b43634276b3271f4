"""Content of the report, as JSON-serializable data: a ranking, every figure with its provenance.

With the per-image figures for the plots, aligned across methods, and the image comparison: crops
of bicubic, of each method, and of the original.
"""

import base64
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from esrjax.challenge import table
from esrjax.challenge.rank import STATUSES, TRACKS, RankedEntry, Ranking, Track, compared_figures
from esrjax.challenge.results import ImageSeries
from esrjax.challenge.table import SCORE_LABELS, Column, format_score
from esrjax.data import resize
from esrjax.data.datasets import Pair
from esrjax.data.image_io import Pixels, list_images, read_image
from esrjax.errors import IncomparableImages, NotFound
from esrjax.evaluation import metrics
from esrjax.evaluation.metrics import MetricSpec
from esrjax.schema import bullet_list

Data = dict[str, Any]
# Returns the SR image for a pair and its LR image, and notes on what reading it has changed.
SRSource = Callable[[Pair, Pixels], tuple[Pixels, tuple[str, ...]]]

BICUBIC = "bicubic"
ORIGINAL = "original"

_REGION_SIZE = 64  # side of the region that is enlarged at first, HR pixels
_DECIMALS = 4  # of dB and ms in the page's data


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
        notes: What reading the images has changed; those on an SR image begin with its label.
    """

    name: str
    top: int
    left: int
    hr_size: tuple[int, int]
    psnr: Mapping[str, float]
    crops: Mapping[str, Pixels]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> Data:
        """Return the data of the page: crops as data URIs, an infinite PSNR as None."""
        finite = {label: psnr for label, psnr in self.psnr.items() if math.isfinite(psnr)}
        original = self.crops[ORIGINAL]
        return {
            "name": self.name,
            "hr_size": list(self.hr_size),
            "top": self.top,
            "left": self.left,
            "height": original.shape[0],
            "width": original.shape[1],
            "detail_center": _detail_center(original),
            "views": [
                {"label": label, "psnr": finite.get(label), "uri": _data_uri(pixels)}
                for label, pixels in self.crops.items()
            ],
        }


def build_content(
    ranking: Ranking, source: str, comparisons: Sequence[ImageComparison] = (), footer: str = ""
) -> Data:
    """Return the data that the page's script renders.

    Args:
        ranking: The ranking.
        source: Name of the file or folder that its rows were read from.
        comparisons: Images to compare.
        footer: Version and date, for the end of the page.
    """
    columns, thresholds = list(table.columns(ranking)), ranking.rules.psnr_thresholds.by_split
    num_ranked = len(ranking.with_status("ranked"))
    return {
        "title": ranking.rules.name,
        "summary": _summary(ranking),
        "scale": table.describe_scale(ranking),
        "notes": list(ranking.notes),
        "footer": f"From {source}. {footer}".strip(),
        "columns": [vars(column) for column in columns],
        "scores": [{"key": track, "label": label} for track, label in SCORE_LABELS.items()],
        "groups": [
            {
                "status": status,
                "description": table.describe_status(status, ranking),
                "entries": [k for k, e in enumerate(ranking.entries) if e.status == status],
            }
            for status in STATUSES
            if ranking.with_status(status)
        ],
        "entries": [
            _entry_data(entry, ranking, columns, source, num_ranked) for entry in ranking.entries
        ],
        "psnr_thresholds": {f"psnr_{split}": threshold for split, threshold in thresholds.items()}
        if ranking.apply_thresholds
        else {},
        "datasets": per_dataset_series(ranking.entries),
        "images": [comparison.as_dict() for comparison in comparisons],
    }


def _entry_data(
    entry: RankedEntry, ranking: Ranking, columns: Sequence[Column], source: str, num_ranked: int
) -> Data:
    row = entry.row
    scores = {track: _score_cell(entry, track, ranking, num_ranked) for track in TRACKS}
    figures = {
        column.key: {
            "text": column.text(row),
            "value": value,
            "note": row.provenance.get(column.key.partition(".")[0], f"from {source}"),
            "below_threshold": column.is_below_threshold(entry),
        }
        for column in columns
        if (value := column.value(row)) is not None or column.is_unknown(row)
    }
    return {
        "team": row.team,
        "method": row.method,
        "weights": row.weights_origin,
        "status": entry.status,
        "waiver": entry.waiver,
        "rank": entry.rank("main"),
        "cells": {**figures, **scores},
    }


def _score_cell(entry: RankedEntry, track: Track, ranking: Ranking, num_ranked: int) -> Data:
    """Cell of a score; its value for sorting is the logarithm, which never overflows."""
    rank = f"rank {entry.ranks[track]} of {num_ranked}" if entry.ranks else "not ranked"
    return {
        "text": format_score(entry.score(track)),
        "value": entry.log_scores[track],
        "rank": entry.rank(track),
        "note": f"{_formula_text(entry, track, ranking)}; {rank}",
    }


def _formula_text(entry: RankedEntry, track: Track, ranking: Ranking) -> str:
    """Equation 1 or 2 of the challenge report with the entry's figures."""
    formula, score = ranking.rules.score, entry.score(track)
    if track == "main":
        return " + ".join(
            f"{getattr(formula.weights, name):g} · {format_score(entry.score(name))} ({name})"
            for name in TRACKS
            if name != "main"
        )
    value, baseline = compared_figures(entry.row, ranking.reference)[track]
    text = format_score(score) if math.isfinite(score) else "over 1.8e308"
    return f"exp({formula.factor:g} · {value:.6g} / {baseline:.6g}) = {text}"


def _summary(ranking: Ranking) -> str:
    """The outcome in two sentences."""
    ranked, count = len(ranking.with_status("ranked")), len(ranking.entries)
    first = min(ranking.entries, key=lambda entry: (entry.ranks is None, entry.log_scores["main"]))
    decimals = ranking.rules.score.decimals.runtime
    runtimes = compared_figures(first.row, ranking.reference)["runtime"]
    own, baseline = (f"{value:.{decimals}f}\u00a0ms" for value in runtimes)
    name = first.row.team
    if first.row.weights_origin in ("shipped", "own"):  # it begins a sentence
        name = name[:1].upper() + name[1:]
    methods = f"{count} method{'s' * (count != 1)}"
    return (
        f"{ranked or 'None'} of {methods} {'is' if ranked < 2 else 'are'} ranked. "
        f"{name} {'leads with' if ranked else 'has'} the lowest main score, "
        f"{format_score(first.score('main'))}, at {own}; the baseline takes {baseline}."
    )


# --- per-image figures ---


def per_dataset_series(entries: Sequence[RankedEntry]) -> list[Data]:
    """Return the per-image figures of each dataset that has some.

    Args:
        entries: Entries of the ranking, in its order.

    Returns:
        For each dataset `name`, its `image_names`, and one of `rows` for each entry with figures:
        the index of the `entry`, `psnr` in dB and `runtime_ms`, in the order of the images. A
        figure is None where a method lacks an image; a list is empty where it has no figures at
        all. `baseline` is the index of the baseline's row, or None.
    """
    datasets = dict.fromkeys(name for entry in entries for name in entry.row.series)
    return [_dataset(name, entries) for name in datasets]


def _dataset(name: str, entries: Sequence[RankedEntry]) -> Data:
    series = {k: e.row.series[name] for k, e in enumerate(entries) if name in e.row.series}
    image_names = list(dict.fromkeys(image for s in series.values() for image in _names(s)))
    baselines = (row for row, k in enumerate(series) if entries[k].status == "baseline")
    return {
        "name": name,
        "image_names": image_names,
        "baseline": next(baselines, None),
        "rows": [
            {
                "entry": k,
                "psnr": _align(_names(s), s.psnr, image_names),
                "runtime_ms": _align(_names(s), s.runtime_ms, image_names),
            }
            for k, s in series.items()
        ],
    }


def _names(series: ImageSeries) -> tuple[str, ...]:
    """Image names, or numbers from 1 where they are unknown."""
    count = max(len(series.psnr), len(series.runtime_ms))
    return series.image_names or tuple(f"no. {k}" for k in range(1, count + 1))


def _align(
    names: Sequence[str], values: Sequence[float], image_names: Sequence[str]
) -> list[float | None]:
    """The values in the order of `image_names`; an empty list if there are none."""
    if not values:
        return []
    by_name = dict(zip(names, values, strict=False))  # may have fewer values than images
    return [round(by_name[name], _DECIMALS) if name in by_name else None for name in image_names]


# --- image comparison ---


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
    pair_images = pair.read()
    lr, hr, notes = pair_images.lr, pair_images.hr, list(pair_images.notes)
    images = {BICUBIC: resize.bicubic_upscale(lr, pair.scale)}
    for label, source in sources.items():
        images[label], sr_notes = source(pair, lr)
        notes += [f"{label}: {note}" for note in sr_notes]
    psnr = {label: _psnr(sr, hr, spec, f"{pair.name} of {label}") for label, sr in images.items()}
    images[ORIGINAL] = hr
    top, left, height, width = _crop_box(hr, crop_size)
    return ImageComparison(
        name=pair.name,
        top=top,
        left=left,
        hr_size=(hr.shape[0], hr.shape[1]),
        psnr=psnr,
        crops={k: image[top : top + height, left : left + width] for k, image in images.items()},
        notes=tuple(notes),
    )


def upscaling_source(upscale: Callable[[Pixels], Pixels]) -> SRSource:
    """Return a source that upscales the LR image of a pair."""
    return lambda pair, lr: (upscale(lr), ())


def folder_sources(folders: Mapping[str, Path], pairs: Sequence[Pair]) -> dict[str, SRSource]:
    """Return sources that read SR images from folders.

    Args:
        folders: Label -> folder. The SR image of NAME is NAME, NAMEx4 or, if it was upscaled from
            an LR image NAMEx4, NAMEx4x4; with any image extension.
        pairs: Pairs whose SR images are needed.

    Raises:
        NotFound: SR images are missing; all of them are listed.
    """
    sources: dict[str, SRSource] = {}
    missing: list[str] = []
    for label, folder in folders.items():
        by_stem = {path.stem: path for path in list_images(folder)} if folder.is_dir() else {}
        files = {
            pair.name: by_stem[stem]
            for pair in pairs
            for stem in (pair.name + f"x{pair.scale}" * n for n in (2, 1, 0))  # the last one counts
            if stem in by_stem
        }
        sources[label] = partial(_read_sr_image, files)
        names = [pair.name for pair in pairs if pair.name not in files]
        missing += [f"{label}: '{folder}' has no {name}" for name in names]
    if missing:
        raise NotFound(
            f"Missing SR images: {bullet_list(missing, 'image')}",
            rule="a folder contains one image NAME.png or NAMEx4.png for every NAME that is shown",
            remedy="upscale the LR images of the dataset into it with `esrjax upscale`",
        )
    return sources


def _read_sr_image(
    files: Mapping[str, Path], pair: Pair, lr: Pixels
) -> tuple[Pixels, tuple[str, ...]]:
    image = read_image(files[pair.name])
    return image.pixels, image.notes


def _crop_box(hr: Pixels, crop_size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop."""
    height, width = hr.shape[:2]
    if height * width <= crop_size * crop_size:
        return 0, 0, height, width
    side = min(crop_size, height, width)
    return *most_detailed_crop(hr, side), side, side


def _detail_center(pixels: Pixels) -> list[int]:
    """[x, y] of the center of the region with the most detail."""
    side = min(_REGION_SIZE, *pixels.shape[:2])
    top, left = most_detailed_crop(pixels, side)
    return [left + side // 2, top + side // 2]


def _psnr(sr: Pixels, hr: Pixels, spec: MetricSpec, location: str) -> float:
    try:
        return metrics.psnr(sr, hr, spec)
    except IncomparableImages as error:
        raise error.with_location(location) from error


def _data_uri(pixels: Pixels) -> str:
    """Lossless WebP, as the page computes error maps from these pixels."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def crop_square(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    """Return the square of `side` pixels whose upper left corner is (top, left)."""
    return pixels[top : top + side, left : left + side]


def most_detailed_crop(pixels: Pixels, side: int, step: int = 16) -> tuple[int, int]:
    """Return the corner (top, left) of the square with the most detail.

    Detail is the sum of absolute differences of neighboring pixels (total variation) of the gray
    image.

    Args:
        pixels: (h, w, 3) uint8.
        side: Of the square, pixels.
        step: Squares are compared whose corners are multiples of it, pixels.
    """
    gray = pixels.astype(np.float64).mean(-1)
    variation = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    tops, lefts = (range(0, length - side + 1, step) for length in pixels.shape[:2])
    corners = itertools.product(tops, lefts)
    return max(corners, key=lambda corner: crop_square(variation, *corner, side).sum())  # pyright: ignore[reportArgumentType] # slicing takes any dtype
