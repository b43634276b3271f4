"""Loading of checkpoints into networks: the form and the hyperparameters are recognized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from esrjax.errors import InvalidArgument, WeightsMismatch
from esrjax.method import Form, Method
from esrjax.nn.checkpoint_io import Checkpoint
from esrjax.nn.layers import shapes_only
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, load_state_dict

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
        WeightsMismatch: The metadata name another method, or the tensors fit no form (the error of
            the form that fits best).
        InvalidArgument: The network has no such hyperparameter.
    """
    failures: list[WeightsMismatch] = []
    for form, candidate in _candidates(method_name, method, checkpoint, hparams or {}):
        try:
            net = load_state_dict(
                abstract_network(method, form, candidate),
                checkpoint.state_dict,
                KeyMap(method.torch_names),
                method.unused_torch_keys,
                f"{checkpoint.path}, read as {method_name} in {form} form{_format(candidate)}",
            )
            return LoadedNetwork(net=net, form=form, hparams=candidate, checkpoint=checkpoint)
        except WeightsMismatch as error:
            failures.append(error)
    raise min(failures, key=lambda error: error.num_mismatches)


def abstract_network(method: Method, form: Form, hparams: HParams) -> nnx.Module:
    """Return a network with shapes and dtypes but without values, in evaluation mode.

    Args:
        method: The method.
        form: Form of the network.
        hparams: Arguments of `Method.network`.

    Raises:
        InvalidArgument: The network has no such hyperparameter, or cannot be built with its value.
    """

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
    published = (w for w in method.weights.values() if w.sha256 == checkpoint.sha256)
    if source := metadata or next(published, None):
        return [(source.form, {**source.hparams, **hparams})]
    known = [hparams] if hparams else method.known_hparams()
    return [(form, candidate) for candidate in known for form in ("deploy", "train")]


def _format(hparams: HParams) -> str:
    """Return ` with channels=4 scale=2`; empty if there are none."""
    return " with" * bool(hparams) + "".join(f" {key}={v!r}" for key, v in hparams.items())
