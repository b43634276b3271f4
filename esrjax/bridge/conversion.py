"""Checkpoints from one format to another, checked on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.network import archive
from esrjax.network.archive import Tensors
from esrjax.network.cost import cost_of, departures
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.recognition import Found, recognise

Kind = Literal["safetensors", "torch"]


class UnclearFormat(UserError):
    """An output whose suffix says another format than was asked for."""


class WrongFigures(UserError):
    """The network does not cost what its team reported."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written."""

    form: Form
    tensors: int
    params: int


def kind(target: Path, asked: Kind | None = None) -> Kind:
    """The format of `target`: what is asked for, else what its suffix says."""
    said: Kind = "safetensors" if target.suffix == ".safetensors" else "torch"
    if asked in (None, said):
        return said
    raise UnclearFormat(
        f"{target.name!r} is no name for a file of the format {asked!r}",
        rule="the suffix says the format: .safetensors is safetensors, all else PyTorch's",
        place=str(target),
        remedy="name it NAME.safetensors" if asked == "safetensors" else "name it NAME.pth",
    )


def convert(
    name: str,
    source: Path,
    target: Path,
    *,
    to: Kind = "safetensors",
    form: Literal["same", "deploy"] = "same",
    sizes: dict[str, Any] | None = None,
) -> Converted:
    """Read `source` as the method `name`, verify it, and write it as `target`."""
    method = registry.plain(name)
    found = recognise(name, method, archive.read(source), sizes)
    _verify(name, method, found)
    net = deploy(found.net) if form == "deploy" else found.net
    written: Form = "deploy" if form == "deploy" else found.form
    held = tensors(net, Naming(method.torch_names))
    if to == "torch":
        naming = Naming(method.torch_names)
        held |= {naming.to_torch(path): value for path, value in _buffers(method, net).items()}
        archive.write_torch(target, held, _roots(method, found))
    else:
        before = found.checkpoint.manifest
        sha256 = (before.source_sha256 if before else "") or found.checkpoint.sha256
        said = archive.describe(name, method, written, found.sizes, source_sha256=sha256)
        archive.write_safetensors(target, held, said)
    return Converted(form=written, tensors=len(held), params=_params(held))


def _verify(name: str, method: Method, found: Found) -> None:
    """The deployed network costs what was reported, where it has the submission's sizes."""
    if found.sizes:
        return
    counted = cost_of(method, deploy(found.net))
    wrong = departures(counted, method.reported)
    if wrong:
        raise WrongFigures(
            f"{name} does not cost what its team reported: {'; '.join(wrong)}",
            rule="a converted network has the figures of Method.reported",
            place=str(found.checkpoint.path),
            remedy="correct the network, `uncounted` or `reported` of the plugin",
        )


def _buffers(method: Method, net: nnx.Module) -> Mapping[str, Any]:
    return method.buffers(net) if method.buffers else {}


def _roots(method: Method, found: Found) -> tuple[str, ...]:
    """The keys under which the published file of these sizes keeps tensors."""
    published = (w for w in method.weights.values() if dict(w.sizes) == dict(found.sizes))
    same = next((weights for weights in published if weights.form == found.form), None)
    return (same.root, *same.beside) if same and same.root else ()


def _params(held: Tensors) -> int:
    return sum(tensor.size for tensor in held.values())
