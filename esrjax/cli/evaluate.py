"""The command `eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from esrjax.cli import options
from esrjax.cli.output import print_json, print_notes, progress_bar, runtimes_text, scores_text


def evaluate(
    names: options.MethodsArgument,
    data: Annotated[str, Option()],
    checkpoint: options.CheckpointsOption = None,
    hparams: options.HparamsOption = None,
    spec: str = "ntire",
    format: options.TableFormatOption = "md",
    output: Annotated[Path | None, options.output()] = None,
    protocol_timing: bool = False,
    no_baseline: bool = False,
    rules: options.RulesOption = "ntire2026",
    self_ensemble: options.SelfEnsembleOption = False,
    windows: options.WindowsOption = None,
    implementation: options.ImplementationOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Evaluate methods on a dataset: PSNR and SSIM of whole images; with -o also runtime.

    Args:
        data (DATASET): A dataset: its name, its folder, or tfds:NAME.
        spec: Metric spec; see `esrjax metrics list`.
        output: Also measure the runtime, and write a result file for each method to this folder,
            for `esrjax rank`.
        protocol_timing: With -o: also time every image once, by the timing protocol of the
            challenge.
        no_baseline: With -o: do not time the baseline interleaved with the methods.
    """
    from esrjax.challenge import evaluate as challenge
    from esrjax.challenge import record
    from esrjax.challenge.rules import load_rules
    from esrjax.data import datasets
    from esrjax.evaluation import metrics, score
    from esrjax.inference import open_model
    from esrjax.nn import ops

    strategy: Any = {"self_ensemble": self_ensemble, "windows": options.parse_windows(windows)}
    if output is None and (protocol_timing or no_baseline):
        option = "--protocol-timing" if protocol_timing else "--no-baseline"
        rule = f"{option} changes how the runtimes in the result files of -o are measured"
        raise options.needs(option, "-o", rule)
    if output is not None and (self_ensemble or windows):
        rule = "result files hold what the challenge ranks: a single timed pass over each image"
        raise options.excludes("--self-ensemble" if self_ensemble else "--windows", "-o", rule)
    metric_spec, files = metrics.get_spec(spec), options.parse_checkpoints(checkpoint, names)
    datasets.check_exists(data)
    loaded_rules = load_rules(rules)
    models = [open_model(name, files, options.parse_hparams(hparams)) for name in names]
    upscalers = [score.as_scorable(model, metric_spec, **strategy) for model in models]
    rankable = [] if output is None else challenge.check_rankable(models, output)
    pairs = {model.scale: datasets.list_pairs(data, model.scale) for model in models}
    paths: tuple[Path, ...] = ()
    with ops.implementation(implementation):
        # Before all other work, which would warm up the device.
        timings: dict[str, Any] = {}
        for model in rankable if protocol_timing else ():
            images, bar = pairs[model.scale], progress_bar(f"{model.name}, protocol timing")
            timings[model.name] = challenge.time_by_protocol(model, images, loaded_rules, bar)
        scores = [
            score.score(upscaler, pairs[model.scale], metric_spec, progress_bar(model.name))
            for model, upscaler in zip(models, upscalers, strict=True)
        ]
        if output is not None:
            title = datasets.dataset_title(data)
            baseline = None if no_baseline else challenge.baseline_name(loaded_rules)
            paths = challenge.write_results(
                rankable, scores, title, output, baseline=baseline, protocol_timings=timings
            )
    print_notes({name: notes for s in scores for name, notes in s.notes.items()})
    for path in paths:
        typer.echo(path, err=True)
    if as_json:
        rows = [{"method": m.name, **s.as_dict()} for m, s in zip(models, scores, strict=True)]
        print_json(rows[0] if len(rows) == 1 else rows)
        return
    typer.echo(scores_text([model.name for model in models], scores, format))
    if paths and format == "md":
        typer.echo(f"\n{runtimes_text([record.load_result(path) for path in paths])}")
