"""`export_official`: weights as the .pth of the official code, compared with the published file."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esrjax.bridge.conversion import convert
from esrjax.method import Form, Weights
from esrjax.model import Model
from esrjax.network import archive
from esrjax.network.archive import StateDict
from esrjax.recognition import load_network

# Environment variable and subfolder of folders with published checkpoints.
_WEIGHT_FOLDERS = (("ESRJAX_DATA", "weights"), ("ESRJAX_REFERENCE", "weights"))


@dataclass(frozen=True, kw_only=True)
class ExportedCheckpoint:
    """A written .pth, and whether the official code can load it with `strict=True`.

    Attributes:
        form: "train" or "deploy".
        num_tensors: Number of tensors.
        sha256: SHA-256 of the file.
        reference_file: Name of the published file whose keys, shapes and dtypes it was compared
            with. None if it is not on this machine; the file was then loaded, strictly, into the
            JAX network instead.
        mismatches: Keys, shapes and dtypes that differ from it.
    """

    form: Form
    num_tensors: int
    sha256: str
    reference_file: str | None
    mismatches: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The result of the comparison, in one line."""
        if self.mismatches:
            return f"differs from {self.reference_file}: {'; '.join(self.mismatches)}"
        if self.reference_file:
            return (
                f"{self.num_tensors} tensors; keys, shapes and dtypes as in {self.reference_file}"
            )
        return (
            f"{self.num_tensors} tensors, which load strictly into the JAX network; no published "
            "checkpoint of these hyperparameters on this machine"
        )


def export_official(model: Model, target: Path) -> ExportedCheckpoint:
    """Write weights with the form, keys and nesting of the method's published checkpoint.

    Args:
        model: The model.
        target: The .pth to write.

    Raises:
        UserError: If the weights cannot be converted or written.
    """
    official = _published_weights(model)
    source = _source_file(model, official.form if official else "deploy")
    form = "same" if official and official.form == "train" else "deploy"
    hparams = dict(model.hparams)
    result = convert(model.name, source, target, to="torch", form=form, hparams=hparams)
    written = archive.read_checkpoint(target)
    reference_file = official and _find_local(official.sha256)
    if reference_file:
        mismatches = tuple(
            state_dict_diffs(written.state_dict, archive.read_checkpoint(reference_file).state_dict)
        )
    else:
        load_network(model.name, model.method, written, hparams)
        mismatches = ()
    return ExportedCheckpoint(
        form=result.form,
        num_tensors=result.num_tensors,
        sha256=written.sha256,
        reference_file=reference_file.name if reference_file else None,
        mismatches=mismatches,
    )


def state_dict_diffs(written: StateDict, published: StateDict) -> Iterator[str]:
    """Yield one line for every difference in keys, shapes and dtypes.

    Args:
        written: State dict to check.
        published: State dict of the published checkpoint.
    """
    for key in published.keys() - written.keys():
        yield f"{key} is missing"
    for key in written.keys() - published.keys():
        yield f"{key} is unexpected"
    for key in written.keys() & published.keys():
        written_type, published_type = (
            _dtype_and_shape(written, key),
            _dtype_and_shape(published, key),
        )
        if written_type != published_type:
            yield f"{key} is {written_type}, published {published_type}"


def _dtype_and_shape(state_dict: StateDict, key: str) -> str:
    return f"{state_dict[key].dtype} {state_dict[key].shape}"


def _published_weights(model: Model) -> Weights | None:
    """Return the published weights of these hyperparameters, preferably with a local file."""
    candidates = [
        weights
        for weights in model.method.weights.values()
        if dict(weights.hparams) == dict(model.hparams)
    ]
    return next(
        (weights for weights in candidates if _find_local(weights.sha256)),
        candidates[0] if candidates else None,
    )


def _source_file(model: Model, form: Form) -> Path:
    """Return the model's checkpoint; in a run's folder, the one of this form."""
    path = model.checkpoint.path
    sibling = path.with_name(f"{form}.safetensors")
    return sibling if path.name == "deploy.safetensors" and sibling.is_file() else path


def _find_local(sha256: str) -> Path | None:
    """Return the published file, if it is in one of `_WEIGHT_FOLDERS`."""
    folders = [
        Path(os.environ[key]) / subfolder
        for key, subfolder in _WEIGHT_FOLDERS
        if os.environ.get(key)
    ]
    files = (path for folder in folders for path in sorted(folder.glob("*.pth")))
    return next((path for path in files if _sha256(path) == sha256), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
