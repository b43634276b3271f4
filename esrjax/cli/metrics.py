"""Verbs about metric specs: `metrics list`, `metrics explain`."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import Json, print_json

_AS_IT_IS = (
    "{name} has 8 bits already: what it was rounded from is gone, so that specs which differ only "
    "in rounding the output agree"
)
_SMALL = "-: the pictures are too small for its border and SSIM's window"


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    group = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")
    group.command("list")(list_specs)
    group.command()(explain)
    app.add_typer(group, name="metrics", help="Metric specs: what each does, and one pair by all.")


def list_specs(as_json: Json = False) -> None:
    """The metric specs: who uses them, and what they do."""
    from esrjax.cli.tables import show_table
    from esrjax.pictures.specs import SPECS

    rows = [_said(spec) for spec in SPECS.values()]
    if as_json:
        print_json(rows)
    else:
        show_table(rows, ("spec", "used", "words"))


def explain(
    sr: Annotated[Path, typer.Argument(help="A picture.", metavar="A")],
    hr: Annotated[Path, typer.Argument(help="The truth.", metavar="B")],
    as_json: Json = False,
) -> None:
    """PSNR and SSIM of two pictures under every spec, side by side."""
    from esrjax.pictures import files

    ours, theirs = files.read(sr), files.read(hr)
    for path, picture in ((sr, ours), (hr, theirs)):
        for note in picture.notes:
            typer.echo(f"{path.name}: {note}", err=True)
    found = _readings(sr, hr, ours.pixels, theirs.pixels)
    if as_json:
        print_json([{**_said(each.spec), "psnr": each.psnr, "ssim": each.ssim} for each in found])
    else:
        _show(sr, found)


def _readings(sr: Path, hr: Path, ours: Any, theirs: Any) -> Any:
    """The readings of both pictures, or an error that names their files."""
    from esrjax.pictures.metrics import Incomparable, readings

    try:
        return readings(ours, theirs)
    except Incomparable as error:
        raise Incomparable(
            error.problem, place=f"{sr} and {hr}", rule=error.rule, remedy=error.remedy
        ) from error


def _said(spec: Any) -> dict[str, Any]:
    return {"spec": spec.name, "version": spec.version, "used": spec.used, "words": spec.words}


def _show(sr: Path, found: Any) -> None:
    from esrjax.cli.tables import say, show_table

    rows = [
        {
            **_said(each.spec),
            "PSNR": "-" if each.psnr is None else f"{each.psnr:.4f}",
            "SSIM": "-" if each.ssim is None else f"{each.ssim:.5f}",
        }
        for each in found
    ]
    show_table(rows, ("spec", "PSNR", "SSIM", "words"))
    held = [each.psnr for each in found if each.psnr is not None and math.isfinite(each.psnr)]
    if max(held, default=0) > min(held, default=0):
        say(f"\none pair of pictures, {max(held) - min(held):.2f} dB apart by convention alone")
    say(_AS_IT_IS.format(name=sr.name))
    if any(each.ssim is None for each in found):
        say(_SMALL)
