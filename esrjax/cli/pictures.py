"""Verbs about pictures: upscale, eval."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    Body,
    Checkpoints,
    Engine,
    Json,
    Names,
    SelfEnsemble,
    Size,
    Windows,
    bar,
    by_name,
    print_json,
    sizes,
    windows,
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command()(upscale)
    app.command("eval")(evaluate)


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
    engine: Engine = "auto",
    tile: Annotated[int, typer.Option(help="Largest tile side, LR pixels.", min=8)] = 256,
    self_ensemble: SelfEnsemble = False,
    windows_given: Windows = None,
) -> None:
    """Make pictures four times larger."""
    from esrjax.cli import engines
    from esrjax.cli.tables import progress
    from esrjax.pictures import jobs

    cuts = windows(windows_given)
    strategy: Any = {"self_ensemble": self_ensemble, "windows": cuts}
    runner = engines.opened(method, by_name(checkpoint, [method]), sizes(size), engine)
    runner.net.upscaler(**strategy)  # refuses what it cannot do before anything is read
    turned = self_ensemble or bool(windows_given)
    found = jobs.plan(inputs, output, runner.net.scale, tile, turned=turned)
    if engine == "auto":
        passes = (8 if self_ensemble else 1) * max(1, len(cuts))
        runner = engines.fastest(runner, found, passes)
    model = runner.net
    upscaler_of = jobs.memory(lambda canvas: model.upscaler(canvas, **strategy))
    for job in progress(found, f"{model.name} x{model.scale}"):
        for note in jobs.run(job, upscaler_of(job.canvas)):
            typer.echo(f"{job.source.name}: {note}", err=True)
    typer.echo(f"{len(found)} picture{'s' * (len(found) != 1)} in {output}, by {runner.said}")


def evaluate(
    names: Names,
    data: Annotated[str, typer.Option(help="A set's name or folder.")],
    checkpoint: Checkpoints = None,
    size: Size = None,
    spec: Annotated[str, typer.Option(help="As `esrjax metrics list` names it.")] = "ntire",
    style: Annotated[
        Literal["md", "latex"], typer.Option("--format", help="How the table is written.")
    ] = "md",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Also time it, and write results for `rank` here."),
    ] = None,
    harness: Annotated[
        bool,
        typer.Option("--harness", help="With -o: also time each picture once, as the organisers."),
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="With -o: do not time the baseline in turn with it.")
    ] = False,
    rules: Annotated[str, typer.Option(help="Shipped rules, or a TOML file.")] = "ntire2026",
    self_ensemble: SelfEnsemble = False,
    windows_given: Windows = None,
    body: Body = "auto",
    as_json: Json = False,
) -> None:
    """PSNR and SSIM of methods over a set of pictures, at exact size."""
    from esrjax.cli.tables import runtimes_text, scores_text
    from esrjax.contest import evaluate as contest
    from esrjax.contest import record
    from esrjax.contest import rules as contest_rules
    from esrjax.model import open_model
    from esrjax.network import ops
    from esrjax.pictures import score, sets, specs

    if (harness or alone) and output is None:
        raise _pointless("--harness" if harness else "--alone")
    strategy: Any = {"self_ensemble": self_ensemble, "windows": windows(windows_given)}
    if output is not None and any(strategy.values()):
        raise _untimed("--self-ensemble" if self_ensemble else "--windows")
    chosen, files = specs.named(spec), by_name(checkpoint, names)
    sets.require(data)
    said = contest_rules.load(rules)
    models = [open_model(name, files, sizes(size)) for name in names]
    upscalers = [score.seen(model, chosen, **strategy) for model in models]
    single = [] if output is None else contest.require_recordable(models, output)
    pairs = {model.scale: sets.select(data, model.scale) for model in models}
    beside = None if alone else contest.companion(said)
    paths: tuple[Path, ...] = ()
    with ops.body(body):
        # before all other work, which would warm the device up
        runs = {m.name: _harness(m, pairs[m.scale], said) for m in single if harness}
        scored = [
            score.score(run, pairs[m.scale], chosen, bar(m.name))
            for m, run in zip(models, upscalers, strict=True)
        ]
        if output is not None:
            name = sets.title(data)
            paths = contest.record_all(single, scored, name, output, baseline=beside, harness=runs)
    for path in paths:
        typer.echo(path, err=True)
    if as_json:
        every = [{"method": m.name, **s.as_dict()} for m, s in zip(models, scored, strict=True)]
        print_json(every[0] if len(every) == 1 else every)
        return
    typer.echo(scores_text([m.name for m in models], scored, style))
    if paths and style == "md":
        typer.echo(f"\n{runtimes_text([record.load(path) for path in paths])}")


def _harness(model: Any, pairs: Any, rules: Any) -> Any:
    from esrjax.contest import harness

    return harness.run(model, pairs, rules, bar(f"{model.name}, harness"))


def _pointless(option: str) -> BadOption:
    return BadOption(
        f"{option} is given without -o",
        rule=f"{option} says how runtimes are measured for the results that -o writes",
        remedy=f"name a folder for the results with -o, or leave {option} out",
    )


def _untimed(option: str) -> BadOption:
    return BadOption(
        f"{option} is given with -o",
        rule="-o writes what the contest ranks: one pass of a network over each picture, timed",
        remedy=f"leave {option} out, or leave -o out and read the scores",
    )
