"""Columns of the report's table, and the cell of each entry in them."""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from esrjax.challenge import table
from esrjax.challenge.rank import STATUSES, TRACKS, RankedEntry, Ranking, Track, baseline_runtime_ms
from esrjax.challenge.results import ImageSeries, Row
from esrjax.data import resize, visualize
from esrjax.data.datasets import Pair
from esrjax.data.image_io import Pixels, list_images, read_image
from esrjax.errors import IncomparableImages, NotFound
from esrjax.evaluation import metrics
from esrjax.evaluation.metrics import MetricSpec
from esrjax.schema import bullet_list


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every method.

    Attributes:
        key: Field of `Row`; `FIELD.DATASET` for a field that maps datasets to figures.
        label: Heading.
        unit: Unit of the figure.
        decimals: Decimals shown.
    """

    key: str
    label: str
    unit: str
    decimals: int

    @property
    def field(self) -> str:
        """The field of `Row`."""
        return self.key.partition(".")[0]

    def value(self, row: Row) -> float | None:
        """Return the figure of a row, or None if it has none."""
        value = getattr(row, self.field)
        return value.get(self.key.partition(".")[2]) if "." in self.key else value

    def cell(self, entry: RankedEntry, source: str) -> dict[str, Any]:
        """Return the cell of an entry that has this figure: text, value, provenance, threshold."""
        value = self.value(entry.row)
        return {
            "text": f"{value:.{self.decimals}f}",
            "value": value,
            "note": entry.row.provenance.get(self.field, f"from {source}"),
            "below_threshold": self.key.removeprefix("psnr_") in entry.below_threshold,
        }


def visible_columns(ranking: Ranking) -> list[Column]:
    """Return the columns in which at least one method has a figure."""
    return [
        c for c in _all_columns(ranking) if any(c.value(row) is not None for row in ranking.rows)
    ]


def _all_columns(ranking: Ranking) -> Iterator[Column]:
    decimals = ranking.rules.score.decimals
    other_datasets = {name for row in ranking.rows for name in row.psnr_other}
    protocol_datasets = {name for row in ranking.rows for name in row.protocol_ms}
    psnrs = {
        "psnr_valid": "PSNR valid",
        "psnr_test": "PSNR test",
        **{f"psnr_other.{name}": f"PSNR {name}" for name in sorted(other_datasets)},
    }
    runtimes = {
        "runtime_valid_ms": "Runtime valid",
        "runtime_test_ms": "Runtime test",
        **{f"protocol_ms.{name}": f"Protocol {name}" for name in sorted(protocol_datasets)},
        "runtime_ms": "Runtime",
        "baseline_ms": "Baseline interleaved",
    }
    for key, label in psnrs.items():
        yield Column(key=key, label=label, unit="dB", decimals=2)
    for key, label in runtimes.items():
        yield Column(key=key, label=label, unit="ms", decimals=decimals.runtime)
    yield Column(key="params_m", label="Params", unit="M", decimals=decimals.params)
    yield Column(key="flops_g", label="FLOPs", unit="G", decimals=decimals.flops)


# --------------------------------------------------------------------------------------------------
# Per-image figures for the report's plots, aligned across methods.
# --------------------------------------------------------------------------------------------------


_DECIMALS = 4  # of dB and ms in the page's data


def per_dataset_series(entries: Sequence[RankedEntry]) -> list[dict[str, Any]]:
    """Return the per-image figures of each dataset that has some.

    Args:
        entries: Entries of the ranking, in its order.

    Returns:
        For each dataset `name`, its `image_names`, and one of `rows` for each entry with figures:
        the index of the `entry`, `psnr` in dB and `runtime_ms`, in the order of the images. A
        figure is None where a method lacks an image; a list is empty where it has no figures at
        all. `baseline` is the index of the baseline's row, or None.
    """
    names = dict.fromkeys(name for entry in entries for name in entry.row.series)
    return [_dataset(name, entries) for name in names]


def _dataset(name: str, entries: Sequence[RankedEntry]) -> dict[str, Any]:
    series = {k: e.row.series[name] for k, e in enumerate(entries) if name in e.row.series}
    image_names = list(dict.fromkeys(n for figures in series.values() for n in _names(figures)))
    rows = [
        {
            "entry": k,
            "psnr": _align(_names(figures), figures.psnr, image_names),
            "runtime_ms": _align(_names(figures), figures.runtime_ms, image_names),
        }
        for k, figures in series.items()
    ]
    baselines = [n for n, k in enumerate(series) if entries[k].status == "baseline"]
    return {
        "name": name,
        "image_names": image_names,
        "baseline": next(iter(baselines), None),
        "rows": rows,
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


# --------------------------------------------------------------------------------------------------
# Image comparison of the report: crops of bicubic, of each method, and of the original.
# --------------------------------------------------------------------------------------------------


SRSource = Callable[[Pair], Pixels]  # returns the SR image of an LR/HR pair

BICUBIC = "bicubic"
ORIGINAL = "original"

_REGION_SIZE = 64  # side of the region that is enlarged at first, HR pixels


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
        NotFound: SR images are missing; all of them are listed.
    """
    files_of = {label: _files_by_name(folder, pairs) for label, folder in folders.items()}
    missing = [
        f"{label}: '{folders[label]}' has no {pair.name}"
        for label, files in files_of.items()
        for pair in pairs
        if pair.name not in files
    ]
    if missing:
        raise NotFound(
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
    except IncomparableImages as error:
        raise IncomparableImages(
            error.problem, location=location, rule=error.rule, remedy=error.remedy
        ) from error


def _data_uri(pixels: Pixels) -> str:
    """Lossless WebP, as the page computes error maps from these pixels."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, method=6)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --------------------------------------------------------------------------------------------------
# Content of the report: a ranking as JSON-serializable data, every figure with its provenance.
# --------------------------------------------------------------------------------------------------


Data = dict[str, Any]

_SCORE_LABELS: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
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
    columns = visible_columns(ranking)
    return {
        "title": ranking.rules.name,
        "summary": _summary(ranking),
        "scale": table.describe_scale(ranking),
        "notes": list(ranking.notes),
        "footer": f"From {source}. {footer}".strip(),
        "columns": [vars(column) for column in columns],
        "scores": [{"key": track, "label": label} for track, label in _SCORE_LABELS.items()],
        "groups": _groups(ranking),
        "entries": [_entry_data(entry, ranking, columns, source) for entry in ranking.entries],
        "psnr_thresholds": _psnr_thresholds(ranking),
        "datasets": per_dataset_series(ranking.entries),
        "images": [comparison.as_dict() for comparison in comparisons],
    }


def _groups(ranking: Ranking) -> list[Data]:
    """The statuses that occur, each with the indices of its entries."""
    entries = ranking.entries
    return [
        {
            "status": status,
            "description": table.describe_status(status, ranking),
            "entries": [k for k, entry in enumerate(entries) if entry.status == status],
        }
        for status in STATUSES
        if ranking.with_status(status)
    ]


def _psnr_thresholds(ranking: Ranking) -> Data:
    """Column -> PSNR threshold, dB."""
    thresholds = ranking.rules.psnr_thresholds
    return (
        {"psnr_valid": thresholds.valid, "psnr_test": thresholds.test}
        if ranking.apply_thresholds
        else {}
    )


def _entry_data(
    entry: RankedEntry, ranking: Ranking, columns: Sequence[Column], source: str
) -> Data:
    figures = {c.key: c.cell(entry, source) for c in columns if c.value(entry.row) is not None}
    return {
        "team": entry.row.team,
        "method": entry.row.method,
        "status": entry.status,
        "waiver": entry.waiver,
        "rank": entry.rank("main"),
        "cells": {**figures, **{track: _score_cell(entry, track, ranking) for track in TRACKS}},
    }


def _score_cell(entry: RankedEntry, track: Track, ranking: Ranking) -> Data:
    """Cell of a score; its value for sorting is the logarithm, which never overflows."""
    return {
        "text": table.format_score(entry.score(track)),
        "value": entry.log_scores[track],
        "rank": entry.rank(track),
        "note": f"{_formula_text(entry, track, ranking)}; {_rank_text(entry, track, ranking)}",
    }


def _formula_text(entry: RankedEntry, track: Track, ranking: Ranking) -> str:
    """Equation 1 or 2 of the challenge report with the entry's figures."""
    row, reference, score = entry.row, ranking.reference, ranking.rules.score
    figures = {
        "runtime": (row.runtime_ms, baseline_runtime_ms(row, reference)),
        "params": (row.params_m, reference.params_m),
        "flops": (row.flops_g, reference.flops_g),
    }
    if track == "main":
        return " + ".join(
            f"{getattr(score.weights, name):g} · {table.format_score(entry.score(name))} ({name})"
            for name in TRACKS
            if name != "main"
        )
    value, baseline = figures[track]
    text = (
        table.format_score(entry.score(track))
        if math.isfinite(entry.score(track))
        else "over 1.8e308"
    )
    return f"exp({score.factor:g} · {value:.6g} / {baseline:.6g}) = {text}"


def _rank_text(entry: RankedEntry, track: Track, ranking: Ranking) -> str:
    if not entry.ranks:
        return "not ranked"
    return f"rank {entry.ranks[track]} of {len(ranking.with_status('ranked'))}"


def _summary(ranking: Ranking) -> str:
    """The outcome in two sentences."""
    ranked, count = len(ranking.with_status("ranked")), len(ranking.entries)
    first = min(ranking.entries, key=lambda entry: (entry.ranks is None, entry.log_scores["main"]))
    decimals = ranking.rules.score.decimals.runtime
    times = (first.row.runtime_ms, baseline_runtime_ms(first.row, ranking.reference))
    own, baseline = (f"{value:.{decimals}f}\u00a0ms" for value in times)
    methods = f"{count} method{'s' * (count != 1)}"
    return (
        f"{ranked or 'None'} of {methods} {'is' if ranked < 2 else 'are'} ranked. "
        f"{first.row.team} {'leads with' if ranked else 'has'} the lowest main score, "
        f"{table.format_score(first.score('main'))}, at {own}; the baseline takes {baseline}."
    )
