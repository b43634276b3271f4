"""Loading of checkpoints into networks: the form and the hyperparameters are recognized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from esrjax.errors import InvalidArgument, WeightsMismatch
from esrjax.method import Form, Method
from esrjax.nn.checkpoint_io import Checkpoint
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
    weights with its SHA-256; else the deploy form and then the train form are tried.

    Args:
        method_name: Registered name of the method.
        method: The method.
        checkpoint: As `read_checkpoint` returns.
        hparams: Arguments of `Method.network`, which override those of the checkpoint.

    Raises:
        WeightsMismatch: The metadata name another method.
        WeightsMismatch: The tensors fit no form; the error of the form that fits best.
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
                f"{checkpoint.path}, read as {method_name} in {form} form"
                + f" with{_format_hparams(candidate)}" * bool(candidate),
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
        return nnx.eval_shape(build)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidArgument(
            f"Cannot build the network with{_format_hparams(hparams)}: {error}",
            rule="the arguments of the method's network are "
            + ", ".join(f"{key}={value!r}" for key, value in method.default_hparams().items()),
            remedy="correct --hparam",
        ) from error


def _candidates(
    method_name: str, method: Method, checkpoint: Checkpoint, hparams: HParams
) -> list[tuple[Form, HParams]]:
    method.check_hparams(hparams)
    metadata = checkpoint.metadata
    if metadata is not None:
        if metadata.method != method_name:
            raise _wrong_method(method_name, metadata.method, checkpoint)
        return [(metadata.form, {**metadata.hparams, **hparams})]
    for weights in method.weights.values():
        if weights.sha256 == checkpoint.sha256:
            return [(weights.form, {**weights.hparams, **hparams})]
    return [("deploy", hparams), ("train", hparams)]


def _format_hparams(hparams: HParams) -> str:
    return "".join(f" {key}={value!r}" for key, value in hparams.items())


def _wrong_method(method_name: str, stored_name: str, checkpoint: Checkpoint) -> WeightsMismatch:
    return WeightsMismatch(
        f"The checkpoint is of method {stored_name!r}, not of {method_name!r}",
        rule="a checkpoint whose metadata names a method can be loaded by that method only",
        location=str(checkpoint.path),
        remedy=f"use method {stored_name!r}, or another file",
    )
