"""The figures of every picture of a set, aligned over methods."""

from collections.abc import Sequence
from typing import Any

from esrjax.contest.rank import Line
from esrjax.contest.rows import Series

_DECIMALS = 4  # of dB and ms in the page


def sets(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """`{"name", "pictures", "base", "rows": [{"line", "psnr", "runtime"}]}` for every set.

    base: the row of the baseline, or None. Where a method lacks a picture there is None.
    """
    names = dict.fromkeys(name for line in lines for name in line.row.series)
    return [_set(name, lines) for name in names]


def _set(name: str, lines: Sequence[Line]) -> dict[str, Any]:
    held = {k: line.row.series[name] for k, line in enumerate(lines) if name in line.row.series}
    pictures = list(dict.fromkeys(name for each in held.values() for name in _names(each)))
    rows = [
        {
            "line": k,
            "psnr": _aligned(_names(each), each.psnr, pictures),
            "runtime": _aligned(_names(each), each.runtime_ms, pictures),
        }
        for k, each in held.items()
    ]
    bases = [n for n, k in enumerate(held) if lines[k].standing == "baseline"]
    return {"name": name, "pictures": pictures, "base": next(iter(bases), None), "rows": rows}


def _names(each: Series) -> tuple[str, ...]:
    count = max(len(each.psnr), len(each.runtime_ms))
    return each.pictures or tuple(f"no. {k}" for k in range(1, count + 1))


def _aligned(
    names: Sequence[str], values: Sequence[float], pictures: Sequence[str]
) -> list[float | None]:
    """The values in the order of `pictures`; no values, no list."""
    if not values:
        return []
    held = dict(zip(names, values, strict=False))  # a list may be shorter than its set
    return [round(held[name], _DECIMALS) if name in held else None for name in pictures]
