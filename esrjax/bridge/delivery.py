"""Weights as the organisers take them: the `.pth` of a method, held against the published one."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esrjax.bridge.conversion import convert
from esrjax.method import Form, Weights
from esrjax.model import Model
from esrjax.network import archive
from esrjax.network.archive import Tensors
from esrjax.recognition import recognise

# environment variable, folder in it
_ROOTS = (("ESRJAX_DATA", "weights"), ("ESRJAX_REFERENCE", "weights"))


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A `.pth` that was written, and whether the official code would load it strictly.

    against: the published file whose keys, shapes and types it was held against; None where none
    is at hand, and it was loaded strictly into our own network instead. departures: what differs.
    """

    form: Form
    tensors: int
    sha256: str
    against: str | None
    departures: tuple[str, ...]

    @property
    def words(self) -> str:
        """What came of it, in one line."""
        if self.departures:
            return f"not as in {self.against}: {'; '.join(self.departures)}"
        if self.against:
            return f"{self.tensors} tensors, keys, shapes and types as in {self.against}"
        return (
            f"{self.tensors} tensors load strictly into our own network; no published checkpoint "
            "of these sizes is at hand"
        )


def deliver(model: Model, target: Path) -> Delivery:
    """Write the weights of `model` as the published checkpoint has them: form, keys, nesting."""
    official = _published(model)
    source = _source(model, official.form if official else "deploy")
    form = "same" if official and official.form == "train" else "deploy"
    sizes = dict(model.sizes)
    done = convert(model.name, source, target, to="torch", form=form, sizes=sizes)
    written = archive.read(target)
    file = official and _file(official.sha256)
    if file:
        found = tuple(departures(written.tensors, archive.read(file).tensors))
    else:
        recognise(model.name, model.method, written, sizes)
        found = ()
    return Delivery(
        form=done.form,
        tensors=done.tensors,
        sha256=written.sha256,
        against=file.name if file else None,
        departures=found,
    )


def departures(written: Tensors, published: Tensors) -> Iterator[str]:
    """A line for every key, shape or type in which the first differs from the second."""
    for key in published.keys() - written.keys():
        yield f"{key} is missing"
    for key in written.keys() - published.keys():
        yield f"{key} is not asked for"
    for key in written.keys() & published.keys():
        ours, theirs = _kind(written, key), _kind(published, key)
        if ours != theirs:
            yield f"{key} is {ours}, published {theirs}"


def _kind(tensors: Tensors, key: str) -> str:
    return f"{tensors[key].dtype} {tensors[key].shape}"


def _published(model: Model) -> Weights | None:
    """The published weights of these sizes; of several, those at hand."""
    every = [w for w in model.method.weights.values() if dict(w.sizes) == dict(model.sizes)]
    return next((w for w in every if _file(w.sha256)), every[0] if every else None)


def _source(model: Model, form: Form) -> Path:
    """The file of the weights; of a run, the one in this form."""
    path = model.checkpoint.path
    beside = path.with_name(f"{form}.safetensors")
    return beside if path.name == "deploy.safetensors" and beside.is_file() else path


def _file(sha256: str) -> Path | None:
    """The published file itself, if it lies in a folder of weights."""
    folders = [Path(os.environ[key]) / inner for key, inner in _ROOTS if os.environ.get(key)]
    files = (path for folder in folders for path in sorted(folder.glob("*.pth")))
    return next((path for path in files if _digest(path) == sha256), None)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
