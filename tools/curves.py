"""Plot of PSNR against training steps as an SVG: curves.py OUT.svg NAME=RUN_FOLDER ..."""

import json
import sys
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 60, 220, 24, 44
COLORS = ("#2b6777", "#c8553d", "#7a9e4e", "#8d5a97", "#d99a2b", "#4a4e69", "#3d8bfd")

Points = list[tuple[float, float]]


def read_curve(folder: Path) -> Points:
    """Return (step, PSNR in dB) for every validation of the run in `folder`."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["psnr"]) for line in lines if line["psnr"] is not None]


def render_svg(
    curves: dict[str, Points],
    y_title: str = "PSNR, dB",
    x_title: str = "steps",
    low: float | None = None,
) -> str:
    """Return an SVG with all curves on common axes, each labelled at its end.

    low: Where the y axis starts; by default at the smallest value.
    """
    all_points = [point for curve in curves.values() for point in curve]
    last = max(x for x, _ in all_points)
    low = min(y for _, y in all_points) if low is None else low
    high = max(y for _, y in all_points)

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (point[1] - low) / (high - low)
        return round(x, 1), round(y, 1)

    elements = [*_horizontal_grid(low, high, to_pixels), *_x_axis(last, to_pixels, low)]
    elements += [_text(4, 14, y_title, "start"), _text(300, HEIGHT - 6, x_title, "middle")]
    label_ys = _space_labels({name: to_pixels(curve[-1])[1] for name, curve in curves.items()})
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        path = " ".join(f"{x},{y}" for x, y in map(to_pixels, curve))
        elements.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
        label = f"{escape(name)}  {curve[-1][1]:.{2 if high < 100 else 0}f}"
        elements.append(_text(WIDTH - RIGHT + 8, label_ys[name] + 4, label, "start", color))
    return _page(elements)


def _horizontal_grid(low: float, high: float, to_pixels) -> list[str]:
    """Return horizontal grid lines at round values, with their labels."""
    step = next(
        s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if (high - low) / s <= 8
    )
    values = [k * step for k in range(int(low / step), int(high / step) + 1) if k * step >= low]
    lines = [(value, to_pixels((0, value))[1]) for value in values]
    return [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        + _text(LEFT - 6, y + 4, f"{value:.1f}" if step < 1 else f"{value:.0f}", "end")
        for value, y in lines
    ]


def _x_axis(last: float, to_pixels, low: float) -> list[str]:
    """Return the labels of the x axis."""
    labels = [
        _text(*to_pixels((last * k / 4, low)), f"{last * k / 4:,.0f}", "middle") for k in range(5)
    ]
    return [label.replace('dy="0"', 'dy="20"') for label in labels]


def _space_labels(ys: dict[str, float], min_gap: float = 15) -> dict[str, float]:
    """Return the y positions of labels, moved down where two labels would overlap."""
    placed: dict[str, float] = {}
    for name, y in sorted(ys.items(), key=lambda item: item[1]):
        placed[name] = max([y, *(other + min_gap for other in placed.values())])
    return placed


def _text(x: float, y: float, content: str, anchor: str, color: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" dy="0" text-anchor="{anchor}" fill="{color}">{content}</text>'


def _page(elements: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    style = ' font-family="sans-serif" font-size="12">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head + style, background, *elements, "</svg>"]) + "\n"


def main() -> None:
    """Plot the runs named on the command line."""
    out, *pairs = sys.argv[1:]
    curves = {name: read_curve(Path(run)) for name, run in (pair.split("=", 1) for pair in pairs)}
    Path(out).write_text(render_svg(curves))


if __name__ == "__main__":
    main()
