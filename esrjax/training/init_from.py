"""Checkpoints by name, the initial network of a stage, and the teacher of a distillation.

A stage starts from scratch, from the result of another stage, or from a checkpoint; a teacher is
one of the last two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax import hub, registry
from esrjax.errors import NotFound, RecipeError, list_some, log_note
from esrjax.io import matches_any, unmatched_patterns, weights_dirs
from esrjax.loading import load_network
from esrjax.method import Form, Method
from esrjax.nn import checkpoint_io
from esrjax.nn.hooks import forward_with_taps, with_hooks
from esrjax.nn.lora import add_lora, merge_lora
from esrjax.nn.prune import Weights, prune_channels
from esrjax.nn.quantization import add_quantization, quantized_convs, remove_quantization
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import named_parameters
from esrjax.schema import bullet_list
from esrjax.training.recipe import (
    InitFrom,
    LoRA,
    Quantization,
    Recipe,
    StageRun,
    StageWeights,
    TeacherConfig,
)

GraphDef = nnx.GraphDef[Any]
SHIPPED = "shipped:"  # in front of a method: the weights that its plugin ships


def find_checkpoint(name: str) -> Path:
    """Return the path of a checkpoint.

    Args:
        name: A path, the name of a file in one of this machine's weight folders, or the weights
            that a plugin ships, `shipped:spanv2`.

    Raises:
        NotFound: There is no such file; lists the folders.
    """
    if name.startswith(SHIPPED):
        return _shipped_checkpoint(name.removeprefix(SHIPPED))
    folders = weights_dirs()
    for path in (Path(name), *(folder / name for folder in folders)):
        if path.exists():
            return path
    raise NotFound(
        f"No such checkpoint: {name!r}",
        rule="a checkpoint is a path, a file in $ESRJAX_DATA, $ESRJAX_DATA/weights or "
        "$ESRJAX_REFERENCE/weights, downloaded by `esrjax weights get`, or shipped:METHOD",
        location="; ".join(f"searched {folder}" for folder in folders),
        remedy="check the name, or copy the file to one of these folders",
    )


def _shipped_checkpoint(method: str) -> Path:
    path = hub.shipped_path(registry.get_method(method))
    if path is None:
        raise NotFound(
            f"{method!r} ships no weights",
            rule=f"{SHIPPED}METHOD are the weights that the plugin of a method contains",
            remedy="name a file; `esrjax weights list` shows where the weights of each method are",
        )
    return path


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network with its metadata.

    Attributes:
        method: Name of the method.
        net: The network.
        form: "train" (with branches) or "deploy" (fused).
        hparams: Hyperparameters of the network, beyond the method's defaults.
        lora: Configuration of its adapters, None if it has none.
    """

    method: str
    net: nnx.Module
    form: Form
    hparams: Mapping[str, Any]
    lora: LoRA | None = None

    def without_lora(self) -> "LoadedModel":
        """Return the model with its adapters merged into the kernels."""
        return self if self.lora is None else replace(self, net=merge_lora(self.net), lora=None)

    def without_quantization(self) -> "LoadedModel":
        """Return the model with the same weights in float32 convolutions, with a note."""
        if not (paths := quantized_convs(self.net)):
            return self
        log_note(f"{self.method}: {len(paths)} int8 convolutions of the initial weights in float32")
        return replace(self, net=remove_quantization(self.net))

    def with_quantization(self, cfg: Quantization) -> "LoadedModel":
        """Return the model with convolutions of 8 bits; ranges of the same ones are kept.

        Args:
            cfg: Which convolutions.

        Raises:
            RecipeError: As of `add_quantization`, or the network runs one without its inputs.
        """
        net = add_quantization(remove_quantization(self.net), cfg.exclude)
        if quantized_convs(net) == quantized_convs(self.net):
            return self
        _check_called(net, quantized_convs(net), registry.get_method(self.method).min_side)
        return replace(self.without_quantization(), net=net)

    def with_lora(self, lora: LoRA, seed: int = 0) -> "LoadedModel":
        """Return the model with new adapters: one factor is random and the other is 0.

        Args:
            lora: Configuration of the adapters.
            seed: Seed of the random factor.
        """
        rngs = nnx.Rngs(seed)
        net = add_lora(self.net, lora.target_modules, rank=lora.rank, alpha=lora.alpha, rngs=rngs)
        return replace(self, net=net, lora=lora)

    def to_deploy_form(self) -> "LoadedModel":
        """Return the model in deploy form."""
        if self.form == "deploy":
            return self
        return replace(self, net=deploy(self.net), form="deploy", lora=None)


def _check_called(net: nnx.Module, paths: Sequence[str], min_side: int) -> None:
    """Raise `RecipeError` if the network does not call one of its layers, but reads its weights."""
    called: set[str] = set()
    hooked = with_hooks(net, lambda path, _: called.add(path))
    lr = jax.ShapeDtypeStruct((1, max(32, min_side), max(32, min_side), 3), "float32")
    nnx.eval_shape(lambda net, lr: net(lr), hooked, lr)
    if missed := [path for path in paths if path not in called]:
        raise RecipeError(
            f"quantization: the network does not call {list_some(missed, 12)}",
            rule="a quantized convolution rounds its inputs when it is called; this network reads "
            "its kernel instead",
            remedy="add these paths to exclude",
        )


class StageModelLoader(Protocol):
    """Returns the result of an earlier run, or its weights without averaging."""

    def __call__(self, run: StageRun, weights: StageWeights = "ema", /) -> LoadedModel: ...


def init_stage_model(recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> LoadedModel:
    """Return the network that `run` trains, before its first step.

    Args:
        recipe: The recipe.
        run: The stage run.
        load_stage: Returns the result of an earlier run.

    Raises:
        RecipeError: The initial weights do not match the network.
    """
    stage, hparams, method = run.stage, recipe.hparams_at(run), recipe.method_of(run.stage)
    loaded = load_initial_model(recipe, run, load_stage)
    if stage.form == "deploy":
        loaded = loaded.to_deploy_form()
    defaults = registry.get_method(method).default_hparams()
    has_other_hparams = {**defaults, **hparams} != {**defaults, **loaded.hparams}
    if stage.reinit or loaded.method != method or has_other_hparams:
        loaded = _rebuild(recipe, run, loaded.without_lora().without_quantization())
    elif stage.prune is not None:
        raise RecipeError(
            f"prune of stage {run.name!r} has no effect: the initial weights are of its network",
            rule="prune reduces wider initial weights to the network of the stage",
            remedy="set narrower hparams for the stage, or remove prune",
        )
    if stage.quantization is not None:
        return loaded.without_lora().with_quantization(stage.quantization)
    loaded = loaded.without_quantization()
    if _adapters(loaded.lora) == _adapters(stage.lora):
        return loaded
    loaded = loaded.without_lora()
    return loaded if stage.lora is None else loaded.with_lora(stage.lora, recipe.seed + run.index)


def _adapters(lora: LoRA | None) -> LoRA | None:
    """Return the configuration of the adapters alone, which is what two stages can share."""
    return lora and replace(lora, train=())


def load_initial_model(recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> LoadedModel:
    """Return the model that `run` starts from, before pruning, rebuilding and adapters."""
    init = run.stage.init_source
    if init == "scratch" or (init == "previous" and run.index == 0):
        return _build(recipe, run)
    if isinstance(init, InitFrom) and init.checkpoint is not None:
        method = init.method or recipe.method_of(run.stage)
        return load_model(method, init.checkpoint, init.hparams)
    source, weights = (init.stage, init.weights) if isinstance(init, InitFrom) else (None, "ema")
    return load_stage(recipe.latest_run(run.index, source), weights)


def load_model(name: str, checkpoint: str, hparams: Mapping[str, Any]) -> LoadedModel:
    """Return the network of a checkpoint, in the form whose state dict it is.

    Args:
        name: Name of the method.
        checkpoint: Path or name of the checkpoint.
        hparams: Hyperparameters of the network, beyond the defaults.

    Raises:
        UserError: There is no such checkpoint, or it does not match the method.
    """
    file = checkpoint_io.read_checkpoint(find_checkpoint(checkpoint))
    loaded = load_network(name, registry.get_method(name), file, hparams)
    return LoadedModel(method=name, net=loaded.net, form=loaded.form, hparams=loaded.hparams)


def _build(recipe: Recipe, run: StageRun) -> LoadedModel:
    """Return the stage's network with new weights."""
    name, hparams = recipe.method_of(run.stage), recipe.hparams_at(run)
    net = registry.get_method(name).build(seed=recipe.seed + run.index, **hparams)
    return LoadedModel(method=name, net=net, form="train", hparams=hparams)


def _rebuild(recipe: Recipe, run: StageRun, loaded: LoadedModel) -> LoadedModel:
    """Return the stage's network with the weights of `loaded`, pruned or partly reinitialized."""
    stage, new = run.stage, _build(recipe, run)
    new = new.to_deploy_form() if loaded.form == "deploy" else new
    targets = dict(named_parameters(new.net))
    if unmatched := unmatched_patterns(stage.reinit, targets):
        raise RecipeError(
            f"reinit: {', '.join(map(repr, unmatched))} match no parameter",
            rule="reinit contains globs of parameter paths of the network",
            location=", ".join([*targets][:12]),
            remedy="correct or remove the glob",
        )
    prune, source = stage.prune, loaded.net
    source = source if prune is None else prune_channels(source, new.net, prune.criterion)
    sources = dict(named_parameters(source))
    reinit = {path for path in targets if matches_any(path, stage.reinit)}
    _check_shapes(sources, targets, reinit, run.name)
    for path, weight in targets.items():
        if path not in reinit:
            weight.set_value(sources[path].get_value())
    return new


def _check_shapes(source: Weights, target: Weights, reinit: set[str], run_name: str) -> None:
    """Check that both networks have the same parameters and shapes, except for `reinit`."""
    sources, targets = (
        {path: tuple(leaf.get_value().shape) for path, leaf in weights.items()}
        for weights in (source, target)
    )
    problems = [
        f"{path} has shape {sources[path]}, expected {shape}"
        if path in sources
        else f"{path} is missing"
        for path, shape in targets.items()
        if path not in reinit and sources.get(path) != shape
    ]
    problems += [f"{path} is unexpected" for path in sources if path not in targets]
    if problems:
        raise RecipeError(
            f"the initial weights of {run_name!r} have {bullet_list(problems, limit=12)}",
            rule="the initial weights of a stage have the parameters and shapes of its network",
            remedy="reduce their channels with prune, or list parameters to initialize in reinit",
        )


# --- teacher of a distillation ---


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The frozen teacher network of a stage.

    Attributes:
        graphdef: Graph definition of the network.
        state: Its variables.
        method: The method of the network.
        tap_paths: Paths of the submodules whose outputs are returned.
    """

    graphdef: GraphDef
    state: Any
    method: Method
    tap_paths: tuple[str, ...]

    @classmethod
    def create(cls, model: LoadedModel, cfg: TeacherConfig) -> "Teacher":
        """Return the teacher of a model, in deploy form and evaluation mode."""
        net = model.to_deploy_form().net
        net.eval()
        graphdef, state = nnx.split(net)
        method, tap_paths = registry.get_method(model.method), tuple(cfg.taps.values())
        return cls(graphdef=graphdef, state=state, method=method, tap_paths=tap_paths)

    def __call__(self, state: Any, lr: Array) -> tuple[Array, list[Array]]:
        """Return the output image and the features of the taps, without gradients.

        Args:
            state: Variables of the network, as an argument so that they are no constants of the
                compiled step.
            lr: (n, h, w, 3), values in [0, 1].

        Returns:
            SR (n, s·h, s·w, 3), values in [0, 1], and one feature array per tap.

        Raises:
            NotFound: A tap is not the path of a submodule that runs.
        """
        net = nnx.merge(self.graphdef, state)
        x = lr * jnp.asarray(self.method.data_range, lr.dtype)
        sr, features = forward_with_taps(net, x, self.tap_paths)
        return lax.stop_gradient((sr / self.method.data_range, features))


def load_teacher(recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> Teacher | None:
    """Return the teacher of a stage, None if it has none.

    Args:
        recipe: The recipe.
        run: The stage run.
        load_stage: Returns the result of an earlier run.

    Raises:
        UserError: The teacher's checkpoint does not exist, or does not match its method.
    """
    cfg = run.stage.teacher
    if cfg is None:
        return None
    if cfg.stage is not None:
        return Teacher.create(load_stage(recipe.latest_run(run.index, cfg.stage)), cfg)
    assert cfg.method is not None and cfg.checkpoint is not None  # the schema requires them
    return Teacher.create(load_model(cfg.method, cfg.checkpoint, cfg.hparams), cfg)
