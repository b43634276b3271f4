"""What a checkpoint holds: which form of a method's network, of which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flax import nnx

from esrjax.errors import UserError
from esrjax.method import BadSize, Form, Method
from esrjax.network.archive import Checkpoint
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import WeightsMismatch, load

Sizes = Mapping[str, Any]


class WrongMethod(UserError):
    """The checkpoint says that it belongs to another method."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a checkpoint turned out to hold: a network in `form`, of these sizes."""

    net: nnx.Module
    form: Form
    sizes: Sizes
    checkpoint: Checkpoint


def recognise(
    name: str, method: Method, checkpoint: Checkpoint, sizes: Sizes | None = None
) -> Found:
    """What the checkpoint holds, by its manifest, else its sha256, else by trying."""
    failures: list[WeightsMismatch] = []
    for form, guess in _guesses(name, method, checkpoint, sizes or {}):
        try:
            net = load(
                template(method, form, guess),
                checkpoint.tensors,
                Naming(method.torch_names),
                method.unused,
                f"{checkpoint.path}, read as {name} in {form} form{_sizes(guess)}",
            )
            return Found(net=net, form=form, sizes=guess, checkpoint=checkpoint)
        except WeightsMismatch as error:
            failures.append(error)
    raise min(failures, key=lambda error: error.count)


def template(method: Method, form: Form, sizes: Sizes) -> nnx.Module:
    """The network without values, shapes alone, as it behaves outside of training."""

    def build() -> nnx.Module:
        net = method.build(**sizes)
        net.eval()
        return net if form == "train" else deploy(net)

    try:
        return nnx.eval_shape(build)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BadSize(
            f"no network can be built of{_sizes(sizes)}: {error}",
            rule="sizes are arguments of the method's network: "
            + ", ".join(f"{key}={value!r}" for key, value in method.sizes().items()),
            remedy="correct --size",
        ) from error


def _guesses(
    name: str, method: Method, checkpoint: Checkpoint, sizes: Sizes
) -> list[tuple[Form, Sizes]]:
    method.require(sizes)
    manifest = checkpoint.manifest
    if manifest is not None:
        if manifest.method != name:
            raise _wrong_method(name, manifest.method, checkpoint)
        return [(manifest.form, {**manifest.sizes, **sizes})]
    for weights in method.weights.values():
        if weights.sha256 == checkpoint.sha256:
            return [(weights.form, {**weights.sizes, **sizes})]
    return [("deploy", sizes), ("train", sizes)]


def _sizes(sizes: Sizes) -> str:
    return "".join(f" {key}={value!r}" for key, value in sizes.items())


def _wrong_method(name: str, written: str, checkpoint: Checkpoint) -> WrongMethod:
    return WrongMethod(
        f"these are weights of {written!r}, not of {name!r}",
        rule="a file with a manifest is read as the method it names",
        place=str(checkpoint.path),
        remedy=f"name the method {written!r}, or give another file",
    )
