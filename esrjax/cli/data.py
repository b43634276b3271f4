"""The commands `data list | pack | verify | select` and `metrics list | explain`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from esrjax.cli import options
from esrjax.cli.output import (
    number_text,
    print_json,
    print_lr_source,
    print_note,
    print_notes,
    print_unwrapped,
    progress_bar,
    show_table,
)
from esrjax.errors import IncomparableImages, InvalidArgument

if TYPE_CHECKING:
    from esrjax.evaluation.metrics import MetricSpec, MetricValues
    from esrjax.interop.similar import FeatureExtractor

DatasetArgument = Annotated[
    str, Argument(help="A dataset: its name, its folder, or tfds:NAME.", metavar="DATASET")
]
ScaleOption = Annotated[int, Option(help="Scale of the LR images.", min=1)]

app = options.CommandGroup(
    "Datasets: list the known ones, pack them for training, verify them, select similar images."
)
metrics_app = options.CommandGroup("Metric specs: list them, compare two images under all of them.")


@app.command("list")
def list_datasets(as_json: options.JsonOption = False) -> None:
    """List the public datasets that are known by name: where to get them, terms, local folder."""
    from esrjax.data import datasets
    from esrjax.data.file_pairs import list_subfolders
    from esrjax.io import data_dirs

    rows: list[dict[str, Any]] = []
    folders = [child for root in data_dirs() for child in list_subfolders(root)]
    for info in datasets.known_datasets():
        local = next((path for path in folders if datasets.dataset_info(path.name) is info), None)
        row = {"name": info.title, "images": info.num_images, "source": info.source}
        row |= {"terms": info.terms, "sha256": info.hr_sha256, "folder": local and str(local)}
        rows.append(row)
    if as_json:
        print_json(rows)
    else:
        show_table([{**row, "sha256": (row["sha256"] or "-")[:16]} for row in rows])


@app.command()
def pack(
    source: DatasetArgument,
    name: Annotated[str, Option()],
    crop_size: Annotated[int, Option(min=1)] = 480,
    step: Annotated[int, Option(min=1)] = 240,
    scale: ScaleOption = 4,
    output: Annotated[Path | None, options.output("$ESRJAX_DATA")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Extract sub-images of a dataset and write them as a TFDS dataset (ArrayRecord).

    Args:
        name: Name of the packed dataset; it is used as tfds:NAME.
        crop_size: Side of a sub-image, HR pixels.
        step: Distance between sub-images, HR pixels.
        output: Folder of the packed datasets.
    """
    from esrjax.data import datasets, tfds_writer

    folder = output or os.environ.get("ESRJAX_DATA")
    if not folder:
        raise InvalidArgument(
            "Missing folder for the packed dataset",
            rule="packed datasets are written to $ESRJAX_DATA, where they are found by name, or "
            "to the folder of -o",
            remedy="set ESRJAX_DATA, or name a folder with -o",
        )
    root, grid = Path(folder), tfds_writer.SubImageGrid(crop_size=crop_size, step=step)
    tfds_writer.check_destination(root, name)
    pairs = datasets.list_pairs(source, scale)
    print_lr_source(source, pairs)
    packed = tfds_writer.pack(pairs, name, root, grid, progress_bar("packing"))
    print_notes(packed.notes)
    if as_json:
        lr_source = datasets.lr_source(pairs)
        print_json({**vars(packed), "dataset": f"tfds:{name}", "lr_source": lr_source})
        return
    sub_images = f"{packed.num_sub_images:,} sub-images of {packed.num_images:,} images"
    typer.echo(f"{packed.folder}: {sub_images}, {packed.num_bytes / 2**20:,.1f} MiB")
    typer.echo(f"Use it as tfds:{name}, in recipes and on the command line.")


@app.command()
def verify(
    name: DatasetArgument,
    against: list[str] | None = None,
    tolerance: Annotated[int, Option(min=0)] = 1,
    scale: ScaleOption = 4,
    as_json: options.JsonOption = False,
) -> None:
    """Check every image pair: readable, sizes, bicubic LR, duplicates; exit code 1 on problems.

    Args:
        against (DATASET): A held-out dataset (validation, test) that must share no image with
            DATASET. Repeatable.
        tolerance: Largest allowed difference of LR from bicubic LR, grey levels.
    """
    from esrjax.data import datasets
    from esrjax.data import verify as verification

    pairs = datasets.list_pairs(name, scale)
    others = {other: datasets.list_pairs(other, scale) for other in against or ()}
    for dataset, of_dataset in {name: pairs, **others}.items():
        print_lr_source(dataset, of_dataset)
    report = verification.verify_dataset(
        pairs,
        against=[pair for of_dataset in others.values() for pair in of_dataset],
        expected=datasets.dataset_info(name),
        tolerance=tolerance,
        progress=progress_bar("verifying"),
    )
    if as_json:
        head = {"dataset": name, "lr_source": datasets.lr_source(pairs)}
        print_json({**head, "passed": not report.problems, **vars(report)})
    else:
        row = {
            "dataset": name,
            "images": report.num_images,
            "smallest HR": report.min_hr_size and "x".join(map(str, report.min_hr_size)),
            "max LR error": report.lr_error,
            "problems": len(report.problems),
            "notes": len(report.notes),
        }
        show_table([row])
        print_unwrapped(*(f"problem: {line}" for line in report.problems))
        print_unwrapped(*(f"note:    {line}" for line in report.notes))
    raise typer.Exit(bool(report.problems))


@app.command()
def select(
    names: list[str],
    like: Annotated[str, Option()],
    num_images: Annotated[int, Option(min=1)],
    output: Annotated[Path, options.output()],
    features: str = "thumbnail",
    scale: ScaleOption = 4,
    as_json: options.JsonOption = False,
) -> None:
    """Select the images that are most similar to those of another dataset.

    Args:
        names (DATASET): Datasets to select from.
        like (DATASET): The dataset to be similar to.
        num_images: Number of images to select.
        output: Folder of the new dataset, made of symlinks.
        features (thumbnail|clip:FILE.onnx): What is compared: colour thumbnails, or the features of
            a CLIP image encoder.
    """
    from esrjax.data import datasets
    from esrjax.interop import similar

    extractor = _feature_extractor(features)
    pairs_of = {name: datasets.list_pairs(name, scale) for name in names}
    pairs = similar.with_unique_names(
        [(datasets.dataset_title(name), pairs_of[name]) for name in names]
    )
    similar.check_linkable(pairs, output)
    targets = datasets.list_pairs(like, scale)
    for name, of_dataset in pairs_of.items():
        print_lr_source(name, of_dataset)
    print_notes(datasets.sample_notes(pairs) | datasets.sample_notes(targets))
    bar = progress_bar("comparing")
    matches = similar.select_similar(pairs, targets, num_images, extractor, bar)
    similar.link_images(matches, output)
    selected = datasets.list_pairs(output, scale)
    print_lr_source(str(output), selected)
    if as_json:
        images = [{"name": m.pair.name, "similarity": m.similarity} for m in matches]
        print_json({"lr_source": datasets.lr_source(selected), "images": images})
        return
    similarity = f"{matches[0].similarity:.3f} to {matches[-1].similarity:.3f}"
    typer.echo(f"{output}: {len(matches):,} of {len(pairs):,} images, similarity {similarity}")


def _feature_extractor(text: str) -> FeatureExtractor:
    """`thumbnail`, or the encoder of `clip:FILE.onnx`."""
    from esrjax.interop.similar import load_image_encoder, thumbnail

    if text == "thumbnail":
        return thumbnail
    name, _, file = text.partition(":")
    if name != "clip" or not file:
        rule = "features are `thumbnail`, or `clip:FILE.onnx` with a CLIP image encoder"
        raise options.invalid("--features", text, rule, "clip:vit_b32_image.onnx")
    return load_image_encoder(Path(file))


# --- metrics -----------------------------------------------------------------------------------


@metrics_app.command("list")
def list_specs(as_json: options.JsonOption = False) -> None:
    """List the metric specs: the conventions of PSNR and SSIM, and who uses them."""
    from esrjax.evaluation.metrics import all_specs

    rows = [_spec_row(spec) for spec in all_specs().values()]
    if as_json:
        print_json(rows)
    else:
        rows = [{**row, "used by": row["used_by"], "convention": row["summary"]} for row in rows]
        show_table(rows, ("spec", "used by", "convention"))


@metrics_app.command()
def explain(sr: Path, hr: Path, as_json: options.JsonOption = False) -> None:
    """Compute PSNR and SSIM of two images under every spec.

    Args:
        sr (SR): The upscaled image.
        hr (HR): The ground truth.
    """
    from esrjax.data import image_io
    from esrjax.evaluation.metrics import compute_all_specs

    images = [image_io.read_image(path) for path in (sr, hr)]
    for path, image in zip((sr, hr), images, strict=True):
        for note in image.notes:
            print_note(f"{path.name}: {note}")
    try:
        values = compute_all_specs(*(image.pixels for image in images))
    except IncomparableImages as error:
        raise error.with_location(f"{sr} and {hr}") from error
    if as_json:
        keys = ("psnr", "ssim")
        print_json(
            [
                {
                    **_spec_row(v.spec),
                    **{key: getattr(v, key) for key in keys},
                    "note": _value_note(v),
                }
                for v in values
            ]
        )
    else:
        _show_comparison(sr.name, values)


def _value_note(values: MetricValues) -> str | None:
    """Return why a value is infinite or null in JSON; None if both are numbers."""
    if values.psnr is not None and math.isinf(values.psnr):
        return "the images are equal: PSNR is infinite"
    return "the images are too small" if None in (values.psnr, values.ssim) else None


def _spec_row(spec: MetricSpec) -> dict[str, Any]:
    keys = ("version", "used_by", "summary")
    return {"spec": spec.name, **{key: getattr(spec, key) for key in keys}}


def _show_comparison(name: str, values: Sequence[MetricValues]) -> None:
    rows = [
        {
            "spec": value.spec.name,
            "PSNR": number_text(value.psnr, ".4f"),
            "SSIM": number_text(value.ssim, ".5f"),
            "convention": value.spec.summary,
        }
        for value in values
    ]
    show_table(rows)
    psnr = [v.psnr for v in values if v.psnr is not None and math.isfinite(v.psnr)]
    spread = max(psnr, default=0) - min(psnr, default=0)
    if spread > 0:
        text = f"PSNR of the same two images differs by up to {spread:.2f} dB between specs"
        print_unwrapped(f"\n{text}")
    print_unwrapped(
        f"{name} is already uint8: its unrounded values are lost, so specs that differ only in the "
        "rounding of the output agree"
    )
    if any(value.ssim is None for value in values):
        print_unwrapped("-: the images are too small for the border and the SSIM window")
