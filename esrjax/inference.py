"""Models, which are methods and ensembles with weights: loading and upscaling."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array

from esrjax import hub, registry
from esrjax.data.image_arrays import LRArray, convert_like
from esrjax.errors import InvalidArgument, NotFound
from esrjax.evaluation import upscale
from esrjax.evaluation.fuse_images import BlendFn, adaptive_blend, weighted_blend
from esrjax.evaluation.upscale import (
    ImageSize,
    Upscaler,
    Windows,
    check_strategy,
    check_windows,
)
from esrjax.loading import HParams, Origin, identify_method, load_network, weights_origin
from esrjax.method import Ensemble, Method
from esrjax.nn import checkpoint_io, masking
from esrjax.nn.checkpoint_io import Checkpoint
from esrjax.nn.compilation import call_network, jit
from esrjax.nn.reparam import deploy

CheckpointPaths = Mapping[str, str | Path]  # name of a method -> its checkpoint


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A method with weights, in deploy form.

    `model(lr)` upscales an image, (h, w, 3) -> (scale·h, scale·w, 3) uint8.

    Attributes:
        name: Of the method in the registry.
        method: The method.
        net: The network in deploy form.
        hparams: The network's hyperparameters; unset ones have their defaults.
        checkpoint: Where the weights come from.
    """

    name: str
    method: Method
    net: nnx.Module
    hparams: HParams = field(default_factory=dict[str, Any])
    checkpoint: Checkpoint

    @property
    def scale(self) -> int:
        """HR size / LR size."""
        return self.method.scale_of(self.hparams)

    @functools.cached_property
    def origin(self) -> Origin:
        """Whose weights it has: "official", "shipped" or "own" (`weights_origin`)."""
        return weights_origin(self.method, self.checkpoint)

    @property
    def summary(self) -> dict[str, str]:
        """Method, scale, number of parameters, weights and their file, as texts."""
        num_params = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.net, nnx.Param)))
        head = {"method": self.name, "scale": f"x{self.scale}", "parameters": f"{num_params:,}"}
        return {**head, "weights": self.origin, "file": self.checkpoint.path.name}

    def __repr__(self) -> str:
        """Return one line, for instance in a shell."""
        texts = [f"{key}: {value}" for key, value in self.summary.items()]
        return f"<Model {', '.join(texts)}>"

    def _repr_html_(self) -> str:
        """Return a table, for notebooks."""
        rows = "".join(
            f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>"
            for key, value in self.summary.items()
        )
        return f"<table>{rows}</table>"

    def __call__(self, lr: Any) -> Any:
        """Upscale an image, or a batch of one size, in a single pass at its exact size.

        Args:
            lr: (h, w, 3) or (n, h, w, 3), RGB: uint8, or floats in [0, 1], which the network
                receives unrounded. A NumPy or JAX array, a PIL image of mode RGB, or a PyTorch
                tensor on the CPU (`esrjax.data.image_arrays` has the contract).

        Returns:
            (scale·h, scale·w, 3) or (n, scale·h, scale·w, 3) uint8: of PIL for a PIL image, of JAX
            for a JAX array, else of NumPy.

        Raises:
            InvalidArgument: If `lr` is anything else: grey, RGBA, channels first, uint16, bool.
            ImageTooSmall: If a side is shorter than `method.min_side`.
            InvalidOutput: If the network's output contains NaN.
        """
        return convert_like(upscale.uint8_upscaler(self.upscaler())(lr), lr)

    def upscaler(
        self,
        tile_size: ImageSize | None = None,
        *,
        pad_multiple: int | None = None,
        self_ensemble: bool = False,
        windows: Windows | None = None,
    ) -> Upscaler:
        """Return a function from LR images, as of `__call__`, to SR images as floats in [0, 1].

        Its results are NumPy arrays, float32; floats are not clipped.

        Args:
            tile_size: (h, w), LR pixels: process images in tiles of this size, with the result of a
                single pass. None for a single pass; so is a method whose receptive field is the
                whole image.
            pad_multiple: Pad LR symmetrically to the next larger multiple, LR pixels.
            self_ensemble: Average over the eight flips and rotations.
            windows: Side of windows, LR pixels -> weight; average over these ways to cut an image
                into windows.

        Raises:
            InvalidArgument: If the method cannot be run in these windows, or a size is no positive
                integer.
        """
        check_strategy(tile_size, pad_multiple, self_ensemble, windows)
        check_windows(self.name, self.method.min_side, windows or {})
        upscaler = upscale.single_pass(self.forward, self.method.data_range)
        if tile_size is not None and not self.method.needs_full_image:
            upscaler = self._tiled(tile_size, upscaler)
        composed = upscale.compose_upscaler(
            upscaler,
            self.scale,
            self_ensemble=self_ensemble,
            windows=windows,
            pad_multiple=pad_multiple,
        )
        return upscale.checked_upscaler(composed, self.name, self.method.min_side)

    def _tiled(self, tile_size: ImageSize, single_pass: Upscaler) -> Upscaler:
        """Return a tiled upscaler; `single_pass` where the receptive field is the whole image."""

        def choose(lr: LRArray) -> Upscaler:
            # One tile needs no overlap, and saves measuring the receptive field.
            fits = upscale.fits_in_tile(lr, tile_size)
            radius = 0 if fits else self.receptive_field_radius
            if radius is None:
                return single_pass
            tiling = upscale.make_tiling(lr, tile_size, radius)
            data_range = self.method.data_range
            return upscale.tiled_upscaler(self.forward, tiling, data_range, self.scale)

        return upscale.upscaler_by_image(choose)

    @functools.cached_property
    def receptive_field_radius(self) -> int | None:
        """The radius of the receptive field, LR pixels; None if it is the whole image."""
        return masking.receptive_field_radius(self.forward, self.scale)

    @functools.cached_property
    def forward(self) -> Callable[..., Array]:
        """The network, (n, h, w, 3) -> (n, scale·h, scale·w, 3), compiled for every size.

        Input and output are floats in [0, `method.data_range`]. For an image that is padded, the
        second argument is a mask (h, w), 1 on the image and 0 elsewhere.
        """
        graphdef, state = nnx.split(self.net)

        @jit
        def run(state: Any, lr: Array, mask: Array | None) -> Array:
            with nullcontext() if mask is None else masking.valid_region(mask):
                return call_network(nnx.merge(graphdef, state), lr)

        return lambda lr, mask=None: run(state, lr, mask)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EnsembleModel:
    """An ensemble with the weights of its members, called on images like a `Model`.

    Attributes:
        name: Of the ensemble in the registry.
        ensemble: How its members are run and blended.
        members: Name of a method -> its model.
    """

    name: str
    ensemble: Ensemble
    members: Mapping[str, Model]

    @property
    def scale(self) -> int:
        """HR size / LR size."""
        return self.ensemble.scale

    def __repr__(self) -> str:
        """Return one line, for instance in a shell."""
        return f"<EnsembleModel {self.name}: {', '.join(map(repr, self.members.values()))}>"

    def __call__(self, lr: Any) -> Any:
        """Upscale an image, (h, w, 3) -> (scale·h, scale·w, 3) uint8, as `Model` does."""
        return convert_like(upscale.uint8_upscaler(self.upscaler())(lr), lr)

    def upscaler(
        self,
        tile_size: ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: Windows | None = None,
    ) -> Upscaler:
        """Return a function from LR images to SR images as floats in [0, 1].

        Args:
            tile_size: (h, w) of tiles, LR pixels, for members that support exact tiling.
            self_ensemble: Run every member with the x8 self-ensemble; members that the ensemble
                runs so do in any case.
            windows: For members without windows of their own, as in `Model.upscaler`.
        """
        check_strategy(tile_size, None, self_ensemble, windows)
        upscalers = self.member_upscalers(tile_size, self_ensemble=self_ensemble, windows=windows)
        return upscale.checked_upscaler(
            lambda lr: self.blend([upscaler(lr) for upscaler in upscalers.values()])
        )

    def member_upscalers(
        self,
        tile_size: ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: Windows | None = None,
    ) -> dict[str, Upscaler]:
        """Return the upscaler of every member, by name; arguments as in `upscaler`."""
        return {
            name: self.members[name].upscaler(
                tile_size,
                self_ensemble=self_ensemble or member.self_ensemble,
                windows=member.windows or windows,
                pad_multiple=member.pad_multiple,
            )
            for name, member in self.ensemble.members.items()
        }

    @property
    def blend(self) -> BlendFn:
        """The function that blends the outputs of the members, given in their order."""
        if self.ensemble.fusion == "adaptive":
            return adaptive_blend
        return weighted_blend([m.weight for m in self.ensemble.members.values()])


# --- loading -------------------------------------------------------------------------------------


def open_model(
    name: str | None,
    checkpoint: str | Path | CheckpointPaths | None = None,
    hparams: HParams | None = None,
) -> Model | EnsembleModel:
    """Load a method or an ensemble with its weights.

    Args:
        name: Of a registered method or ensemble; None for the method of the checkpoint, as
            `identify_method` finds it.
        checkpoint: As in `open_method`. For an ensemble a mapping from members to checkpoints,
            `{"span": "span.pth"}`; other members use the default weights.
        hparams: As in `open_method`. For an ensemble with the member's name in front,
            `{"span.channels": 48}`.

    Raises:
        NotFound: If a method has no default weights and no checkpoint is given.
        InvalidArgument: If members do not fit together, or an argument belongs to no member.
    """
    if name is None or isinstance(checkpoint, list | tuple):
        return open_method(name, _only_checkpoint(checkpoint), hparams)
    entry = registry.get_entry(name)
    checkpoints = checkpoint if isinstance(checkpoint, Mapping) else {name: checkpoint}
    networks = [name] if isinstance(entry, Method) else [name, *entry.members]
    if unknown := [key for key in checkpoints if key not in networks]:
        raise InvalidArgument(
            f"A checkpoint of {unknown[0]!r} is given for {name!r}",
            rule=f"checkpoints are those of {', '.join(networks)}",
            remedy="correct the name, or leave the checkpoint out",
        )
    if isinstance(entry, Method):
        return open_method(name, checkpoints.get(name), hparams)
    check_ensemble(name, entry, checkpoints, hparams)
    members = {
        member: open_method(member, checkpoints.get(member), member_hparams(member, hparams))
        for member in entry.members
    }
    _check_scales(name, entry, {member: model.scale for member, model in members.items()})
    return EnsembleModel(name=name, ensemble=entry, members=members)


def open_method(
    name: str | None, checkpoint: str | Path | None = None, hparams: HParams | None = None
) -> Model:
    """Load a method with its weights, in deploy form.

    Args:
        name: Of a registered method; ensembles are loaded by `open_model`. None for the method of
            the checkpoint, as `identify_method` finds it.
        checkpoint: A file (.pth, .safetensors), a run directory, or the key of published weights
            (`Method.weights`) that are downloaded. None for the weights that the method ships, or
            else the first published ones that are downloaded.
        hparams: The network's hyperparameters; those of the checkpoint's metadata if None.

    Raises:
        NotFound: If there are no default weights and no checkpoint is given.
    """
    if name is None:
        file = checkpoint_io.read_checkpoint(_only_checkpoint(checkpoint))
        return _load_model(identify_method(file, hparams), file, hparams)
    method = registry.get_method(name)
    path = _default_checkpoint(name, method) if checkpoint is None else checkpoint
    weights = method.weights.get(str(checkpoint))
    if weights is not None and not Path(path).exists():
        path = hub.find_local(weights)
        if path is None:
            problem = f"The published weights {str(checkpoint)!r} of {name!r} are not downloaded"
            raise _no_weights(problem, name, method)
    return _load_model(name, checkpoint_io.read_checkpoint(path), hparams)


def _only_checkpoint(checkpoint: str | Path | CheckpointPaths | None) -> str | Path:
    if isinstance(checkpoint, str | Path):
        return checkpoint
    raise InvalidArgument(
        f"One checkpoint is needed, not {checkpoint!r}",
        rule="a checkpoint is a file or a run directory; for an ensemble, a mapping of them",
        remedy="give one checkpoint; without one, name the method",
    )


def _load_model(name: str, checkpoint: Checkpoint, hparams: HParams | None) -> Model:
    method = registry.get_method(name)
    loaded = load_network(name, method, checkpoint, hparams)
    return Model(
        name=name,
        method=method,
        net=deploy(loaded.net),
        hparams=loaded.hparams,
        checkpoint=loaded.checkpoint,
    )


def member_hparams(member: str, hparams: HParams | None) -> HParams:
    """Return the hparams of one member: `{"span.channels": 48}` -> `{"channels": 48}`."""
    prefix = f"{member}."
    return {k.removeprefix(prefix): v for k, v in (hparams or {}).items() if k.startswith(prefix)}


def check_ensemble(
    name: str, ensemble: Ensemble, checkpoints: Mapping[str, Any], hparams: HParams | None
) -> None:
    """Raise `InvalidArgument` unless the members share the scale and every argument is a member's.

    Args:
        name: Of the ensemble.
        ensemble: The ensemble.
        checkpoints: By member; a checkpoint for the ensemble itself is an error.
        hparams: With the member's name in front.
    """
    scales: dict[str, int] = {}
    for member in ensemble.members:
        method, arguments = registry.get_method(member), member_hparams(member, hparams)
        method.check_hparams(arguments)
        scales[member] = method.scale_of(arguments)
    _check_scales(name, ensemble, scales)
    num_hparams = sum(len(member_hparams(member, hparams)) for member in ensemble.members)
    if checkpoints.get(name) is not None or num_hparams < len(hparams or {}):
        first = next(iter(ensemble.members))
        raise InvalidArgument(
            f"{name!r} is an ensemble and has no weights or hparams of its own",
            rule=f"checkpoints and hparams belong to its members: {', '.join(ensemble.members)}",
            remedy=f"give a checkpoint as {first}=FILE, an hparam as {first}.NAME=VALUE",
        )


def _check_scales(name: str, ensemble: Ensemble, scales: Mapping[str, int]) -> None:
    """Raise `InvalidArgument` unless there are members, all with the scale of the ensemble."""
    if not scales or {*scales.values()} != {ensemble.scale}:
        members = ", ".join(f"{member} (x{scale})" for member, scale in scales.items()) or "none"
        raise InvalidArgument(
            f"the members of {name!r} cannot be combined: {members}",
            rule=f"an ensemble has at least one member, and all have its scale, {ensemble.scale}",
            remedy="correct the members, or the scale of the ensemble or of a member",
        )


def _default_checkpoint(name: str, method: Method) -> Path:
    """Return the weights that the method ships, else the first published ones on this machine."""
    if path := hub.shipped_path(method):
        return path
    for weights in method.weights.values():
        if path := hub.find_local(weights):
            return path
    raise _no_weights(f"No weights for {name!r} on this machine", name, method)


def _no_weights(problem: str, name: str, method: Method) -> NotFound:
    published = [
        f"{key} ({weights.url or 'no URL'}, sha256 {weights.sha256[:12]}…)"
        for key, weights in method.weights.items()
    ]
    is_downloadable = any(weights.url for weights in method.weights.values())
    download = f"download them with `esrjax weights get {name}`, or " if is_downloadable else ""
    return NotFound(
        problem,
        rule=f"published weights of {name}: {', '.join(published) or 'none'}",
        remedy=f"{download}give a file with --checkpoint",
    )
