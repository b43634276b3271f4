"""What a team hands in: the one interface every plugin implements."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from esrjax.errors import UserError

if TYPE_CHECKING:
    from flax import nnx

Form = Literal["train", "deploy"]
Fuse = Literal["mean", "adaptive"]


class BadSize(UserError):
    """A size that the network does not take."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published PyTorch checkpoint.

    sha256: of the file. form: the form of the network that the tensors belong to.
    sizes: the arguments of `Method.network` that they need. root: the key under which the file
    keeps them, for instance `params_ema`; empty where the file is the state dict itself. beside:
    further keys under which it keeps a set of the same names, such as the plain weights `params`
    beside their moving average.
    """

    sha256: str
    url: str | None = None
    form: Form = "deploy"
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    root: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """One answer to the challenge.

    network: `network(rngs=..., **sizes)` builds the train form. Called on LR images `(N, h, w, 3)`
        it gives SR images `(N, s·h, s·w, 3)`, both with white at `data_range`; it pads itself
        where its paper does. Pictures of further scales are the outputs of its parts called
        `head_NAME` (`esrjax.network.taps.heads`).
    min_side: smallest LR side it accepts, pixels. whole_picture: its output depends on statistics
        or windows of the whole picture, so that tiles change the result.
    weights: published checkpoints by name. pretrained: weights that the plugin ships, as
        `package:file.safetensors`.
    torch_names: torch key -> Flax path, for keys that are not the path itself
        (`esrjax.network.naming`).
    unused: globs of torch keys that have no place in the network, each with its reason.
    buffers: the constants that the official class keeps among its tensors, by their paths in a
        network; `unused` when read, they are written for PyTorch, which asks for them.
    uncounted: globs of module paths that the organisers' counter misses, each with its reason.
    counted: globs of those that it counts though the output does not depend on them, each with its
        reason.
    reported: what the organisers measured: params, macs, activations, convs, psnr_valid, ...
    card: what it is, for people (usually the module's docstring). small: sizes with fewer of the
        same blocks, at which laws are asked where the submission's take long to compile.
    """

    network: Callable[..., nnx.Module]
    team: str
    paper: str
    license: str
    scale: int = 4
    data_range: float = 1.0
    min_side: int = 1
    whole_picture: bool = False
    weights: Mapping[str, Weights] = field(default_factory=dict[str, Weights])
    pretrained: str | None = None
    torch_names: Mapping[str, str] = field(default_factory=dict[str, str])
    unused: Mapping[str, str] = field(default_factory=dict[str, str])
    buffers: Callable[[nnx.Module], Mapping[str, Any]] | None = None
    uncounted: Mapping[str, str] = field(default_factory=dict[str, str])
    counted: Mapping[str, str] = field(default_factory=dict[str, str])
    reported: Mapping[str, float] = field(default_factory=dict[str, float])
    card: str | None = None
    small: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def build(self, *, seed: int = 0, **sizes: Any) -> nnx.Module:
        """The train form, freshly initialised from `seed`."""
        import jax
        from flax import nnx

        self.require(sizes)
        with jax.ensure_compile_time_eval():  # keys are known even where the network is abstract
            rngs = nnx.Rngs(seed)
        return self.network(rngs=rngs, **sizes)

    def sizes(self) -> dict[str, Any]:
        """The sizes that the network takes, with their defaults."""
        network = self.network
        # Asked of the class, inspect sees nnx's metaclass, whose signature is (*args, **kwargs).
        function = network.__init__ if inspect.isclass(network) else network
        parameters = inspect.signature(function).parameters
        return {
            name: parameter.default
            for name, parameter in parameters.items()
            if name not in ("self", "rngs")
        }

    def tiny(self) -> Mapping[str, Any]:
        """Sizes to test with: `small`, those of the published weights `tiny`, or the defaults."""
        if self.small or "tiny" not in self.weights:
            return self.small
        return self.weights["tiny"].sizes

    def require(self, sizes: Mapping[str, Any]) -> None:
        """Raise `BadSize` unless the network takes every one of `sizes`."""
        known = self.sizes()
        strange = sorted(set(sizes) - set(known))
        if strange:
            raise BadSize(
                f"no such size: {', '.join(strange)}",
                rule="a size is an argument of the method's network: "
                + ", ".join(f"{name}={value!r}" for name, value in known.items()),
                remedy="use one of these names, or leave the size out",
            )


@dataclass(frozen=True, kw_only=True)
class Member:
    """How an ensemble runs one of its methods: over the eight flips and turns, or just once.

    weight: its share of a mean. mirrored: LR is mirrored below and to the right, until its sides
    are the next larger multiples of this, and the result cut back. windows: LR is cut into windows
    of these sides, pixels; what comes of each way to cut is averaged with these weights.
    """

    self_ensemble: bool = False
    weight: float = 1.0
    mirrored: int | None = None
    windows: Mapping[int, float] = field(default_factory=dict[int, float])


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several methods whose pictures are fused into one.

    members: name of a registered method -> how it is run. All share one scale.
    fusion: "mean", weighted, of floats; "adaptive", of bytes by their closeness to the plain mean,
        rounded down (`esrjax.pictures.upscale.fusion`).
    reported: its costs at 256x256 where somebody counted: params, macs.
    """

    members: Mapping[str, Member]
    team: str
    paper: str
    license: str
    scale: int = 4
    fusion: Fuse = "mean"
    reported: Mapping[str, float] = field(default_factory=dict[str, float])
    card: str | None = None
