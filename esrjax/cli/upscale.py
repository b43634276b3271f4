"""The commands `upscale` and `eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    CheckpointsOption,
    EngineOption,
    HparamsOption,
    ImplementationOption,
    JsonOption,
    MethodsArgument,
    RulesOption,
    SelfEnsembleOption,
    WindowsOption,
    parse_checkpoints,
    parse_hparams,
    parse_windows,
    print_json,
)
from esrjax.errors import InvalidArgument


def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(help="Images, or folders of images.", metavar="IN")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file for one image, a folder for several.")
    ],
    method: Annotated[str, typer.Option(help="The method; see `esrjax method list`.")] = "spanv2",
    checkpoint: CheckpointsOption = None,
    hparams: HparamsOption = None,
    engine: EngineOption = "auto",
    tile: Annotated[int, typer.Option(help="Largest side of a tile, LR pixels.", min=8)] = 256,
    self_ensemble: SelfEnsembleOption = False,
    windows: WindowsOption = None,
) -> None:
    """Upscale images with a method.

    --checkpoint may also be an .onnx file that `esrjax export` wrote.
    """
    from esrjax.cli.output import progress
    from esrjax.evaluation import upscale as jobs

    strategy: Any = {"self_ensemble": self_ensemble, "windows": parse_windows(windows)}
    files = parse_checkpoints(checkpoint, [method])
    model, engine_name = _open_model(method, files, parse_hparams(hparams), engine)
    model.upscaler(**strategy)  # raises if the method does not support it, before any I/O
    turned = self_ensemble or bool(windows)
    plan = jobs.plan_upscale_jobs(inputs, output, model.scale, tile, both_orientations=turned)
    upscaler_of = jobs.cache_by_tile_size(lambda tile_size: model.upscaler(tile_size, **strategy))
    for job in progress(plan, f"{model.name} x{model.scale}"):
        for note in jobs.upscale_file(job, upscaler_of(job.tile_size)):
            typer.echo(f"{job.source.name}: {note}", err=True)
    images = f"{len(plan)} image{'s' * (len(plan) != 1)}"
    typer.echo(f"{images} written to {output} ({engine_name})")


def _open_model(
    method: str, files: Mapping[str, Path], hparams: Mapping[str, Any], engine: str
) -> tuple[Any, str]:
    """Return a network with weights, and the engine and device that run it.

    `auto` is JAX, but for an .onnx file, which only ONNX Runtime runs.
    """
    has_onnx_file = any(file.suffix == ".onnx" for file in files.values())
    if engine == "jax" and has_onnx_file:
        raise InvalidArgument(
            "--engine jax cannot run an .onnx file",
            rule="JAX runs .pth and .safetensors files and run directories; ONNX Runtime also "
            "runs .onnx files",
            remedy="leave --engine out, or use the checkpoint that was exported",
        )
    if engine == "onnxruntime" or has_onnx_file:
        from esrjax.interop import engines
        from esrjax.interop.onnx import runtime

        model = engines.load(method, files.get(method), hparams)
        return model, f"ONNX Runtime on {runtime.device()}"
    import jax

    from esrjax.inference import open_model

    return open_model(method, files, hparams), f"JAX on {jax.default_backend()}"


def evaluate(
    names: MethodsArgument,
    data: Annotated[
        str, typer.Option(help="A dataset: its name, its folder, or tfds:NAME.", metavar="DATASET")
    ],
    checkpoint: CheckpointsOption = None,
    hparams: HparamsOption = None,
    spec: Annotated[str, typer.Option(help="Metric spec; see `esrjax metrics list`.")] = "ntire",
    format: Annotated[
        Literal["md", "latex"], typer.Option(help="Format of the table: Markdown or LaTeX.")
    ] = "md",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Also measure the runtime, and write a result file for each method to this "
            "folder, for `esrjax rank`.",
        ),
    ] = None,
    protocol_timing: Annotated[
        bool,
        typer.Option(
            "--protocol-timing",
            help="With -o: also time every image once, by the timing protocol of the challenge.",
        ),
    ] = False,
    no_baseline: Annotated[
        bool,
        typer.Option(
            "--no-baseline", help="With -o: do not time the baseline interleaved with the methods."
        ),
    ] = False,
    rules: RulesOption = "ntire2026",
    self_ensemble: SelfEnsembleOption = False,
    windows: WindowsOption = None,
    implementation: ImplementationOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate methods on a dataset: PSNR and SSIM of whole images; with -o also runtime."""
    from esrjax.challenge import evaluate as challenge
    from esrjax.challenge import record
    from esrjax.challenge import rules as challenge_rules
    from esrjax.cli.output import progress_bar, runtimes_text, scores_text
    from esrjax.data import datasets
    from esrjax.evaluation import metrics, score
    from esrjax.inference import open_model
    from esrjax.nn import ops

    if (protocol_timing or no_baseline) and output is None:
        raise _needs_output("--protocol-timing" if protocol_timing else "--no-baseline")
    strategy: Any = {"self_ensemble": self_ensemble, "windows": parse_windows(windows)}
    if output is not None and any(strategy.values()):
        raise _not_a_single_pass("--self-ensemble" if self_ensemble else "--windows")
    metric_spec, files = metrics.get_spec(spec), parse_checkpoints(checkpoint, names)
    datasets.check_exists(data)
    loaded_rules = challenge_rules.load_rules(rules)
    models = [open_model(name, files, parse_hparams(hparams)) for name in names]
    upscalers = [score.as_scorable(model, metric_spec, **strategy) for model in models]
    rankable = [] if output is None else challenge.check_rankable(models, output)
    pairs = {model.scale: datasets.list_pairs(data, model.scale) for model in models}
    baseline = None if no_baseline else challenge.baseline_name(loaded_rules)
    paths: tuple[Path, ...] = ()
    with ops.implementation(implementation):
        # Before all other work, which would warm up the device.
        timings = {
            model.name: _time_by_protocol(model, pairs[model.scale], loaded_rules)
            for model in rankable
            if protocol_timing
        }
        scores = [
            score.score(upscaler, pairs[model.scale], metric_spec, progress_bar(model.name))
            for model, upscaler in zip(models, upscalers, strict=True)
        ]
        if output is not None:
            title = datasets.dataset_title(data)
            paths = challenge.write_results(
                rankable, scores, title, output, baseline=baseline, protocol_timings=timings
            )
    for path in paths:
        typer.echo(path, err=True)
    if as_json:
        rows = [{"method": m.name, **s.as_dict()} for m, s in zip(models, scores, strict=True)]
        print_json(rows[0] if len(rows) == 1 else rows)
        return
    typer.echo(scores_text([model.name for model in models], scores, format))
    if paths and format == "md":
        typer.echo(f"\n{runtimes_text([record.load_result(path) for path in paths])}")


def _time_by_protocol(model: Any, pairs: Any, rules: Any) -> Any:
    from esrjax.challenge import evaluate as harness
    from esrjax.cli.output import progress_bar

    bar = progress_bar(f"{model.name}, protocol timing")
    return harness.time_by_protocol(model, pairs, rules, bar)


def _needs_output(option: str) -> InvalidArgument:
    return InvalidArgument(
        f"{option} needs -o",
        rule=f"{option} changes how the runtimes in the result files of -o are measured",
        remedy=f"name a folder for the result files with -o, or leave {option} out",
    )


def _not_a_single_pass(option: str) -> InvalidArgument:
    return InvalidArgument(
        f"{option} cannot be combined with -o",
        rule="result files hold what the challenge ranks: a single timed pass over each image",
        remedy=f"leave {option} out, or leave -o out to see the scores only",
    )
