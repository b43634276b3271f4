"""Efficient super-resolution in JAX: plugins, training under jit, parity with PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from esrjax.challenge.rank import Ranking
    from esrjax.errors import UserError
    from esrjax.evaluation.score import Scores
    from esrjax.inference import EnsembleModel, Model
    from esrjax.interop.engines import OnnxModel
    from esrjax.interop.parity import Comparison
    from esrjax.training.logging import TrainReport
    from esrjax.training.recipe import Recipe
    from esrjax.training.train import TrainingStopped

    __version__: str

__all__ = [
    "Comparison",
    "EnsembleModel",
    "Model",
    "OnnxModel",
    "Ranking",
    "Recipe",
    "Scores",
    "TrainReport",
    "TrainingStopped",
    "UserError",
    "__version__",
    "evaluate",
    "load",
    "methods",
    "parity",
    "rank",
    "train",
    "upscale",
]

# The types of arguments, results and errors below, and the modules that they are imported from.
_TYPES = {
    "Comparison": "esrjax.interop.parity",
    "EnsembleModel": "esrjax.inference",
    "Model": "esrjax.inference",
    "OnnxModel": "esrjax.interop.engines",
    "Ranking": "esrjax.challenge.rank",
    "Recipe": "esrjax.training.recipe",
    "Scores": "esrjax.evaluation.score",
    "TrainReport": "esrjax.training.logging",
    "TrainingStopped": "esrjax.training.train",
    "UserError": "esrjax.errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # the one of pyproject.toml; importlib.metadata takes 30 ms to import
        from importlib import metadata

        return metadata.version("esrjax")
    if name in _TYPES:
        return getattr(importlib.import_module(_TYPES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def methods() -> tuple[str, ...]:
    """Return the names of all installed methods and ensembles."""
    from esrjax import registry

    return registry.names()


def load(
    name: str | Path | None = None,
    checkpoint: str | Path | Mapping[str, str | Path] | None = None,
    *,
    engine: Literal["auto", "jax", "openvino", "onnxruntime"] = "jax",
    **hparams: Any,
) -> Model | EnsembleModel | OnnxModel:
    """Load a method with its weights, or a checkpoint with its method.

    `load("span")`, `load("span", "mine.pth")` and `load("mine.safetensors")`.

    Args:
        name: Name of an installed method or ensemble; or a checkpoint, whose method is the one in
            its metadata, or else the only one whose network has its tensors.
        checkpoint: A `.pth`, a `.safetensors` or a run directory; of an ensemble, a mapping from
            the names of its members to such files. By default the weights that the method ships.
        engine: What runs the network (`esrjax.interop.engines.open_model`). Only JAX gives a
            `Model`, with the network itself and its gradients; OpenVINO and ONNX Runtime give an
            `OnnxModel`, and `checkpoint` may then be an `.onnx` file.
        **hparams: Arguments of the network, for instance `channels=48`.

    Returns:
        A callable: LR image `(h, w, 3)`, uint8 or floats in [0, 1] -> SR image `(s·h, s·w, 3)`,
        uint8. It also takes batches `(n, h, w, 3)`, PIL images and PyTorch tensors; what it does
        not take it refuses (`esrjax.data.image_arrays`).

    Raises:
        UserError: The method, the checkpoint or a hyperparameter is unknown or does not match.
    """
    from esrjax.inference import open_model

    if checkpoint is None and name is not None and name not in methods() and Path(name).exists():
        name, checkpoint = None, name
    name = None if name is None else str(name)
    if engine == "jax":
        return open_model(name, checkpoint, hparams)
    from esrjax.interop import engines

    return engines.open_model(name, checkpoint, hparams, engine)


def evaluate(
    net: Model | EnsembleModel | OnnxModel | Callable[[Any], Any],
    data: str | Path,
    spec: str = "ntire",
) -> Scores:
    """Return PSNR and SSIM of a network over a dataset.

    Where its LR images come from is logged (the logger "esrjax").

    Args:
        net: As `load` returns, or any function from LR images to SR images in uint8.
        data: Name of a dataset, such as "Set5", or a folder of HR and LR images.
        spec: Name of the metric spec: colour space, border, rounding (`esrjax metrics list`).

    Returns:
        The scores: `mean`, `images`, and `lr_source`, where LR comes from.

    Raises:
        UserError: The dataset or the spec is unknown, or an output has the wrong size.
    """
    from esrjax.data import datasets
    from esrjax.errors import log_note
    from esrjax.evaluation import metrics, score

    pairs = datasets.list_pairs(data, getattr(net, "scale", 4))
    metric_spec = metrics.get_spec(spec)
    log_note(f"{data}: LR: {datasets.lr_source(pairs)}")
    return score.score(score.as_scorable(net, metric_spec), pairs, metric_spec)


def upscale(
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    net: Model | EnsembleModel | OnnxModel | str = "spanv2",
    *,
    tile: int = 256,
    self_ensemble: bool = False,
    windows: Mapping[int, float] | None = None,
) -> tuple[Path, ...]:
    """Upscale image files, as the command `esrjax upscale` does; `load(...)(lr)` takes arrays.

    Args:
        inputs: An image or a folder of images, or several of them.
        output: A file for one image, a folder for several; never one of the inputs.
        net: As `load` returns, or the name of a method.
        tile: Largest side of a tile, LR pixels.
        self_ensemble: Average over the eight flips and rotations.
        windows: Side of windows, LR pixels -> weight.

    Returns:
        The files that were written. What reading and writing changed is logged.

    Raises:
        UserError: An image cannot be read or written; those before it are written.
    """
    from functools import cache, partial

    from esrjax.errors import log_note
    from esrjax.evaluation import upscale_files

    model: Any = load(net) if isinstance(net, str) else net
    paths = [inputs] if isinstance(inputs, str | Path) else inputs
    upscaler_of = cache(
        partial(model.upscaler, self_ensemble=self_ensemble, windows=dict(windows or {}) or None)
    )
    plan = upscale_files.plan_upscale_jobs(
        [Path(path) for path in paths],
        Path(output),
        model.scale,
        tile,
        both_orientations=self_ensemble or bool(windows),
    )
    for error in plan.failures.values():
        raise error
    notes = [*plan.notes]
    for job in plan.jobs:
        notes += upscale_files.upscale_file(job, upscaler_of(job.tile_size))
    for note in notes:
        log_note(note)
    return tuple(job.target for job in plan.jobs)


def train(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    callbacks: Sequence[Callable[[TrainReport], Any]] = (),
) -> Model:
    """Train a network from a recipe, as the command `esrjax train` does.

    `train("quick", "runs/quick", callbacks=[lambda report: report.psnr and report.psnr > 29])`

    Args:
        recipe: Name of a shipped recipe, path of a TOML file, or a `Recipe`.
        folder: Where weights, checkpoints and `metrics.jsonl` are written.
        overrides: As `--set`: "stage.0.steps=100". Not for a `Recipe`.
        resume: Continue the run in `folder`, bit-exactly.
        callbacks: Each is called with every report: loss, learning rate, speed, after a validation
            also PSNR and images. If one returns a true value, the training stops and its state is
            saved; if one raises an error, too.

    Returns:
        The network of the last stage, with its weights.

    Raises:
        UserError: Recipe, data or folder are invalid, the loss is not finite, or a callback fails.
        TrainingStopped: A callback stopped the training.
    """
    from esrjax.inference import open_method
    from esrjax.training import recipe_loader
    from esrjax.training import train as training
    from esrjax.training.recipe import Recipe

    if not isinstance(recipe, Recipe):
        recipe = recipe_loader.load(recipe, overrides)
    elif overrides:
        raise TypeError("overrides are for recipes of files; else use dataclasses.replace")
    stops: list[bool] = []

    def on_report(report: TrainReport) -> None:
        stops.extend(bool(callback(report)) for callback in callbacks)

    training.check_recipe(recipe)
    training.run_stages(
        training.resolve_epochs(recipe),
        Path(folder),
        resume=resume,
        on_report=on_report,
        should_stop=lambda: any(stops),
    )
    return open_method(recipe.method_of(recipe.runs[-1].stage), Path(folder))


def parity(
    method: str,
    torch: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    golden: str | Path | None = None,
    torch_args: Mapping[str, Any] | None = None,
    hparams: Mapping[str, Any] | None = None,
    data: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare a network with its PyTorch original, as the command `esrjax parity` does.

    Args:
        method: Name of the method.
        torch: "FILE.py:CLASS" of a live PyTorch network; runs the code in FILE.py.
        checkpoint: Weights of both; by default random ones with `torch`, else the shipped ones.
        golden: An .npz file with inputs and outputs of PyTorch.
        torch_args: Keyword arguments of the PyTorch class.
        hparams: Hyperparameters of the network.
        data: A dataset whose PSNR is compared too.
        seed: Of random images and weights.

    Returns:
        The comparison: `passed`, and what differs.

    Raises:
        UserError: Neither `torch` nor `golden` is given, or one of the files is invalid.
    """
    from esrjax.interop import parity as comparing

    request = comparing.ParityRequest(
        method=method,
        torch=torch,
        checkpoint=None if checkpoint is None else str(checkpoint),
        golden=None if golden is None else str(golden),
        torch_args=dict(torch_args or {}),
        hparams=dict(hparams or {}),
        data=data,
        seed=seed,
    )
    return comparing.run(request, comparing.optimizer_pairs() if torch else ()).comparison


def rank(
    source: str | Path,
    rules: str = "ntire2026",
    *,
    apply_thresholds: bool = True,
) -> Ranking:
    """Score and rank results, as the command `esrjax rank` does.

    Args:
        source: Results of `esrjax eval -o`, the organisers' results.json, or a .csv table.
        rules: Name or file of the rules.
        apply_thresholds: Rank only entries whose PSNR reaches the thresholds.

    Returns:
        The ranking: `entries` with ranks and scores, `notes`.

    Raises:
        UserError: The source cannot be read, or its rows cannot be compared.
    """
    from esrjax.challenge import rank as ranking
    from esrjax.challenge import results
    from esrjax.challenge.rules import load_rules
    from esrjax.errors import log_note

    loaded_rules = load_rules(rules)
    rows = results.read_rows(Path(source), loaded_rules, on_note=log_note)
    return ranking.rank(rows, loaded_rules, apply_thresholds=apply_thresholds)
