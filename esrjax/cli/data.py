"""The commands `data pack | verify | select`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esrjax.cli.options import BadOption, JsonOption, command_group, print_json, progress_bar

if TYPE_CHECKING:
    from esrjax.data.similar import FeatureExtractor
    from esrjax.data.verify import DatasetReport

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
        raise BadOption(
            f"Invalid --features {text!r}",
            rule="features are `thumbnail`, or `clip:FILE.onnx` with a CLIP image encoder",
            remedy="for example --features clip:vit_b32_image.onnx",
        )
    from esrjax.bridge import clip

    return clip.load_image_encoder(Path(file))


def _show(name: str, report: DatasetReport) -> None:
    from esrjax.cli.tables import print_unwrapped, show_table

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
    raise BadOption(
        "Missing folder for the packed dataset",
        rule="packed datasets are written to $ESRJAX_DATA, where they are found by name, or to "
        "the folder of -o",
        remedy="set ESRJAX_DATA, or name a folder with -o",
    )
