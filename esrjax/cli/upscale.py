"""The commands `upscale` and `fuse`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from esrjax import registry
from esrjax.cli import options
from esrjax.cli.output import print_stderr, progress_bar
from esrjax.errors import (
    IncompleteBatch,
    UnwritableFile,
    UserError,
    error_summary,
    list_some,
)
from esrjax.io import check_outputs

DEFAULT_METHOD = "spanv2"


def upscale(
    inputs: list[Path],
    output: Annotated[Path, options.output()],
    method: Annotated[
        str | None, Option(show_default="that of the checkpoint, else spanv2")
    ] = None,
    checkpoint: options.CheckpointsOption = None,
    hparams: options.HparamsOption = None,
    engine: options.EngineOption = "auto",
    precision: options.PrecisionOption = "float32",
    tile: Annotated[int, Option(min=8)] = 256,
    self_ensemble: options.SelfEnsembleOption = False,
    windows: options.WindowsOption = None,
    recursive: bool = False,
    skip_existing: bool = False,
    format: Annotated[
        Literal["png", "jpg", "webp", "tif", "bmp"] | None, Option(show_default="png")
    ] = None,
    suffix: Annotated[str | None, Option(show_default="x4, with the scale")] = None,
) -> None:
    """Upscale images with a method.

    An image that cannot be read does not stop the others: it is named at the end, and the exit code
    is 2. --checkpoint may also be an .onnx file that `esrjax export` wrote.

    Args:
        inputs (IN): Images, or folders of images.
        output: A file for one image, a folder for several; never one of the inputs.
        method: The method; see `esrjax method list`. A checkpoint without it is identified by its
            metadata or its tensors.
        tile: Largest side of a tile, LR pixels.
        recursive: Also search the folders in folders, and keep their tree in the output.
        skip_existing: Leave out the images whose output exists, for instance after an interruption.
        format: Format of the images in an output folder.
        suffix (TEXT): What follows the name of an input in the name of its output.
    """
    from esrjax.evaluation import upscale_files
    from esrjax.interop import engines

    strategy: Any = {"self_ensemble": self_ensemble, "windows": options.parse_windows(windows)}
    method, files = _parse_checkpoints(method, checkpoint)
    kwargs = options.parse_hparams(hparams)
    model: Any = engines.open_model(method, files, kwargs, engine, precision)
    model.upscaler(**strategy)  # raises if the method does not support it, before any I/O
    names = upscale_files.OutputNames(
        ending=f"x{model.scale}" if suffix is None else suffix, suffix=f".{format or 'png'}"
    )
    plan = upscale_files.plan_upscale_jobs(
        inputs,
        output,
        model.scale,
        tile,
        names=None if format is None and suffix is None else names,
        recursive=recursive,
        skip_existing=skip_existing,
        both_orientations=self_ensemble or bool(windows),
    )
    check_outputs([job.target for job in plan.jobs], files.values())
    upscaler_of = cache(partial(model.upscaler, **strategy))  # a tile size is compiled once
    batch = _Batch(plan.num_images, plan.notes, plan.failures)
    for job in progress_bar(f"{model.name} x{model.scale}")(plan.jobs):
        upscaler = upscaler_of(job.tile_size)
        batch.run(job.source, job.target, partial(upscale_files.upscale_file, job, upscaler))
    skipped = f", {len(plan.existing)} skipped, whose output exists" if plan.existing else ""
    batch.end(f"written to {output}{skipped} ({engines.description(model)})")


def _parse_checkpoints(
    method: str | None, texts: list[str] | None
) -> tuple[str | None, dict[str | None, Path]]:
    """Return the method, None for that of the checkpoint, and the checkpoints by method.

    A key of published weights is one of the default method's.
    """
    if method is None and texts:
        name, equals, _ = texts[0].partition("=")
        is_named = bool(equals) and name in registry.names()
        if not is_named and len(texts) == 1 and Path(texts[0]).exists():
            return None, {None: Path(texts[0])}
        method = name if is_named else None
    method = method or DEFAULT_METHOD
    return method, {**options.parse_checkpoints(texts, [method])}


def fuse(
    inputs: list[Path],
    output: Annotated[Path, options.output()],
    weights: Annotated[str | None, Option(show_default="equal")] = None,
    adaptive: bool = False,
) -> None:
    """Fuse the outputs of several methods: the weighted mean of images.

    EXIF data and dpi are those of the first IN.

    Args:
        inputs (IN): Images, or folders of images with equal names.
        output: A folder, or a file for single images.
        weights (W,...): One weight for each IN, comma-separated.
        adaptive: Weight each image by its closeness to the mean, and round down.
    """
    from esrjax.evaluation import fuse_images
    from esrjax.evaluation.fuse_images import adaptive_weighted_mean_uint8

    if adaptive and weights is not None:
        rule = "weights are either given, or computed for every image"
        raise options.excludes("--weights", "--adaptive", rule)
    fuse_fn = adaptive_weighted_mean_uint8 if adaptive else _weighted_mean(weights, inputs)
    plan = fuse_images.plan_fusion_jobs(inputs, output)
    fuse_images.check_equal_sizes(plan.jobs)
    batch = _Batch(len(plan.jobs), plan.notes)
    for job in progress_bar("fusing")(plan.jobs):
        batch.run(job.sources[0], job.target, partial(fuse_images.fuse_files, job, fuse_fn))
    batch.end(f"written to {output}")


def _weighted_mean(text: str | None, inputs: list[Path]) -> Callable[[Any], Any]:
    from esrjax.evaluation import fuse_images
    from esrjax.evaluation.fuse_images import weighted_mean_uint8

    try:
        weights = [1.0] * len(inputs) if text is None else [float(w) for w in text.split(",")]
    except ValueError as error:
        rule = "weights are comma-separated numbers, one for each image or folder"
        raise options.invalid("--weights", text or "", rule, "0.7,0.3") from error
    fuse_images.check_weights(weights, inputs)
    return partial(weighted_mean_uint8, weights=weights)


# --- batches of files --------------------------------------------------------------------------


class _Batch:
    """Runs jobs on images; one that fails does not stop the others.

    Args:
        num_images: Number of images of the command, with those for which no job is run.
        notes: What is printed before the first job.
        failures: What has failed before the first job -> the error.
    """

    def __init__(
        self,
        num_images: int,
        notes: Iterable[str] = (),
        failures: Mapping[Path, Exception] | None = None,
    ):
        self._num_images, self._num_written = num_images, 0
        self._failures = dict(failures or {})
        self._source_of: dict[tuple[int, int], Path] = {}  # identity of an output -> its input
        print_stderr(notes)

    def run(self, source: Path, target: Path, job: Callable[[], Iterable[str]]) -> None:
        """Run the job that writes `target`, and print the notes that it returns."""
        try:
            self._check_unwritten(target)
            notes = job()
            status = target.lstat()
        except Exception as error:
            self._failures[source] = error
            return
        except KeyboardInterrupt:
            print_stderr([f"{self._num_written} of {self._num_images} images written"])
            raise
        self._source_of[status.st_dev, status.st_ino] = source
        self._num_written += 1
        print_stderr(notes)

    def _check_unwritten(self, target: Path) -> None:
        """Raise if `target` was written: two names are one file where case is ignored."""
        if not os.path.lexists(target):
            return
        status = target.lstat()
        if source := self._source_of.get((status.st_dev, status.st_ino)):
            raise UnwritableFile(
                f"Cannot write '{target}': it is the output of '{source}'",
                rule="every image has an output of its own, on a file system that ignores case too",
                remedy="upscale it to another folder",
            )

    def end(self, outcome: str) -> None:
        """Print how many images were written; raise if others failed."""
        count, failures = self._num_written, self._failures
        if failures and self._num_images == 1:
            raise next(iter(failures.values()))
        typer.echo(f"{count} image{'s' * (count != 1)} {outcome}")
        if failures:
            raise _incomplete_batch(failures, self._num_images)


def _incomplete_batch(failures: Mapping[Path, Exception], num_images: int) -> IncompleteBatch:
    lines, remedies = [f"{len(failures)} of {num_images} failed:"], dict[str, None]()
    for path, error in failures.items():
        problem = error.problem if isinstance(error, UserError) else error_summary(error)
        reason = problem.removeprefix(f"Cannot read '{path}': ")
        lines.append(f"    {path}: {reason}")
        remedies |= {error.remedy: None} if isinstance(error, UserError) else {}
    return IncompleteBatch(
        "\n".join(lines),
        rule="every image is processed alone; the others were written",
        remedy=list_some(remedies, 3, "; ") or "process these images alone to see the error",
    )
