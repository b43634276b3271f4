"""The network with which a stage begins: new, left by another stage, or out of a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from flax import nnx

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.network import archive
from esrjax.network.lora import adapt, merge
from esrjax.network.prune import shrink
from esrjax.network.reparam import deploy
from esrjax.network.weights import leaves
from esrjax.recognition import recognise
from esrjax.schema import listing
from esrjax.training.files import find_weights
from esrjax.training.recipe import LoRA, Recipe, Run, Stage, Start

Weights = dict[str, nnx.Variable[Any]]


class BadStart(UserError):
    """Weights that a stage cannot start from as it says."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A network with what is known of it. lora: the adapters that are on it, if any are."""

    method: str
    net: nnx.Module
    form: Form
    sizes: Mapping[str, Any]
    lora: LoRA | None = None

    def merged(self) -> "Held":
        """Without adapters, which are merged into the kernels."""
        return self if self.lora is None else replace(self, net=merge(self.net), lora=None)

    def adapted(self, lora: LoRA, seed: int = 0) -> "Held":
        """With adapters on its convolutions, of which one factor is drawn and the other 0."""
        rngs = nnx.Rngs(seed)
        net = adapt(self.net, lora.where, rank=lora.rank, alpha=lora.alpha, rngs=rngs)
        return replace(self, net=net, lora=lora)

    def deployed(self) -> "Held":
        """In deploy form."""
        if self.form == "deploy":
            return self
        return replace(self, net=deploy(self.net), form="deploy", lora=None)


Left = Callable[[str | None], Held]  # what the stage of that name, or the one before, has left


def begin(recipe: Recipe, run: Run, left: Left) -> Held:
    """The network that `run` trains, before its first step."""
    stage, sizes = run.stage, recipe.sizes_at(run)
    held = source(recipe, run, sizes, left)
    if stage.form == "deploy":
        held = held.deployed()
    if _changes(recipe, stage, held, sizes):
        held = _transplanted(recipe, run, held.merged(), sizes)
    return _adapted(held, stage.lora, recipe.seed + run.index)


def source(recipe: Recipe, run: Run, sizes: Mapping[str, Any], left: Left) -> Held:
    """What `run` starts from, as it is."""
    origin = run.stage.origin
    if origin == "new" or (origin == "previous" and run.index == 0):
        net = registry.plain(recipe.method).build(seed=recipe.seed + run.index, **sizes)
        return Held(method=recipe.method, net=net, form="train", sizes=sizes)
    if isinstance(origin, Start) and origin.file is not None:
        return opened(origin.method or recipe.method, origin.file, origin.sizes)
    return left(origin.stage if isinstance(origin, Start) else None)


def opened(name: str, file: str, sizes: Mapping[str, Any]) -> Held:
    """The network of the method `name` that a file holds, in the form that it fills."""
    found = recognise(name, registry.plain(name), archive.read(find_weights(file)), sizes)
    return Held(method=name, net=found.net, form=found.form, sizes=found.sizes)


def _changes(recipe: Recipe, stage: Stage, held: Held, sizes: Mapping[str, Any]) -> bool:
    """Whether the stage trains another network than `held`."""
    defaults = registry.plain(recipe.method).sizes()
    same = {**defaults, **sizes} == {**defaults, **held.sizes}
    return bool(stage.fresh) or held.method != recipe.method or not same


def _transplanted(recipe: Recipe, run: Run, held: Held, sizes: Mapping[str, Any]) -> Held:
    """A network of the stage's sizes with the weights of `held`, as `prune` and `fresh` say."""
    stage, method = run.stage, registry.plain(recipe.method)
    target = _built(method, recipe.seed + run.index, held.form, sizes)
    fresh = _matching(target, stage.fresh)
    if stage.prune is not None:
        filled = shrink(held.net, target, stage.prune.keep)
    else:
        filled = nnx.clone(target)
        _require_fit(dict(leaves(held.net)), dict(leaves(target)), fresh, run)
        _copy(held.net, filled, set(dict(leaves(filled))) - fresh)
    _copy(target, filled, fresh)
    return Held(method=recipe.method, net=filled, form=held.form, sizes=sizes)


def _built(method: Method, seed: int, form: Form, sizes: Mapping[str, Any]) -> nnx.Module:
    net = method.build(seed=seed, **sizes)
    return deploy(net) if form == "deploy" else net


def _copy(giver: nnx.Module, taker: nnx.Module, paths: set[str]) -> None:
    given = dict(leaves(giver))
    for path, leaf in leaves(taker):
        if path in paths:
            leaf.set_value(given[path].get_value())


def _matching(net: nnx.Module, globs: Sequence[str]) -> set[str]:
    """The weights that match a glob; each glob must match one."""
    paths = [path for path, _ in leaves(net)]
    idle = [glob for glob in globs if not any(fnmatchcase(path, glob) for path in paths)]
    if idle:
        raise BadStart(
            f"fresh: {', '.join(map(repr, idle))} match no weight",
            rule="fresh names weights of the network by their paths",
            place=", ".join(paths[:12]),
            remedy="correct the glob, or drop it",
        )
    return {path for path in paths if any(fnmatchcase(path, glob) for glob in globs)}


def _require_fit(theirs: Weights, ours: Weights, fresh: set[str], run: Run) -> None:
    """Every weight but the fresh ones is there, in the same shape, and none is left over."""
    shapes = {path: (leaf.get_value().shape, theirs.get(path)) for path, leaf in ours.items()}
    problems = [
        f"{path} is not in the start"
        if given is None
        else f"{path} is {tuple(given.get_value().shape)} in the start and {tuple(shape)} here"
        for path, (shape, given) in shapes.items()
        if path not in fresh and (given is None or given.get_value().shape != shape)
    ]
    problems += [f"{path} has no place here" for path in theirs if path not in ours]
    if problems:
        raise BadStart(
            f"the start of {run.name!r} has {listing(problems[:12])}",
            rule="a stage starts from weights of its own shapes",
            remedy="narrow them with prune, or name with fresh what is to be initialised anew",
        )


def _adapted(held: Held, lora: LoRA | None, seed: int) -> Held:
    """With the adapters that the stage asks for, and no others."""
    if held.lora == lora:
        return held
    held = held.merged()
    return held if lora is None else held.adapted(lora, seed)
