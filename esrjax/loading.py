"""Loading of checkpoints into networks: method, form and hyperparameters are recognized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx

from esrjax import hub, registry
from esrjax.errors import InvalidArgument, WeightsMismatch, list_some, log_note
from esrjax.io import matches_any, sha256_file
from esrjax.method import Form, Method, Weights
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import Checkpoint, CheckpointMetadata, StateDict
from esrjax.nn.layers import shapes_only
from esrjax.nn.quantization import is_range, quantize_as, quantized_convs
from esrjax.nn.reparam import Reparam, deploy
from esrjax.nn.state_dict import (
    KeyMap,
    load_state_dict,
    named_parameters,
    shared_prefix,
    torch_shapes,
)

HParams = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network with the weights of a checkpoint.

    Attributes:
        net: The network, with values.
        form: Form of the network.
        hparams: Arguments of `Method.network` that it was built with.
        checkpoint: What the weights were read from.
    """

    net: nnx.Module
    form: Form
    hparams: HParams
    checkpoint: Checkpoint


def load_network(
    method_name: str, method: Method, checkpoint: Checkpoint, hparams: HParams | None = None
) -> LoadedNetwork:
    """Return the network of a checkpoint.

    Form and hyperparameters are those of the checkpoint's metadata; else those of the published
    weights with its SHA-256; else the deploy form and then the train form are tried, with `hparams`
    or else with each of `Method.known_hparams`.

    Args:
        method_name: Registered name of the method.
        method: The method.
        checkpoint: As `read_checkpoint` returns.
        hparams: Arguments of `Method.network`, which override those of the checkpoint.

    Raises:
        WeightsMismatch: The metadata name another method, scale or data range, or the tensors fit
            no form (the error of the form that fits best).
        InvalidWeights: A tensor is of a type like int8, or has a NaN or an infinity.
        InvalidArgument: The network has no such hyperparameter.
    """
    method.check_hparams(hparams or {})
    candidates = _candidates(method_name, method, checkpoint, hparams or {})
    _check_data_range(method, checkpoint)
    _check_scale(method, checkpoint, hparams or {})
    failures: list[WeightsMismatch] = []
    for form, candidate in candidates:
        try:
            net = abstract_network(method, form, candidate)
        except InvalidArgument as error:
            raise error.with_location(str(checkpoint.path)) from error
        file, prefix = _without_prefix(method, net, checkpoint)
        key_map = KeyMap(method.torch_names)
        net = quantize_as(net, file.state_dict, key_map) if form == "deploy" else net
        try:
            net = load_state_dict(
                net,
                file.state_dict,
                key_map,
                method.unused_torch_keys,
                f"{checkpoint.path}, read as {method_name} in {form} form{_format(candidate)}",
            )
        except WeightsMismatch as error:
            failures.append(error)
            continue
        if prefix:
            log_note(f"{checkpoint.path}: the keys begin with {prefix!r}, which is left out")
        if int8 := quantized_convs(net):
            log_note(f"{checkpoint.path}: {len(int8)} int8 convolutions")
        if checkpoint.metadata is None and candidate != (hparams or {}):
            log_note(f"{checkpoint.path}: without metadata, read{_format(candidate)}")
        return LoadedNetwork(net=net, form=form, hparams=candidate, checkpoint=file)
    raise min(failures, key=lambda error: error.num_mismatches)


def _check_data_range(method: Method, checkpoint: Checkpoint) -> None:
    metadata = checkpoint.metadata
    if metadata is not None and metadata.data_range != method.data_range:
        raise WeightsMismatch(
            f"The weights are for images in [0, {metadata.data_range:g}]",
            rule=f"images of this method have values in [0, {method.data_range:g}], at the input "
            "and the output of its network",
            location=f"{checkpoint.path}, metadata 'data_range'",
            remedy="convert the weights again from their source with the installed plugin",
        )


def _without_prefix(
    method: Method, net: nnx.Module, checkpoint: Checkpoint
) -> tuple[Checkpoint, str]:
    """Return the checkpoint without the prefix of its keys (`shared_prefix`), and the prefix."""
    paths, key_map = dict(named_parameters(net)), KeyMap(method.torch_names)
    state_dict = checkpoint.state_dict
    prefix = shared_prefix(state_dict, lambda key: key_map.to_flax(key) in paths)
    if prefix:
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return replace(checkpoint, state_dict=state_dict), prefix


def abstract_network(method: Method, form: Form, hparams: HParams) -> nnx.Module:
    """Return a network with shapes and dtypes but without values, in evaluation mode.

    Args:
        method: The method.
        form: Form of the network.
        hparams: Arguments of `Method.network`.

    Raises:
        InvalidArgument: The network has no such hyperparameter, or cannot be built with its value.
    """

    method.check_hparams(hparams)  # `build` takes "seed" for its own argument

    def build() -> nnx.Module:
        net = method.build(**hparams)
        net.eval()
        return net if form == "train" else deploy(net)

    try:
        with shapes_only():
            return nnx.eval_shape(build)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidArgument(
            f"Cannot build the network{_format(hparams)}: {error}",
            rule="the arguments of the method's network are "
            + ", ".join(f"{key}={value!r}" for key, value in method.default_hparams().items()),
            remedy="correct --hparam",
        ) from error


def _candidates(
    method_name: str, method: Method, checkpoint: Checkpoint, hparams: HParams
) -> list[tuple[Form, HParams]]:
    """Return the forms and hyperparameters that the tensors may have."""
    metadata = checkpoint.metadata
    if metadata is not None and metadata.method != method_name:
        raise WeightsMismatch(
            f"The checkpoint is of method {metadata.method!r}, not of {method_name!r}",
            rule="a checkpoint whose metadata names a method can be loaded by that method only",
            location=str(checkpoint.path),
            remedy=f"use method {metadata.method!r}, or another file",
        )
    if source := _stored(method, checkpoint):
        return [(source.form, {**source.hparams, **hparams})]
    known = [hparams] if hparams else method.known_hparams()
    return [(form, candidate) for candidate in known for form in ("deploy", "train")]


def stored_hparams(method: Method, checkpoint: Checkpoint) -> HParams:
    """Return the hyperparameters that are known of a checkpoint.

    They are those of its metadata, or of the published weights that it is.
    """
    source = _stored(method, checkpoint)
    return {} if source is None else source.hparams


def _stored(method: Method, checkpoint: Checkpoint) -> CheckpointMetadata | Weights | None:
    return checkpoint.metadata or _published(method, checkpoint)


def _published(method: Method, checkpoint: Checkpoint) -> Weights | None:
    """Return the published weights that a checkpoint is, by its SHA-256."""
    weights = method.weights.values()
    return next((w for w in weights if w.sha256 == checkpoint.sha256), None)


def _check_scale(method: Method, checkpoint: Checkpoint, hparams: HParams) -> None:
    """Raise `WeightsMismatch` if the checkpoint is known to be of another scale."""
    if (source := _stored(method, checkpoint)) is None:
        return
    metadata, scale = checkpoint.metadata, method.scale_of({**source.hparams, **hparams})
    stored = method.scale_of(source.hparams) if metadata is None else metadata.scale
    if stored != scale:
        raise WeightsMismatch(
            f"The checkpoint is of a network for x{stored}, not for x{scale}",
            rule="the scale is a hyperparameter of the network that weights were trained with",
            location=str(checkpoint.path),
            remedy=f"leave out the hyperparameter scale, or use weights for x{scale}",
        )


def _format(hparams: HParams) -> str:
    """Return ` with channels=4 scale=2`; empty if there are none."""
    return " with" * bool(hparams) + "".join(f" {key}={v!r}" for key, v in hparams.items())


# --- the method of a checkpoint, and whose weights it has ---

Origin = Literal["official", "shipped", "own"]
Shapes = Mapping[str, tuple[int, ...]]  # Flax path -> shape in PyTorch's layout

# A file with fewer values than this fraction of the reported parameters is not of that network: the
# official count misses parameters of some networks, but counts few that a file lacks.
_MIN_FRACTION = 0.8
_shapes_cache: dict[tuple[Any, str], dict[Form, Shapes]] = {}  # of this process


def weights_origin(method: Method, checkpoint: Checkpoint) -> Origin:
    """Return whose weights a checkpoint has.

    "official": a published file, by its SHA-256, or a file of its tensors, by theirs
    (`Method.weights`); "shipped": the file that the plugin ships (`Method.pretrained`); "own":
    anything else. What metadata says of the source is no proof: where it names a published file
    and the tensors do not show it, as after fusing its branches, that is logged.

    Args:
        method: The method that the checkpoint belongs to.
        checkpoint: As `read_checkpoint` returns.
    """
    published, metadata = method.weights.values(), checkpoint.metadata
    if checkpoint.sha256 in {w.sha256 for w in published}:
        return "official"
    used = {
        key: tensor
        for key, tensor in checkpoint.state_dict.items()
        if not matches_any(key, method.unused_torch_keys)
    }
    if checkpoint_io.hash_tensors(used) in {w.tensors_sha256 for w in published}:
        return "official"
    shipped = hub.shipped_path(method)
    if shipped and sha256_file(shipped) == checkpoint.sha256:
        return "shipped"
    if metadata is not None and metadata.source_sha256 in {w.sha256 for w in published}:
        log_note(
            f"{checkpoint.path}: own weights; converted from official ones by the metadata, which "
            "the tensors do not prove"
        )
    return "own"


def identify_method(checkpoint: Checkpoint | str | Path, hparams: HParams | None = None) -> str:
    """Return the registered name of the method that a checkpoint belongs to.

    It is the method in the metadata; else the one that publishes the file (by SHA-256); else the
    only one whose network, in either form, has parameters of exactly these names and shapes. Its
    hyperparameters are the defaults, those of its published weights or its `test_hparams`.

    Args:
        checkpoint: As `read_checkpoint` returns, or the path to read.
        hparams: Arguments of `Method.network`, in place of those hyperparameters.

    Raises:
        WeightsMismatch: The tensors fit no registered method.
        InvalidArgument: They fit several.
        NotFound: The method in the metadata is not registered.
        UnreadableFile: The file cannot be read.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint_io.read_checkpoint(checkpoint)
    if checkpoint.metadata is not None:
        registry.get_method(checkpoint.metadata.method)
        return checkpoint.metadata.method
    methods = dict(_registered_methods())
    if not (names := [name for name, m in methods.items() if _published(m, checkpoint)]):
        names = [name for name, m in methods.items() if _fits(m, checkpoint, hparams)]
        if len(names) == 1:
            log_note(f"{checkpoint.path}: no metadata; its tensors are of the method {names[0]!r}")
    match names:
        case [name]:
            return name
        case []:
            raise _no_method(checkpoint, hparams)
        case _:
            raise _several_methods(checkpoint, names)


def _registered_methods() -> Iterator[tuple[str, Method]]:
    for name, entry in registry.iter_entries():  # a broken plugin does not hide the others
        if isinstance(entry, Method):
            yield name, entry


def _fits(method: Method, checkpoint: Checkpoint, hparams: HParams | None) -> bool:
    """Return whether the tensors are the parameters of one of the method's networks."""
    num_values = sum(tensor.size for tensor in checkpoint.state_dict.values())
    candidates = [hparams] if hparams else method.known_hparams()
    return any(
        _has_shapes(checkpoint.state_dict, method, shapes)
        for candidate in candidates
        if candidate or num_values >= _MIN_FRACTION * method.reported.get("params", 0)
        for shapes in _form_shapes(method, candidate).values()
    )


def _has_shapes(state_dict: StateDict, method: Method, shapes: Shapes) -> bool:
    if len(state_dict) < len(shapes):
        return False
    key_map = KeyMap(method.torch_names)
    prefix = shared_prefix(state_dict, lambda key: key_map.to_flax(key) in shapes)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return shapes == {
        key_map.to_flax(key): tensor.shape
        for key, tensor in tensors.items()
        if not matches_any(key, method.unused_torch_keys) and not is_range(key)
    }


def _form_shapes(method: Method, hparams: HParams) -> dict[Form, Shapes]:
    """Return the shapes of the parameters in each form; none if the network cannot be built."""
    key = (method.network, repr(sorted(hparams.items())))
    if key not in _shapes_cache:
        shapes: dict[Form, Shapes] = {}

        def build() -> None:
            net = method.build(**hparams)
            shapes["train"] = torch_shapes(net)
            if any(isinstance(module, Reparam) for _, module in nnx.iter_modules(net)):
                shapes["deploy"] = torch_shapes(deploy(net))

        try:
            with shapes_only():
                jax.eval_shape(build)
        except Exception:  # no such hyperparameter, or a broken network, which fits nothing
            shapes.clear()
        _shapes_cache[key] = shapes
    return _shapes_cache[key]


def _no_method(checkpoint: Checkpoint, hparams: HParams | None) -> WeightsMismatch:
    methods = [name for name, _ in _registered_methods()]
    return WeightsMismatch(
        f"No method is known whose network has these {len(checkpoint.state_dict)} tensors: "
        + list_some(checkpoint.state_dict, 3),
        rule="without metadata, a checkpoint is identified by the names and shapes of its tensors; "
        f"methods: {', '.join(methods)}",
        location=str(checkpoint.path),
        remedy="name the method with --method NAME, and hyperparameters that are not the defaults "
        "with --hparam KEY=VALUE",
    )


def _several_methods(checkpoint: Checkpoint, names: list[str]) -> InvalidArgument:
    return InvalidArgument(
        f"The tensors fit {len(names)} methods: {', '.join(names)}",
        rule="a checkpoint without metadata that fits several methods needs the name of its own",
        location=str(checkpoint.path),
        remedy=f"name the method, for example --method {names[0]}",
    )
