"""The command `eval`: methods and checkpoints, scored on datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from esrjax import registry
from esrjax.cli import options
from esrjax.cli.output import (
    images_text,
    print_json,
    print_note,
    print_notes,
    print_stderr,
    progress_bar,
    runtimes_text,
    scores_text,
)
from esrjax.errors import InvalidArgument
from esrjax.method import Ensemble

if TYPE_CHECKING:
    from esrjax.challenge.rules import Rules
    from esrjax.data.datasets import Pair
    from esrjax.evaluation.metrics import MetricSpec
    from esrjax.evaluation.score import Scores
    from esrjax.inference import EnsembleModel, Model

OptionalMethodsArgument = Annotated[
    list[str] | None,
    Argument(
        help="Methods; see `esrjax method list`. None for those of the checkpoints.",
        metavar="[METHOD]...",
        show_default=False,
    ),
]
_LABEL = re.compile(r"[^\s./\\:=-][^/\\:=\x00-\x1f]*")  # also the name of a result file


# --- models ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model to open.

    Attributes:
        label: Its name in tables; None for that of its method, or of its file among several.
        method: Its method or ensemble; None for the method of the checkpoint.
        checkpoint: Its weights, by member for an ensemble; None for the default weights.
    """

    label: str | None
    method: str | None
    checkpoint: str | Mapping[str, str] | None


def parse_models(names: Sequence[str], checkpoints: Iterable[str]) -> list[ModelSpec]:
    """Return the ensembles and the checkpoints that options name.

    Args:
        names: Methods and ensembles.
        checkpoints: `FILE`, `LABEL=FILE` or `LABEL:METHOD=FILE`. A label that is a method's name
            means that method, or that member of an ensemble in `names`; without a method it is that
            of the checkpoint.

    Raises:
        InvalidArgument: A method or a label occurs twice, or a method is not among `names`.
        NotFound: A method is not registered.
    """
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgument(
            f"{duplicates[0]!r} is named {names.count(duplicates[0])} times",
            rule="a method is named once, and each of its checkpoints has a label",
            remedy=f"name it once, with --checkpoint a=FILE --checkpoint b=FILE (of {names[0]})",
        )
    ensembles = {n: e for n in names if isinstance(e := registry.get_entry(n), Ensemble)}
    members = [member for ensemble in ensembles.values() for member in ensemble.members]
    parsed = [_parse_checkpoint(text, names, members) for text in checkpoints]
    files = {spec.method: str(spec.checkpoint) for spec in parsed if spec.label == spec.method}
    if not (names or parsed):
        raise InvalidArgument(
            "No method and no checkpoint to evaluate",
            rule="a model is a METHOD, with its default weights, or a --checkpoint FILE",
            remedy="name a method; see `esrjax method list`",
        )
    specs = [spec for spec in parsed if spec.method in names or spec.method not in members]
    for name, ensemble in ensembles.items():
        of_members = {member: files[member] for member in ensemble.members if member in files}
        specs.append(ModelSpec(label=name, method=name, checkpoint=of_members))
    return specs


def _parse_checkpoint(text: str, names: Sequence[str], members: Sequence[str]) -> ModelSpec:
    """Return the model of one value of --checkpoint."""
    methods = [name for name in names if not isinstance(registry.get_entry(name), Ensemble)]
    key, equals, file = text.partition("=")
    if not equals or Path(text).exists():
        if len(names) > 1 or members:
            raise _no_method(text, text, names, members)
        return ModelSpec(label=None, method=methods[0] if methods else None, checkpoint=text)
    label, colon, method = key.partition(":")
    if not (file and _LABEL.fullmatch(label)):
        rule = "it is FILE, LABEL=FILE or LABEL:METHOD=FILE; a label has none of / \\ : = in it"
        raise options.invalid("--checkpoint", text, rule, "mine=FILE")
    if not colon and label not in registry.names():
        method = methods[0] if len(names) == 1 and methods else None
        return ModelSpec(label=label, method=method, checkpoint=file)
    if colon and label in registry.names() and label != method:
        raise InvalidArgument(
            f"The label {label!r} of {method!r} is the name of a method",
            rule="a label that is a method's name means that method",
            remedy="choose another label",
        )
    method = method if colon else label
    registry.get_method(method)
    if names and method not in names and (method not in members or label != method):
        raise _no_method(text, file, names, members)
    return ModelSpec(label=label, method=method, checkpoint=file)


def _no_method(
    text: str, file: str, names: Sequence[str], members: Sequence[str]
) -> InvalidArgument:
    networks = list(dict.fromkeys([*(n for n in names if n not in members), *members]))
    networks = [n for n in networks if not isinstance(registry.get_entry(n), Ensemble)]
    return options.no_method("--checkpoint", text, file, networks)


def open_models(
    specs: Sequence[ModelSpec], names: Sequence[str], hparams: Mapping[str, Any]
) -> dict[str, Model | EnsembleModel]:
    """Open every model once; return them by label, in the order of the methods.

    Args:
        specs: The models that have checkpoints.
        names: The methods that are run, any if there are none; those without a checkpoint have
            their default weights.
        hparams: As in `open_model`.

    Raises:
        InvalidArgument: Two models have one label, or a checkpoint is of a method that is not run.
    """
    from esrjax.inference import open_model

    opened = [(spec, open_model(spec.method, spec.checkpoint, hparams)) for spec in specs]
    for name in (n for n in names if n not in [model.name for _, model in opened]):
        spec = ModelSpec(label=name, method=name, checkpoint=None)
        opened.append((spec, open_model(name, None, hparams)))
    models: dict[str, Model | EnsembleModel] = {}
    for spec, model in sorted(opened, key=lambda item: _position(item[1].name, names)):
        if names and model.name not in names:
            raise InvalidArgument(
                f"The checkpoint {str(spec.checkpoint)!r} is of the method {model.name!r}",
                rule=f"the methods that are run: {', '.join(names)}",
                remedy=f"also name {model.name}, or name no method",
            )
        is_only_one = len(opened) == 1
        label = spec.label or (model.name if is_only_one else Path(str(spec.checkpoint)).stem)
        is_misleading = label != model.name and label in registry.names()
        if label in models or is_misleading or not _LABEL.fullmatch(label):
            raise InvalidArgument(
                f"{label!r} is no label for the model of {str(spec.checkpoint)!r}"
                + ": it is that of another model" * (label in models),
                rule="a table has one row for each label; the name of a method means that method",
                remedy="give each checkpoint a label of its own: --checkpoint LABEL=FILE",
            )
        models[label] = model
    return models


def _position(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else -1


def _same_weights(models: Mapping[str, Model | EnsembleModel]) -> Iterable[str]:
    """Yield a note for every two labels whose rows must be equal."""
    labels: dict[Any, str] = {}
    for label, model in models.items():
        if checkpoint := getattr(model, "checkpoint", None):
            first = labels.setdefault((model.name, checkpoint.sha256), label)
            if first != label:
                yield f"{first} and {label} have the same weights"


# --- datasets ----------------------------------------------------------------------------------


def name_datasets(data: Sequence[str]) -> dict[str, str]:
    """Return name in tables and results -> dataset.

    Raises:
        DatasetNotFound: There is no such dataset.
        InvalidArgument: Two datasets have one name.
    """
    from esrjax.data import datasets

    titles: dict[str, str] = {}
    for name in data:
        datasets.check_exists(name)
        other = titles.setdefault(datasets.dataset_title(name), name)
        if other is not name or data.count(name) > 1:
            raise InvalidArgument(
                f"Two datasets are called {datasets.dataset_title(name)!r}: {other}, {name}",
                rule="tables and results name a dataset by its folder",
                remedy="leave one out, or link its folder under another name",
            )
    return titles


# --- the command -------------------------------------------------------------------------------


def evaluate(
    data: Annotated[list[str], Option()],
    names: OptionalMethodsArgument = None,
    checkpoint: Annotated[list[str] | None, Option(show_default="shipped weights")] = None,
    hparams: options.HparamsOption = None,
    spec: str = "ntire",
    per_image: bool = False,
    format: options.TableFormatOption = "md",
    output: Annotated[Path | None, options.output()] = None,
    protocol_timing: bool = False,
    no_baseline: bool = False,
    rules: options.RulesOption = options.DEFAULT_RULES,
    self_ensemble: options.SelfEnsembleOption = False,
    windows: options.WindowsOption = None,
    implementation: options.ImplementationOption = "auto",
    engine: options.EngineOption = "jax",
    precision: options.PrecisionOption = "float32",
    as_json: options.JsonOption = False,
) -> None:
    """Evaluate methods on datasets: PSNR and SSIM of whole images; with -o also runtime.

    Args:
        data (DATASET): A dataset: its name, its folder, or tfds:NAME. Repeatable.
        checkpoint ([LABEL=]FILE): A .pth or .safetensors file, a run directory, or the key of
            downloaded weights, under a label of its own. A label that is a method's name means that
            method; else it is that of the checkpoint, or of LABEL:METHOD=FILE. Repeatable.
        spec: Metric spec; see `esrjax metrics list`.
        per_image: Also print PSNR and SSIM of every image.
        output: Also measure the runtime, and write a result file for each model to this folder,
            for `esrjax rank`.
        protocol_timing: With -o: also time every image once, by the timing protocol of the
            challenge.
        no_baseline: With -o: do not time the baseline interleaved with the methods.
    """
    from esrjax.challenge import record
    from esrjax.challenge.rules import load_rules
    from esrjax.evaluation import metrics
    from esrjax.interop import engines
    from esrjax.nn import ops

    strategy: Any = {"self_ensemble": self_ensemble, "windows": options.parse_windows(windows)}
    _check_output_options(output, protocol_timing, no_baseline, rules, strategy)
    if output is not None and engine != "jax":
        rule = "result files hold what the networks compute in JAX"
        raise options.excludes("--engine", "-o", rule)
    options.check_table_format(format, as_json)
    specs, titles = parse_models(names or [], checkpoint or []), name_datasets(data)
    metric_spec, loaded_rules = metrics.get_spec(spec), load_rules(rules)
    models = open_models(specs, names or [], options.parse_hparams(hparams))
    run_in = partial(engines.in_engine, engine=engine, precision=precision)
    job = _Job(models=models, titles=titles, spec=metric_spec, strategy=strategy, run_in=run_in)
    with ops.implementation(implementation):
        scores, paths = job.run(output, loaded_rules, protocol_timing, no_baseline)
    print_stderr(job.notes)
    how = ", ".join(["x8 self-ensemble"] * self_ensemble + [f"windows {windows}"] * bool(windows))
    for title in titles:
        notes = [of_model[title].notes for of_model in scores.values()]
        print_notes({name: x for of_images in notes for name, x in of_images.items()}, f"{title}: ")
    print_stderr(paths)
    if as_json:
        rows = [job.row(label, title, s) for label, x in scores.items() for title, s in x.items()]
        rows = [{**row, "strategy": how or "single pass"} for row in rows]
        print_json(rows[0] if len(rows) == 1 else rows)
        return
    methods = {label: model.name for label, model in models.items()}
    typer.echo(scores_text(scores, methods, job.weights, format, how))
    if per_image:
        typer.echo(f"\n{images_text(scores, format, how)}")
    if paths and format == "md":
        typer.echo(f"\n{runtimes_text([record.load_result(path) for path in paths])}")


def _check_output_options(
    output: Path | None,
    protocol_timing: bool,
    no_baseline: bool,
    rules: str,
    strategy: Mapping[str, Any],
) -> None:
    of_results = {
        "--protocol-timing": protocol_timing,
        "--no-baseline": no_baseline,
        "--rules": rules != options.DEFAULT_RULES,
    }
    for option in [option for option, is_set in of_results.items() if is_set and output is None]:
        rule = f"{option} changes how the runtimes in the result files of -o are measured"
        raise options.needs(option, "-o", rule)
    if output is not None and any(strategy.values()):
        rule = "result files hold what the challenge ranks: a single timed pass over each image"
        option = "--self-ensemble" if strategy["self_ensemble"] else "--windows"
        raise options.excludes(option, "-o", rule)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Models and datasets to evaluate.

    Attributes:
        models: Label -> model.
        titles: Name in tables -> dataset.
        spec: Metric spec.
        strategy: Keyword arguments of `Model.upscaler`.
        run_in: Model -> the same in the engine that computes the images.
    """

    models: Mapping[str, Model | EnsembleModel]
    titles: Mapping[str, str]
    spec: MetricSpec
    strategy: Mapping[str, Any]
    run_in: Callable[[Any], Any]

    @cached_property
    def pairs(self) -> dict[tuple[str, int], tuple[Pair, ...]]:
        """(Name of a dataset, scale) -> its pairs."""
        from esrjax.data import datasets

        scales = dict.fromkeys(model.scale for model in self.models.values())
        return {
            (title, scale): datasets.list_pairs(name, scale)
            for title, name in self.titles.items()
            for scale in scales
        }

    @cached_property
    def notes(self) -> list[str]:
        """What the tables do not say: where LR comes from, and equal weights."""
        from esrjax.data.datasets import lr_source

        sources = {(title, lr_source(pairs)): None for (title, _), pairs in self.pairs.items()}
        return [*(f"{title}: LR: {text}" for title, text in sources), *_same_weights(self.models)]

    @property
    def weights(self) -> dict[str, str]:
        """Label -> whose weights it has; of an ensemble, those of its members."""
        return {label: _origin(model) for label, model in self.models.items()}

    def row(self, label: str, title: str, scores: Scores) -> dict[str, Any]:
        """Return the scores of one model on one dataset, for JSON."""
        model = self.models[label]
        sha256 = getattr(getattr(model, "checkpoint", None), "sha256", None)
        names = {"method": model.name, "label": label, "dataset": title}
        weights = {"weights_origin": self.weights[label], "weights_sha256": sha256}
        return {**names, **weights, **scores.as_dict()}

    def run(
        self, output: Path | None, rules: Rules, protocol_timing: bool, no_baseline: bool
    ) -> tuple[dict[str, dict[str, Scores]], tuple[Path, ...]]:
        """Return label -> dataset -> scores, and the result files, if `output` is a folder."""
        from esrjax.challenge import evaluate as challenge
        from esrjax.evaluation import score

        rankable = {} if output is None else challenge.check_rankable(self.models, output)
        upscalers = {
            label: score.as_scorable(self.run_in(model), self.spec, **self.strategy)
            for label, model in self.models.items()
        }
        pairs = self.pairs  # lists all before any work
        timings = {  # before all other work, which would warm up the device
            label: self._time_by_protocol(label, model, rules) if protocol_timing else {}
            for label, model in rankable.items()
        }
        scores = {
            label: {
                title: score.score(
                    upscaler,
                    pairs[title, self.models[label].scale],
                    self.spec,
                    progress_bar(f"{label}, {title}"),
                )
                for title in self.titles
            }
            for label, upscaler in upscalers.items()
        }
        if output is None:
            return scores, ()
        evaluations = [
            challenge.Evaluation(
                label=label, model=model, scores=scores[label], protocol_timing=timings[label]
            )
            for label, model in rankable.items()
        ]
        baseline = None if no_baseline else challenge.baseline_name(rules)
        paths = challenge.write_results(evaluations, output, baseline=baseline, on_note=print_note)
        return scores, paths

    def _time_by_protocol(self, label: str, model: Model, rules: Rules) -> dict[str, Any]:
        from esrjax.challenge import evaluate as challenge

        return {
            title: challenge.time_by_protocol(
                model,
                self.pairs[title, model.scale],
                rules,
                progress_bar(f"{label}, {title}, protocol timing"),
            )
            for title in self.titles
        }


def _origin(model: Model | EnsembleModel) -> str:
    members = getattr(model, "members", None)
    if members is None:
        return model.origin  # pyright: ignore[reportAttributeAccessIssue] # it is a Model
    return ", ".join(dict.fromkeys(member.origin for member in members.values()))
