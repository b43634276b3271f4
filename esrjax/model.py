"""A method with weights: what users call on pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Ensemble, Method
from esrjax.network import archive, canvas, reach
from esrjax.network.archive import Checkpoint
from esrjax.network.reparam import deploy
from esrjax.pictures import upscale
from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale import Upscaler
from esrjax.recognition import Sizes, recognise

Files = Mapping[str, str | Path]  # name of a method -> its checkpoint


class NoWeights(UserError):
    """A method without shipped weights, and no checkpoint was given."""


class PictureTooSmall(UserError):
    """A picture smaller than the method accepts."""


class BadEnsemble(UserError):
    """An ensemble whose members cannot be run together, or not as asked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A method with weights, deployed. Called on a picture it gives the larger picture.

    net: deploy form. sizes: those of the network. checkpoint: where the weights come from.
    """

    name: str
    method: Method
    net: nnx.Module
    sizes: Sizes = field(default_factory=dict[str, Any])
    checkpoint: Checkpoint

    @property
    def scale(self) -> int:
        """How many times larger the picture becomes."""
        return self.method.scale

    def __call__(self, picture: Pixels) -> Pixels:
        """`(h, w, 3)` bytes -> `(s·h, s·w, 3)` bytes, at exact size."""
        return upscale.to_8_bits(self.upscaler())(picture)

    def upscaler(self, tile: upscale.Size | None = None, self_ensemble: bool = False) -> Upscaler:
        """Pictures to floats, white at 1; with `tile`, in tiles of that size where exact."""
        runs = upscale.whole(self.forward, self.method.data_range)
        if tile is not None and not self.method.whole_picture:
            runs = self._tiled(tile, runs)
        return self._checked(upscale.self_ensemble(runs) if self_ensemble else runs)

    def _tiled(self, tile: upscale.Size, whole: Upscaler) -> Upscaler:
        """In tiles of that size, widened where it is less than two reaches; else `whole`."""

        def runs(picture: Pixels) -> upscale.Floats:
            reach = 0 if upscale.fits(picture, tile) else self.reach
            if reach is None:
                return whole(picture)
            canvas = upscale.canvas(picture, tile, reach)
            one = upscale.tiled(self.masked, canvas, self.method.data_range, self.method.scale)
            return one(picture)

        return runs

    def _checked(self, upscaler: Upscaler) -> Upscaler:
        def check(picture: Pixels) -> upscale.Floats:
            require_side(self.name, self.method, picture.shape[:2])
            return upscaler(picture)

        return check

    @functools.cached_property
    def reach(self) -> int | None:
        """How far a pixel reaches, LR pixels; None where it reaches all."""
        return reach.reach(self.forward, self.method.scale)

    @functools.cached_property
    def forward(self) -> Callable[[Array], Array]:
        """`(n, h, w, 3) -> (n, s·h, s·w, 3)`, white at `method.data_range`; compiled per size."""
        graph, state = nnx.split(self.net)
        run = jax.jit(lambda state, lr: nnx.merge(graph, state)(lr))  # pyright: ignore[reportCallIssue] # networks are callable
        return lambda lr: run(state, lr)

    @functools.cached_property
    def masked(self) -> Callable[[Array, Array], Array]:
        """The same for a picture where `mask (h, w)` is 1 on a larger canvas."""
        graph, state = nnx.split(self.net)

        @jax.jit
        def run(state: Any, lr: Array, mask: Array) -> Array:
            with canvas.picture(mask):
                return nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable

        return lambda lr, mask: run(state, lr, mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """An ensemble whose members have their weights; called on pictures like a `Model`."""

    name: str
    ensemble: Ensemble
    members: Mapping[str, Model]

    @property
    def scale(self) -> int:
        """How many times larger the picture becomes."""
        return self.ensemble.scale

    def __call__(self, picture: Pixels) -> Pixels:
        """`(h, w, 3)` bytes -> `(s·h, s·w, 3)` bytes."""
        return upscale.to_8_bits(self.upscaler())(picture)

    def upscaler(self, tile: upscale.Size | None = None, self_ensemble: bool = False) -> Upscaler:
        """Pictures to floats: the weighted mean of what the members make of them."""
        how = self.ensemble.members
        runs = [
            self.members[name].upscaler(tile, self_ensemble or member.self_ensemble)
            for name, member in how.items()
        ]
        return upscale.fused(runs, [member.weight for member in how.values()])


# --- from a name and a file --------------------------------------------------------------------


def open_model(
    name: str, checkpoint: str | Path | Files | None = None, sizes: Sizes | None = None
) -> Model | Fusion:
    """The method or ensemble `name` with the weights of `checkpoint`, or those it ships.

    The members of an ensemble have a checkpoint each: `{"span": "span.pth"}`.
    """
    method = registry.method(name)
    files = checkpoint if isinstance(checkpoint, Mapping) else {name: checkpoint}
    if isinstance(method, Method):
        return open_method(name, files.get(name), sizes)
    require_ensemble(name, method, files, sizes)
    members = {member: open_method(member, files.get(member)) for member in method.members}
    return Fusion(name=name, ensemble=method, members=members)


def open_method(
    name: str, checkpoint: str | Path | None = None, sizes: Sizes | None = None
) -> Model:
    """The one method `name` with the weights of `checkpoint`, or those it ships."""
    method = registry.plain(name)
    path = _shipped(name, method) if checkpoint is None else checkpoint
    found = recognise(name, method, archive.read(path), sizes)
    return Model(
        name=name,
        method=method,
        net=deploy(found.net),
        sizes=found.sizes,
        checkpoint=found.checkpoint,
    )


def require_side(name: str, method: Method, shape: tuple[int, ...]) -> None:
    """Raise `PictureTooSmall` unless the method accepts LR pictures of `shape` (h, w)."""
    if min(shape) < method.min_side:
        raise PictureTooSmall(
            f"the picture is {shape[1]} x {shape[0]} pixels",
            rule=f"{name} accepts pictures of at least {method.min_side} pixels a side",
            remedy="give a larger picture, or use another method",
        )


def _shipped(name: str, method: Method) -> Path:
    if method.pretrained is None:
        raise _no_weights(name, method)
    package, _, file = method.pretrained.partition(":")
    with resources.as_file(resources.files(package) / file) as path:
        return path


def _no_weights(name: str, method: Method) -> NoWeights:
    published = ", ".join(
        f"{key} ({weights.url or 'no address'}, sha256 {weights.sha256[:12]}…)"
        for key, weights in method.weights.items()
    )
    return NoWeights(
        f"{name} ships no weights",
        rule=f"published for it: {published or 'none'}",
        remedy="give a file with --checkpoint",
    )


def require_ensemble(
    name: str, ensemble: Ensemble, files: Mapping[str, Any], sizes: Sizes | None
) -> None:
    """Members that exist and share the scale, with weights and sizes of their own."""
    members = ", ".join(ensemble.members) or "none"
    scales = {registry.plain(member).scale for member in ensemble.members} | {ensemble.scale}
    if len(scales) > 1 or not ensemble.members:
        raise BadEnsemble(
            f"the members of {name!r} cannot be fused: {members}",
            rule=f"there is at least one, and all make pictures {ensemble.scale} times larger",
            remedy="correct the ensemble's members or its scale",
        )
    if files.get(name) is not None or sizes:
        raise BadEnsemble(
            f"{name!r} is an ensemble and has no weights or sizes of its own",
            rule=f"checkpoints belong to its members: {members}",
            remedy=f"give NAME=FILE, for instance {next(iter(ensemble.members))}=FILE",
        )
