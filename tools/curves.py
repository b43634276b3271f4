"""PSNR against steps of several runs, as one SVG: curves.py OUT.svg NAME=RUN_FOLDER ..."""

import json
import sys
from html import escape
from pathlib import Path

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 60, 220, 24, 44
COLOURS = ("#2b6777", "#c8553d", "#7a9e4e", "#8d5a97", "#d99a2b", "#4a4e69", "#3d8bfd")

Points = list[tuple[float, float]]


def points(folder: Path) -> Points:
    """(step, PSNR in dB) wherever a run was scored."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["psnr"]) for line in lines if line["psnr"] is not None]


def drawing(curves: dict[str, Points]) -> str:
    """All curves on common axes, each named at its end."""
    every = [point for curve in curves.values() for point in curve]
    last, low, high = max(x for x, _ in every), min(y for _, y in every), max(y for _, y in every)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (WIDE - LEFT - RIGHT) * point[0] / last
        y = HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (point[1] - low) / (high - low)
        return round(x, 1), round(y, 1)

    parts = [*_rows(low, high, at), *_columns(last, at, low)]
    heights = _apart({name: at(curve[-1])[1] for name, curve in curves.items()})
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
        path = " ".join(f"{x},{y}" for x, y in map(at, curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        said = f"{escape(name)}  {curve[-1][1]:.2f}"
        parts.append(_text(WIDE - RIGHT + 8, heights[name] + 4, said, "start", colour))
    return _page(parts)


def _rows(low: float, high: float, at) -> list[str]:
    """Lines across at round decibels."""
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / s <= 8)
    values = [k * step for k in range(int(low / step), int(high / step) + 1) if k * step >= low]
    heights = [(value, at((0, value))[1]) for value in values]
    return [
        f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        + _text(LEFT - 6, y + 4, f"{value:.1f}", "end")
        for value, y in heights
    ]


def _columns(last: float, at, low: float) -> list[str]:
    """Steps along the bottom."""
    marks = [_text(*at((last * k / 4, low)), f"{last * k / 4:,.0f}", "middle") for k in range(5)]
    down = [mark.replace('dy="0"', 'dy="20"') for mark in marks]
    return [*down, _text(4, 14, "PSNR, dB", "start"), _text(300, HIGH - 6, "steps", "middle")]


def _apart(heights: dict[str, float], room: float = 15) -> dict[str, float]:
    """The same heights, moved down where two names would touch."""
    placed: dict[str, float] = {}
    for name, y in sorted(heights.items(), key=lambda item: item[1]):
        placed[name] = max([y, *(other + room for other in placed.values())])
    return placed


def _text(x: float, y: float, said: str, anchor: str, colour: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" dy="0" text-anchor="{anchor}" fill="{colour}">{said}</text>'


def _page(parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}"'
    style = ' font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>'
    return "\n".join([head + style, ground, *parts, "</svg>"]) + "\n"


def main() -> None:
    """Draw the runs that the command line names."""
    out, *named = sys.argv[1:]
    curves = {name: points(Path(run)) for name, run in (pair.split("=", 1) for pair in named)}
    Path(out).write_text(drawing(curves))


if __name__ == "__main__":
    main()
