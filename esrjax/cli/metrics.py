"""The commands `metrics list` and `metrics explain`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax.cli.options import JsonOption, command_group, print_json

if TYPE_CHECKING:
    from esrjax.data.image_io import Pixels
    from esrjax.evaluation.metrics import MetricSpec, MetricValues

_ALREADY_UINT8 = (
    "{name} is already uint8: its unrounded values are lost, so specs that differ only in the "
    "rounding of the output agree"
)
_TOO_SMALL = "-: the images are too small for the border and the SSIM window"

app = command_group("Metric specs: list them, compare two images under all of them.")


@app.command("list")
def list_specs(as_json: JsonOption = False) -> None:
    """List the metric specs: the conventions of PSNR and SSIM, and who uses them."""
    from esrjax.cli.tables import show_table
    from esrjax.evaluation.metrics import SPECS

    rows = [_spec_row(spec) for spec in SPECS.values()]
    if as_json:
        print_json(rows)
    else:
        columns = {"spec": "spec", "used_by": "used by", "summary": "convention"}
        show_table(
            [{title: row[key] for key, title in columns.items()} for row in rows],
            list(columns.values()),
        )


@app.command()
def explain(
    sr: Annotated[Path, typer.Argument(help="The upscaled image.", metavar="SR")],
    hr: Annotated[Path, typer.Argument(help="The ground truth.", metavar="HR")],
    as_json: JsonOption = False,
) -> None:
    """Compute PSNR and SSIM of two images under every spec."""
    from esrjax.data import image_io

    sr_image, hr_image = image_io.read_image(sr), image_io.read_image(hr)
    for path, image in ((sr, sr_image), (hr, hr_image)):
        for note in image.notes:
            typer.echo(f"{path.name}: {note}", err=True)
    values = _metric_values(sr, hr, sr_image.pixels, hr_image.pixels)
    if as_json:
        print_json([{**_spec_row(v.spec), "psnr": v.psnr, "ssim": v.ssim} for v in values])
    else:
        _show(sr, values)


def _metric_values(
    sr: Path, hr: Path, sr_pixels: Pixels, hr_pixels: Pixels
) -> Sequence[MetricValues]:
    """The metrics under every spec; an error names the files."""
    from esrjax.evaluation.metrics import IncomparableImages, compute_all_specs

    try:
        return compute_all_specs(sr_pixels, hr_pixels)
    except IncomparableImages as error:
        raise IncomparableImages(
            error.problem, location=f"{sr} and {hr}", rule=error.rule, remedy=error.remedy
        ) from error


def _spec_row(spec: MetricSpec) -> dict[str, Any]:
    return {
        "spec": spec.name,
        "version": spec.version,
        "used_by": spec.used_by,
        "summary": spec.summary,
    }


def _show(sr: Path, values: Sequence[MetricValues]) -> None:
    from esrjax.cli.tables import print_unwrapped, show_table

    rows = [
        {
            "spec": value.spec.name,
            "PSNR": "-" if value.psnr is None else f"{value.psnr:.4f}",
            "SSIM": "-" if value.ssim is None else f"{value.ssim:.5f}",
            "convention": value.spec.summary,
        }
        for value in values
    ]
    show_table(rows, list(rows[0]))
    psnr = [v.psnr for v in values if v.psnr is not None and math.isfinite(v.psnr)]
    if max(psnr, default=0) > min(psnr, default=0):
        spread = f"{max(psnr) - min(psnr):.2f} dB"
        print_unwrapped(f"\nPSNR of the same two images differs by up to {spread} between specs")
    print_unwrapped(_ALREADY_UINT8.format(name=sr.name))
    if any(value.ssim is None for value in values):
        print_unwrapped(_TOO_SMALL)
