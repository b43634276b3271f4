"""Loading of checkpoints into networks: the form and the hyperparameters are recognized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from esrjax.errors import InvalidArgument, WeightsMismatch, log_note
from esrjax.method import Form, Method, Weights
from esrjax.nn.checkpoint_io import Checkpoint, CheckpointMetadata
from esrjax.nn.layers import shapes_only
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, load_state_dict, named_parameters, shared_prefix

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
        try:
            net = load_state_dict(
                net,
                file.state_dict,
                KeyMap(method.torch_names),
                method.unused_torch_keys,
                f"{checkpoint.path}, read as {method_name} in {form} form{_format(candidate)}",
            )
        except WeightsMismatch as error:
            failures.append(error)
            continue
        if prefix:
            log_note(f"{checkpoint.path}: the keys begin with {prefix!r}, which is left out")
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
    published = (w for w in method.weights.values() if w.sha256 == checkpoint.sha256)
    return checkpoint.metadata or next(published, None)


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
