"""The command `fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esrjax.errors import InvalidArgument

if TYPE_CHECKING:
    from esrjax.evaluation.fuse_images import FuseFn


def fuse(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images, or folders of images with equal names.", metavar="IN"),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder, or a file for single images.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="One weight for each IN, comma-separated.", metavar="W,...", show_default="equal"
        ),
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Weight each image by its closeness to the mean, and round down."
        ),
    ] = False,
) -> None:
    """Fuse the outputs of several methods: the weighted mean of images."""
    from esrjax.cli.output import progress
    from esrjax.evaluation import fuse_images
    from esrjax.evaluation.upscale import adaptive_weighted_mean_uint8

    if adaptive and weights is not None:
        raise InvalidArgument(
            "--weights and --adaptive contradict each other",
            rule="weights are either given, or computed for every image",
            remedy="leave one of the two out",
        )
    fuse_fn = adaptive_weighted_mean_uint8 if adaptive else _weighted_mean(weights, inputs)
    jobs = fuse_images.plan_fusion_jobs(inputs, output)
    fuse_images.check_equal_sizes(jobs)
    for job in progress(jobs, "fusing"):
        fuse_images.fuse_files(job, fuse_fn)
    typer.echo(f"{len(jobs)} image{'s' * (len(jobs) != 1)} written to {output}")


def _weighted_mean(text: str | None, inputs: list[Path]) -> FuseFn:
    from esrjax.evaluation import fuse_images
    from esrjax.evaluation.upscale import weighted_mean_uint8

    try:
        weights = [1.0] * len(inputs) if text is None else [float(w) for w in text.split(",")]
    except ValueError as error:
        raise InvalidArgument(
            f"Invalid --weights {text!r}",
            rule="weights are comma-separated numbers, one for each image or folder",
            remedy="for example --weights 0.7,0.3",
        ) from error
    fuse_images.check_weights(weights, inputs)
    return lambda images: weighted_mean_uint8(images, weights)
