"""Search path of the checkpoints that a recipe names."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from flax import nnx

from esrjax import hub, registry
from esrjax.errors import NotFound, RecipeError
from esrjax.loading import load_network
from esrjax.method import Form, Method
from esrjax.nn import checkpoint_io
from esrjax.nn.lora import add_lora, merge_lora
from esrjax.nn.prune import prune_channels
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import named_parameters
from esrjax.schema import bullet_list
from esrjax.training.recipe import InitFrom, LoRA, Recipe, Stage, StageRun

# environment variable, folder in it
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_DATA", "weights"), ("ESRJAX_REFERENCE", "weights"))


def find_checkpoint(name: str) -> Path:
    """Return the path of a checkpoint.

    Args:
        name: A path, or the name of a file in one of this machine's weight folders.

    Raises:
        NotFound: There is no such file; lists the folders.
    """
    roots = [Path(os.environ[key]) / subfolder for key, subfolder in _ROOTS if os.environ.get(key)]
    roots += [hub.weights_dir()] * (hub.weights_dir() not in roots)
    for path in (Path(name), *(root / name for root in roots)):
        if path.exists():
            return path
    raise NotFound(
        f"No such checkpoint: {name!r}",
        rule="a checkpoint is a path, a file in $ESRJAX_DATA, $ESRJAX_DATA/weights or "
        "$ESRJAX_REFERENCE/weights, or downloaded by `esrjax weights get`",
        location="; ".join(f"searched {root}" for root in roots) or None,
        remedy="check the name, or copy the file to one of these folders",
    )


# --------------------------------------------------------------------------------------------------
# Initial network of a stage: from scratch, from another stage, or from a checkpoint.
# --------------------------------------------------------------------------------------------------


Variables = dict[str, nnx.Variable[Any]]


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


# Returns the result of the stage of that name, or of the stage before if the name is None.
StageModelLoader = Callable[[str | None], LoadedModel]


def init_stage_model(recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> LoadedModel:
    """Return the network that `run` trains, before its first step.

    Args:
        recipe: The recipe.
        run: The stage run.
        load_stage: Returns the result of an earlier stage.

    Raises:
        RecipeError: The initial weights do not match the network.
    """
    stage, hparams = run.stage, recipe.hparams_at(run)
    loaded = load_initial_model(recipe, run, hparams, load_stage)
    if stage.form == "deploy":
        loaded = loaded.to_deploy_form()
    if _needs_rebuild(recipe, stage, loaded, hparams):
        loaded = _rebuild(recipe, run, loaded.without_lora(), hparams)
    return _apply_lora(loaded, stage.lora, recipe.seed + run.index)


def load_initial_model(
    recipe: Recipe, run: StageRun, hparams: Mapping[str, Any], load_stage: StageModelLoader
) -> LoadedModel:
    """Return the model that `run` starts from, before pruning, rebuilding and adapters."""
    init = run.stage.init_source
    if init == "scratch" or (init == "previous" and run.index == 0):
        net = registry.get_method(recipe.method).build(seed=recipe.seed + run.index, **hparams)
        return LoadedModel(method=recipe.method, net=net, form="train", hparams=hparams)
    if isinstance(init, InitFrom) and init.checkpoint is not None:
        return load_model(init.method or recipe.method, init.checkpoint, init.hparams)
    return load_stage(init.stage if isinstance(init, InitFrom) else None)


def load_model(name: str, checkpoint: str, hparams: Mapping[str, Any]) -> LoadedModel:
    """Return the network of a checkpoint, in the form whose state dict it is.

    Args:
        name: Name of the method.
        checkpoint: Path or name of the checkpoint.
        hparams: Hyperparameters of the network, beyond the defaults.

    Raises:
        UserError: There is no such checkpoint, or it does not match the method.
    """
    loaded = load_network(
        name,
        registry.get_method(name),
        checkpoint_io.read_checkpoint(find_checkpoint(checkpoint)),
        hparams,
    )
    return LoadedModel(method=name, net=loaded.net, form=loaded.form, hparams=loaded.hparams)


def _needs_rebuild(
    recipe: Recipe, stage: Stage, loaded: LoadedModel, hparams: Mapping[str, Any]
) -> bool:
    """Return whether the stage trains a network other than `loaded`."""
    defaults = registry.get_method(recipe.method).default_hparams()
    same_hparams = {**defaults, **hparams} == {**defaults, **loaded.hparams}
    return bool(stage.reinit) or loaded.method != recipe.method or not same_hparams


def _rebuild(
    recipe: Recipe, run: StageRun, loaded: LoadedModel, hparams: Mapping[str, Any]
) -> LoadedModel:
    """Return the stage's network with the weights of `loaded`, pruned or partly reinitialized."""
    stage, method = run.stage, registry.get_method(recipe.method)
    target = _build(method, recipe.seed + run.index, loaded.form, hparams)
    reinit = _match_globs(target, stage.reinit)
    if stage.prune is not None:
        net = prune_channels(loaded.net, target, stage.prune.criterion)
    else:
        net = nnx.clone(target)
        _check_shapes(
            dict(named_parameters(loaded.net)), dict(named_parameters(target)), reinit, run
        )
        _copy_weights(loaded.net, net, set(dict(named_parameters(net))) - reinit)
    _copy_weights(target, net, reinit)
    return LoadedModel(method=recipe.method, net=net, form=loaded.form, hparams=hparams)


def _build(method: Method, seed: int, form: Form, hparams: Mapping[str, Any]) -> nnx.Module:
    net = method.build(seed=seed, **hparams)
    return deploy(net) if form == "deploy" else net


def _copy_weights(src: nnx.Module, dst: nnx.Module, paths: set[str]) -> None:
    variables = dict(named_parameters(src))
    for path, leaf in named_parameters(dst):
        if path in paths:
            leaf.set_value(variables[path].get_value())


def _match_globs(net: nnx.Module, globs: Sequence[str]) -> set[str]:
    """Return the parameters that match a glob; each glob must match at least one."""
    paths = [path for path, _ in named_parameters(net)]
    unmatched = [glob for glob in globs if not any(fnmatchcase(path, glob) for path in paths)]
    if unmatched:
        raise RecipeError(
            f"reinit: {', '.join(map(repr, unmatched))} match no parameter",
            rule="reinit contains globs of parameter paths of the network",
            location=", ".join(paths[:12]),
            remedy="correct or remove the glob",
        )
    return {path for path in paths if any(fnmatchcase(path, glob) for glob in globs)}


def _check_shapes(source: Variables, target: Variables, reinit: set[str], run: StageRun) -> None:
    """Check that source and target have the same parameters and shapes, except for `reinit`."""
    shapes = {path: (leaf.get_value().shape, source.get(path)) for path, leaf in target.items()}
    problems = [
        f"{path} is missing"
        if initial is None
        else f"{path} has shape {tuple(initial.get_value().shape)}, expected {tuple(shape)}"
        for path, (shape, initial) in shapes.items()
        if path not in reinit and (initial is None or initial.get_value().shape != shape)
    ]
    problems += [f"{path} is unexpected" for path in source if path not in target]
    if problems:
        raise RecipeError(
            f"the initial weights of {run.name!r} have {bullet_list(problems[:12])}",
            rule="the initial weights of a stage have the parameters and shapes of its network",
            remedy="reduce their channels with prune, or list parameters to initialize in reinit",
        )


def _apply_lora(loaded: LoadedModel, lora: LoRA | None, seed: int) -> LoadedModel:
    """Return the model with the adapters of the stage, and no others."""
    if loaded.lora == lora:
        return loaded
    loaded = loaded.without_lora()
    return loaded if lora is None else loaded.with_lora(lora, seed)
