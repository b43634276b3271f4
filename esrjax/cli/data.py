"""The commands `data pack | verify | select`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax.cli.options import JsonOption, command_group, print_json
from esrjax.errors import IncomparableImages, InvalidArgument

if TYPE_CHECKING:
    from esrjax.data.image_io import Pixels
    from esrjax.data.similar import FeatureExtractor
    from esrjax.data.verify import DatasetReport
    from esrjax.evaluation.metrics import MetricSpec, MetricValues


DATASET_HELP = "A dataset: its name, its folder, or tfds:NAME."

ScaleOption = Annotated[int, typer.Option(help="Scale of the LR images.", min=1)]

app = command_group("Datasets: pack them for training, verify them, select similar images.")


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help=DATASET_HELP, metavar="DATASET")],
    name: Annotated[str, typer.Option(help="Name of the packed dataset; it is used as tfds:NAME.")],
    crop_size: Annotated[int, typer.Option(help="Side of a sub-image, HR pixels.", min=1)] = 480,
    step: Annotated[int, typer.Option(help="Distance between sub-images, HR pixels.", min=1)] = 240,
    scale: ScaleOption = 4,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder of the packed datasets.", show_default="$ESRJAX_DATA"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Extract sub-images of a dataset and write them as a TFDS dataset (ArrayRecord)."""
    from esrjax.cli.output import progress_bar
    from esrjax.data import datasets, tfds_writer

    root, grid = _data_dir(output), tfds_writer.SubImageGrid(crop_size=crop_size, step=step)
    tfds_writer.check_destination(root, name)
    packed = tfds_writer.pack(
        datasets.list_pairs(source, scale), name, root, grid, progress_bar("packing")
    )
    if as_json:
        print_json({**vars(packed), "folder": str(packed.folder), "dataset": f"tfds:{name}"})
        return
    size = f"{packed.num_bytes / 2**20:,.1f} MiB"
    sub_images = f"{packed.num_sub_images:,} sub-images of {packed.num_images:,} images"
    typer.echo(f"{packed.folder}: {sub_images}, {size}")
    typer.echo(f"Use it as tfds:{name}, in recipes and on the command line.")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help=DATASET_HELP, metavar="DATASET")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="A held-out dataset (validation, test) that must share no image with DATASET. "
            "Repeatable.",
            metavar="DATASET",
        ),
    ] = None,
    tolerance: Annotated[
        int,
        typer.Option(help="Largest allowed difference of LR from bicubic LR, grey levels.", min=0),
    ] = 1,
    scale: ScaleOption = 4,
    as_json: JsonOption = False,
) -> None:
    """Check every image pair: readable, sizes, bicubic LR, duplicates; exit code 1 on problems."""
    from esrjax.cli.output import progress_bar
    from esrjax.data import datasets
    from esrjax.data import verify as verification

    pairs = datasets.list_pairs(name, scale)
    test_pairs = [pair for other in against or () for pair in datasets.list_pairs(other, scale)]
    report = verification.verify_dataset(
        pairs,
        against=test_pairs,
        expected=datasets.dataset_info(name),
        tolerance=tolerance,
        progress=progress_bar("verifying"),
    )
    if as_json:
        print_json({"dataset": name, "passed": not report.problems, **vars(report)})
    else:
        _show(name, report)
    raise typer.Exit(bool(report.problems))


@app.command()
def select(
    names: Annotated[list[str], typer.Argument(help="Datasets to select from.", metavar="DATASET")],
    like: Annotated[str, typer.Option(help="The dataset to be similar to.", metavar="DATASET")],
    num_images: Annotated[int, typer.Option(help="Number of images to select.", min=1)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the new dataset, made of symlinks.")
    ],
    features: Annotated[
        str,
        typer.Option(
            help="What is compared: colour thumbnails, or the features of a CLIP image encoder.",
            metavar="thumbnail|clip:FILE.onnx",
        ),
    ] = "thumbnail",
    scale: ScaleOption = 4,
    as_json: JsonOption = False,
) -> None:
    """Select the images that are most similar to those of another dataset."""
    from esrjax.cli.output import progress_bar
    from esrjax.data import datasets, similar

    extractor = _feature_extractor(features)
    pairs = similar.with_unique_names(
        [(datasets.dataset_title(name), datasets.list_pairs(name, scale)) for name in names]
    )
    similar.check_linkable(pairs, output)
    targets = datasets.list_pairs(like, scale)
    matches = similar.select_similar(
        pairs, targets, num_images, extractor, progress_bar("comparing")
    )
    similar.link_images(matches, output)
    if as_json:
        print_json([{"name": m.pair.name, "similarity": m.similarity} for m in matches])
        return
    similarity = f"{matches[0].similarity:.3f} to {matches[-1].similarity:.3f}"
    typer.echo(f"{output}: {len(matches):,} of {len(pairs):,} images, similarity {similarity}")


def _feature_extractor(text: str) -> FeatureExtractor:
    """`thumbnail`, or the encoder of `clip:FILE.onnx`."""
    from esrjax.data.similar import thumbnail

    if text == "thumbnail":
        return thumbnail
    name, _, file = text.partition(":")
    if name != "clip" or not file:
        raise InvalidArgument(
            f"Invalid --features {text!r}",
            rule="features are `thumbnail`, or `clip:FILE.onnx` with a CLIP image encoder",
            remedy="for example --features clip:vit_b32_image.onnx",
        )
    from esrjax.interop import clip

    return clip.load_image_encoder(Path(file))


def _show(name: str, report: DatasetReport) -> None:
    from esrjax.cli.output import print_unwrapped, show_table

    row = {
        "dataset": name,
        "images": report.num_images,
        "smallest HR": report.min_hr_size and "x".join(map(str, report.min_hr_size)),
        "max LR error": report.lr_error,
        "problems": len(report.problems),
        "notes": len(report.notes),
    }
    show_table([row], list(row))
    for line in report.problems:
        print_unwrapped(f"problem: {line}")
    for line in report.notes:
        print_unwrapped(f"note:    {line}")


def _data_dir(output: Path | None) -> Path:
    """The folder to write packed datasets to."""
    if output is not None:
        return output
    if os.environ.get("ESRJAX_DATA"):
        return Path(os.environ["ESRJAX_DATA"])
    raise InvalidArgument(
        "Missing folder for the packed dataset",
        rule="packed datasets are written to $ESRJAX_DATA, where they are found by name, or to "
        "the folder of -o",
        remedy="set ESRJAX_DATA, or name a folder with -o",
    )


# --------------------------------------------------------------------------------------------------
# The commands `metrics list` and `metrics explain`.
# --------------------------------------------------------------------------------------------------


_ALREADY_UINT8 = (
    "{name} is already uint8: its unrounded values are lost, so specs that differ only in the "
    "rounding of the output agree"
)
_TOO_SMALL = "-: the images are too small for the border and the SSIM window"

metrics_app = command_group("Metric specs: list them, compare two images under all of them.")


@metrics_app.command("list")
def list_specs(as_json: JsonOption = False) -> None:
    """List the metric specs: the conventions of PSNR and SSIM, and who uses them."""
    from esrjax.cli.output import show_table
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


@metrics_app.command()
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
        _show_comparison(sr, values)


def _metric_values(
    sr: Path, hr: Path, sr_pixels: Pixels, hr_pixels: Pixels
) -> Sequence[MetricValues]:
    """The metrics under every spec; an error names the files."""
    from esrjax.evaluation.metrics import compute_all_specs

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


def _show_comparison(sr: Path, values: Sequence[MetricValues]) -> None:
    from esrjax.cli.output import print_unwrapped, show_table

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
