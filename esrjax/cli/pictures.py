"""Verbs about pictures: upscale, eval, bench."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    Body,
    Checkpoints,
    Json,
    Names,
    Size,
    by_name,
    print_json,
    sizes,
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command()(upscale)
    app.command("eval")(evaluate)
    app.command()(bench)


def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(help="Pictures, or folders of them.", metavar="IN")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file, or a folder for several.")
    ],
    method: Annotated[str, typer.Option(help="The method.")] = "spanv2",
    checkpoint: Checkpoints = None,
    size: Size = None,
    tile: Annotated[int, typer.Option(help="Largest tile side, LR pixels.", min=8)] = 256,
    self_ensemble: Annotated[
        bool, typer.Option("--self-ensemble", help="Mean over the eight flips and turns.")
    ] = False,
) -> None:
    """Make pictures four times larger."""
    from esrjax.cli.tables import progress
    from esrjax.model import open_model
    from esrjax.pictures import jobs

    model = open_model(method, by_name(checkpoint, [method]), sizes(size))
    found = jobs.plan(inputs, output, model.scale, tile, turned=self_ensemble)
    upscaler_of = jobs.memory(lambda canvas: model.upscaler(canvas, self_ensemble=self_ensemble))
    for job in progress(found, f"{model.name} x{model.scale}"):
        for note in jobs.run(job, upscaler_of(job.canvas)):
            typer.echo(f"{job.source.name}: {note}", err=True)
    typer.echo(f"{len(found)} picture{'s' * (len(found) != 1)} in {output}")


def evaluate(
    names: Names,
    data: Annotated[str, typer.Option(help="A set's name or folder.")],
    checkpoint: Checkpoints = None,
    size: Size = None,
    spec: Annotated[str, typer.Option(help="The metric spec: ntire or y.")] = "ntire",
    style: Annotated[
        Literal["md", "latex"], typer.Option("--format", help="How the table is written.")
    ] = "md",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also time it, and write results for `rank` here."),
    ] = None,
    body: Body = "auto",
    as_json: Json = False,
) -> None:
    """PSNR and SSIM of methods over a set of pictures, at exact size."""
    from esrjax.cli.tables import progress, scores_text
    from esrjax.contest import evaluate as contest
    from esrjax.model import open_model
    from esrjax.network import ops
    from esrjax.pictures import metrics, score, sets

    chosen, files = metrics.named(spec), by_name(checkpoint, names)
    folder = sets.locate(data)
    models = [open_model(name, files, sizes(size)) for name in names]
    if output is not None:
        contest.require_recordable(models, output)
    scored: list[Any] = []
    with ops.body(body):
        for model in models:
            pairs = sets.pairs(folder, model.scale)
            scored.append(score.score(model, pairs, chosen, lambda p, m=model: progress(p, m.name)))
        if output is not None:
            for path in contest.record_all(models, scored, folder.absolute().name, output):
                typer.echo(path, err=True)
    if as_json:
        every = [{"method": m.name, **s.as_dict()} for m, s in zip(models, scored, strict=True)]
        print_json(every[0] if len(every) == 1 else every)
    else:
        typer.echo(scores_text([m.name for m in models], scored, style))


def bench(
    names: Names,
    sizes_given: Annotated[str, typer.Option("--sizes", help="LR sizes, HxW,HxW,...")] = "256x256",
    size: Size = None,
    body: Body = "auto",
    seconds: Annotated[float, typer.Option(help="Budget a method and size, seconds.")] = 2.0,
    as_json: Json = False,
) -> None:
    """How long methods take, in turn in one process: median, interval, compilation, memory."""
    from esrjax import registry
    from esrjax.cli.tables import show_bench
    from esrjax.contest import bench as contest
    from esrjax.network import ops

    shapes = [_shape(text) for text in sizes_given.split(",")]
    methods = {name: registry.plain(name) for name in names}
    with ops.body(body):
        outcome = contest.bench(methods, shapes, sizes(size), seconds)
    if as_json:
        print_json(outcome)
    else:
        show_bench(outcome)


def _shape(text: str) -> tuple[int, int]:
    height, _, width = text.strip().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise BadOption(
            f"--sizes holds {text!r}",
            rule="a size is HxW in LR pixels, several are parted by commas",
            remedy="write for instance --sizes 256x256,339x510",
        )
    return int(height), int(width)
