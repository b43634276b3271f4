"""`convert`, the conversion of checkpoints between PyTorch and safetensors, with checks."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from esrjax import registry
from esrjax.errors import ExportError, InvalidArgument
from esrjax.inference import Model
from esrjax.loading import LoadedNetwork, load_network
from esrjax.method import Form, Method, Weights
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.cost import cost_of, mismatches
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

CheckpointFormat = Literal["safetensors", "torch"]


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """Contents of the written checkpoint.

    Attributes:
        form: "train" or "deploy".
        num_tensors: Number of tensors.
        num_params: Number of values in all tensors.
    """

    form: Form
    num_tensors: int
    num_params: int


def checkpoint_format(target: Path, requested: CheckpointFormat | None = None) -> CheckpointFormat:
    """Return the format of an output file.

    Args:
        target: The output file.
        requested: The requested format; None to take the one of the suffix.

    Raises:
        InvalidArgument: If both contradict each other.
    """
    from_suffix: CheckpointFormat = "safetensors" if target.suffix == ".safetensors" else "torch"
    if requested in (None, from_suffix):
        return from_suffix
    raise InvalidArgument(
        f"Suffix of {target.name!r} does not fit the format {requested!r}",
        rule="the suffix .safetensors means safetensors, any other PyTorch",
        location=str(target),
        remedy="use NAME.safetensors" if requested == "safetensors" else "use NAME.pth",
    )


def convert(
    name: str,
    source: Path,
    target: Path,
    *,
    to: CheckpointFormat = "safetensors",
    form: Literal["same", "deploy"] = "same",
    hparams: dict[str, Any] | None = None,
) -> ConversionResult:
    """Convert a checkpoint.

    Args:
        name: Name of the method.
        source: The checkpoint, .pth or .safetensors.
        target: File to write.
        to: Its format. PyTorch files have the keys, buffers and nesting of the published file.
        form: "deploy" fuses a network in train form; "same" keeps the form.
        hparams: Hyperparameters, where the checkpoint does not have them in its metadata.

    Raises:
        ExportError: If the network's cost is not the reported one.
        UserError: If the checkpoint cannot be read, does not fit, or the file cannot be written.
    """
    method = registry.get_method(name)
    loaded = load_network(name, method, checkpoint_io.read_checkpoint(source), hparams)
    _check_cost(name, method, loaded)
    net = deploy(loaded.net) if form == "deploy" else loaded.net
    target_form: Form = "deploy" if form == "deploy" else loaded.form
    state_dict = to_state_dict(net, KeyMap(method.torch_names))
    if to == "torch":
        key_map = KeyMap(method.torch_names)
        state_dict |= {
            key_map.to_torch(path): value for path, value in _buffers(method, net).items()
        }
        checkpoint_io.write_torch(target, state_dict, _root_keys(method, loaded))
    else:
        source_metadata = loaded.checkpoint.metadata
        sha256 = (
            source_metadata.source_sha256 if source_metadata else ""
        ) or loaded.checkpoint.sha256
        metadata = checkpoint_io.make_metadata(
            name, method, target_form, loaded.hparams, source_sha256=sha256
        )
        checkpoint_io.write_safetensors(target, state_dict, metadata)
    return ConversionResult(
        form=target_form, num_tensors=len(state_dict), num_params=_count_params(state_dict)
    )


def _check_cost(name: str, method: Method, loaded: LoadedNetwork) -> None:
    """Check the deployed network's cost; the reported one is that of default hyperparameters."""
    if loaded.hparams:
        return
    cost = cost_of(method, deploy(loaded.net))
    cost_mismatches = mismatches(cost, method.reported)
    if cost_mismatches:
        raise ExportError(
            f"The cost of {name} is not the one its team reported: {'; '.join(cost_mismatches)}",
            rule="parameters and FLOPs of a converted network are those of Method.reported",
            location=str(loaded.checkpoint.path),
            remedy="correct the network, `cost_excluded` or `reported` of the plugin",
        )


def _buffers(method: Method, net: nnx.Module) -> Mapping[str, Any]:
    return method.torch_buffers(net) if method.torch_buffers else {}


def _root_keys(method: Method, loaded: LoadedNetwork) -> tuple[str, ...]:
    """Return the top-level keys of the published file that contain state dicts, if any."""
    candidates = (w for w in method.weights.values() if dict(w.hparams) == dict(loaded.hparams))
    match = next((weights for weights in candidates if weights.form == loaded.form), None)
    return (match.state_dict_key, *match.other_keys) if match and match.state_dict_key else ()


def _count_params(state_dict: StateDict) -> int:
    return sum(tensor.size for tensor in state_dict.values())


# --------------------------------------------------------------------------------------------------
# `export_official`: weights as the .pth of the official code, compared with the published file.
# --------------------------------------------------------------------------------------------------


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
    written = checkpoint_io.read_checkpoint(target)
    reference_file = official and _find_local(official.sha256)
    if reference_file:
        mismatches = tuple(
            state_dict_diffs(
                written.state_dict, checkpoint_io.read_checkpoint(reference_file).state_dict
            )
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
