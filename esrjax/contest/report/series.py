"""Per-image figures for the report's plots, aligned across methods."""

from collections.abc import Sequence
from typing import Any

from esrjax.contest.rank import RankedEntry
from esrjax.contest.rows import ImageSeries

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
