"""The plugin interface: `Method` and what it consists of, `Ensemble` and `Member`; plain data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args

from esrjax.errors import InvalidArgument, UserError, error_summary, suggest

if TYPE_CHECKING:
    from flax import nnx

Form = Literal["train", "deploy"]  # with all branches, or with the branches fused
EnsembleFusion = Literal["mean", "adaptive"]
API_VERSION = 1  # of the plugin interface: `Method`, `Ensemble` and the checks that they must pass


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published PyTorch checkpoint.

    Attributes:
        sha256: SHA-256 of the file, in hex.
        tensors_sha256: `esrjax.nn.checkpoint_io.hash_tensors` of the tensors that the network
            takes, by which a conversion to another format is recognized; empty if unknown.
        url: Download URL of the file; None if it has none.
        form: Form of the network that the tensors belong to.
        hparams: Arguments of `Method.network` that the tensors need.
        state_dict_key: Key under which the file stores the state dict, for instance `params_ema`;
            empty if the file is the state dict itself.
        other_keys: Further keys under which it stores tensors of the same names, such as `params`,
            the weights without moving average.
    """

    sha256: str
    tensors_sha256: str = ""
    url: str | None = None
    form: Form = "deploy"
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state_dict_key: str = ""
    other_keys: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Modules that the organisers' counter treats differently, as glob patterns of their paths.

    Attributes:
        excluded: Patterns of modules that it misses, each with its reason.
        included: Patterns of modules that it counts though the output does not depend on them, each
            with its reason.
    """

    excluded: Mapping[str, str] = field(default_factory=dict[str, str])
    included: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Method:
    """One super-resolution method: a network, its published weights and its reported figures.

    Attributes:
        network: `network(rngs=..., **hparams)` builds the train form. Called on LR images
            `(N, h, w, 3)` it returns SR images `(N, s·h, s·w, 3)`, both with values in
            [0, data_range]; it pads its input itself where its paper does. Its argument `scale`, if
            it has one, is the upscaling factor `s` (`scale_of`). SR images of further scales are
            the outputs of submodules called `head_NAME` (`esrjax.nn.hooks.heads`).
        team: Name of the team or of the authors.
        paper: Title and address of the paper or report.
        license: License of the official code, by which the port is bound.
        scales: Upscaling factors `s` that the network supports, as values of its argument `scale`;
            the only one of a network without that argument.
        data_range: Largest value of an image at the network's input and output.
        min_side: Smallest LR side that the network accepts, in pixels.
        needs_full_image: Whether the output depends on statistics or windows of the whole image, so
            that tiling changes the result.
        weights: Published checkpoints by name.
        pretrained: Weights that the plugin ships, as `package:file.safetensors`.
        torch_names: Torch key -> Flax path, for keys that differ from the path
            (`esrjax.nn.state_dict`).
        unused_torch_keys: Glob patterns of torch keys without a parameter in the network, each with
            its reason.
        torch_buffers: Returns the constant buffers that the official class stores in its state
            dict, by their paths. They are ignored on reading (`unused_torch_keys`) and written on
            conversion to PyTorch, which loads strictly.
        cost_options: Differences between the organisers' counter and a complete count.
        reported: What the organisers measured: params, macs, activations, convs, psnr_valid, ...
        description: Text for people, usually the docstring of the plugin.
        test_hparams: Hyperparameters of a smaller network with the same blocks, for tests of
            methods that take long to compile.
        api: Version of the plugin interface that the plugin was written for, see `API_VERSION`.
    """

    network: Callable[..., nnx.Module]
    team: str
    paper: str
    license: str
    scales: tuple[int, ...] = (4,)
    data_range: float = 1.0
    min_side: int = 1
    needs_full_image: bool = False
    weights: Mapping[str, Weights] = field(default_factory=dict[str, Weights])
    pretrained: str | None = None
    torch_names: Mapping[str, str] = field(default_factory=dict[str, str])
    unused_torch_keys: Mapping[str, str] = field(default_factory=dict[str, str])
    torch_buffers: Callable[[nnx.Module], Mapping[str, Any]] | None = None
    cost_options: CostOptions = CostOptions()
    reported: Mapping[str, float] = field(default_factory=dict[str, float])
    description: str | None = None
    test_hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    api: int = 1

    def build(self, *, seed: int = 0, **hparams: Any) -> nnx.Module:
        """Build the train form with new weights.

        Args:
            seed: Of the initial weights.
            **hparams: Arguments of `network`.

        Raises:
            InvalidArgument: As `check_hparams`, or `network` raises an error for these arguments.
        """
        import jax
        from flax import nnx

        self.check_hparams(hparams)
        with jax.ensure_compile_time_eval():  # concrete keys, also under nnx.eval_shape
            rngs = nnx.Rngs(seed)
        try:
            return self.network(rngs=rngs, **hparams)
        except Exception as error:  # a constructor raises almost anything
            if not hparams or isinstance(error, UserError):
                raise
            values = " ".join(f"{key}={value!r}" for key, value in hparams.items())
            raise InvalidArgument(
                f"Cannot build the network with {values[:200]}: {error_summary(error)}",
                rule=f"the arguments of the method's network are {self._arguments}",
                remedy="correct the hyperparameters",
            ) from error

    def default_hparams(self) -> dict[str, Any]:
        """Return the arguments of `network` with their defaults."""
        network = self.network
        # The signature of an nnx class itself is that of its metaclass, (*args, **kwargs).
        constructor = network.__init__ if inspect.isclass(network) else network
        parameters = inspect.signature(constructor).parameters
        return {
            name: parameter.default
            for name, parameter in parameters.items()
            if name not in ("self", "rngs") and parameter.kind not in _VARIADIC
        }

    @property
    def _arguments(self) -> str:
        """`channels=32, scale=4`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.default_hparams().items())

    def scale_of(self, hparams: Mapping[str, Any]) -> int:
        """Return the upscaling factor of the network with these hyperparameters."""
        return {"scale": self.scales[0], **self.default_hparams(), **hparams}["scale"]

    def get_test_hparams(self) -> Mapping[str, Any]:
        """Return `test_hparams`; if empty, the hyperparameters of the published weights "tiny"."""
        if self.test_hparams or "tiny" not in self.weights:
            return self.test_hparams
        return self.weights["tiny"].hparams

    def known_hparams(self) -> list[Mapping[str, Any]]:
        """Return the hyperparameters that weights may have: defaults, published ones, for tests."""
        known: list[Mapping[str, Any]] = [{}]
        for hparams in (*(w.hparams for w in self.weights.values()), self.test_hparams):
            if hparams not in known:
                known.append(hparams)
        return known

    def check_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Raise `InvalidArgument` unless `network` has these arguments and supports the scale."""
        defaults = self.default_hparams()
        if unknown := sorted(set(hparams) - set(defaults)):
            raise InvalidArgument(
                f"Unknown hyperparameter: {', '.join(unknown)}",
                rule=f"the arguments of the method's network are {self._arguments}",
                remedy=suggest(unknown[0], defaults, "use one of these names, or leave it out"),
            )
        for name, value in hparams.items():
            if _is_other_type(value, defaults[name]):
                raise InvalidArgument(
                    f"Invalid hyperparameter: {name}={value!r}",
                    rule="a truth value, a number and a text do not stand for each other; the "
                    f"arguments of the method's network are {self._arguments}",
                    remedy=f"give a value of the type {type(defaults[name]).__name__}",
                )
        scale = self.scale_of(hparams)
        if type(scale) is not int or scale not in self.scales:  # True and 2.0 equal integers
            scales = " or ".join(map(str, self.scales))
            raise InvalidArgument(
                f"Unsupported scale: {scale!r}",
                rule=f"the method upscales by a factor of {scales} (Method.scales)",
                remedy=f"set the hyperparameter scale to {scales}, or choose another method",
            )


def _is_other_type(value: Any, default: Any) -> bool:
    """Return whether one is a truth value, a number or a text, and the other another of these.

    Python would compute with `True` as with 1. An integer may stand for a float.
    """
    types = (bool, (int, float), str)  # in this order: a bool is an int
    first, second = (next((t for t in types if isinstance(v, t)), None) for v in (value, default))
    return None not in (first, second) and first != second


@dataclass(frozen=True, kw_only=True)
class Member:
    """How an ensemble runs one of its methods.

    Attributes:
        self_ensemble: Whether its output is the x8 self-ensemble (mean over flips and rotations).
        weight: Weight of its output in a mean.
        pad_multiple: LR is padded by reflection below and to the right until its sides are
            multiples of this, and the output is cropped; None for no padding.
        windows: Side of LR windows in pixels -> weight. LR is split into windows of each side; the
            outputs of the splits are averaged with these weights. Empty for none.
    """

    self_ensemble: bool = False
    weight: float = 1.0
    pad_multiple: int | None = None
    windows: Mapping[int, float] = field(default_factory=dict[int, float])


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several methods whose outputs are fused into one image.

    Attributes:
        members: Name of a registered method -> how it is run. All have one scale.
        team: Name of the team or of the authors.
        paper: Title and address of the paper or report.
        license: License of the official code.
        scale: Upscaling factor.
        fusion: "mean" is the weighted mean of floats; "adaptive" weights uint8 images by their
            closeness to the plain mean and rounds down (`esrjax.evaluation.upscale`).
        reported: Its cost for a 256x256 image where somebody counted: params, macs.
        description: Text for people.
        api: Version of the plugin interface, see `Method.api`.
    """

    members: Mapping[str, Member]
    team: str
    paper: str
    license: str
    scale: int = 4
    fusion: EnsembleFusion = "mean"
    reported: Mapping[str, float] = field(default_factory=dict[str, float])
    description: str | None = None
    api: int = 1


# --- checks of what a plugin declares ------------------------------------------------------------

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # *args, **kwargs
# The types of fields by name, which mean the same in every class.
_FIELD_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("team", "paper", "license", "sha256", "state_dict_key"), (str,)),
    **dict.fromkeys(("description", "pretrained", "url"), (str, NoneType)),
    **dict.fromkeys(("weights", "hparams", "test_hparams", "reported", "members"), (Mapping,)),
    **dict.fromkeys(("torch_names", "unused_torch_keys", "windows"), (Mapping,)),
    **dict.fromkeys(("excluded", "included"), (Mapping,)),
    **dict.fromkeys(("scales", "other_keys"), (tuple,)),
    **dict.fromkeys(("api", "min_side", "scale"), (int,)),
    **dict.fromkeys(("data_range", "weight"), (int, float)),
    **dict.fromkeys(("needs_full_image", "self_ensemble"), (bool,)),
    "pad_multiple": (int, NoneType),
    "cost_options": (CostOptions,),
}
_CHOICES = {"form": get_args(Form), "fusion": get_args(EnsembleFusion)}


def check_declaration(entry: Method | Ensemble) -> None:
    """Raise `InvalidArgument` unless the fields have the types and values that they are said to.

    Args:
        entry: What a plugin registers.
    """
    _check_fields(entry, type(entry).__name__)
    scales = entry.scales if isinstance(entry, Method) else (entry.scale,)
    if not scales or not all(type(scale) is int and scale >= 1 for scale in scales):
        raise _invalid_field("scales", scales, "integers from 1, at least one")
    if isinstance(entry, Ensemble):
        return _check_items(entry.members, "members", Member)
    if not (entry.data_range > 0 and math.isfinite(entry.data_range)):
        raise _invalid_field("data_range", entry.data_range, "positive and finite")
    figures: Any = entry.reported.values()
    if not all(isinstance(figure, int | float) for figure in figures):
        raise _invalid_field("reported", entry.reported, "numbers by name")
    _check_fields(entry.cost_options, "cost_options")
    _check_items(entry.weights, "weights", Weights)
    _check_network(entry.network)


def _check_items(items: Mapping[Any, Any], name: str, cls: type) -> None:
    for key, item in items.items():
        if not (isinstance(key, str) and isinstance(item, cls)):
            raise _invalid_field(name, {key: item}, f"names with a {cls.__name__} each")
        _check_fields(item, f"{name}[{key!r}]")


def _check_fields(value: Any, location: str) -> None:
    for name in [spec.name for spec in fields(value)]:
        actual, types = getattr(value, name), _FIELD_TYPES.get(name)
        if name in _CHOICES and actual not in _CHOICES[name]:
            raise _invalid_field(f"{location}.{name}", actual, " or ".join(_CHOICES[name]))
        is_wrong_bool = types is not None and isinstance(actual, bool) and bool not in types
        if types is not None and (is_wrong_bool or not isinstance(actual, types)):
            names = " or ".join("None" if cls is NoneType else cls.__name__ for cls in types)
            raise _invalid_field(f"{location}.{name}", actual, names)


def _check_network(network: Any) -> None:
    if not callable(network):
        raise _invalid_field("network", network, "a class, or a function that builds a network")
    try:
        parameters = inspect.signature(
            network.__init__ if inspect.isclass(network) else network
        ).parameters.values()
    except ValueError:  # written in C
        return
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    if not takes_all and "rngs" not in [p.name for p in parameters]:
        raise _invalid_field("network", network, "network(rngs=..., **hparams)")
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in _VARIADIC and p.name not in ("self", "rngs")
    ]
    if required:
        text = f"network(rngs=..., **hparams), with a default of {', '.join(required)}"
        raise _invalid_field("network", network, text)


def _invalid_field(name: str, value: Any, rule: str) -> InvalidArgument:
    return InvalidArgument(
        f"{name} is {value!r:.200}",
        rule=f"it is {rule}",
        remedy="correct it in the plugin",
    )
