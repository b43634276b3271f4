"""`convert` between PyTorch and safetensors checkpoints, and `export_official`, the published form.

`export_official` writes weights as the .pth of the official code, and compares keys, shapes and
dtypes with the published file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from esrjax import registry
from esrjax.errors import ExportError, InvalidArgument
from esrjax.inference import Model
from esrjax.io import check_outputs, sha256_file, weights_dirs
from esrjax.loading import LoadedNetwork, load_network
from esrjax.method import Form, Method, Weights
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.cost import cost_of, mismatches
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

CheckpointFormat = Literal["safetensors", "torch"]
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")  # of checkpoints that are written

# --- conversion ---


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
        InvalidArgument: If both contradict each other, or the suffix is that of other files.
    """
    suffix = target.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise InvalidArgument(
            f"{target.name!r} does not have the suffix of a checkpoint",
            rule=f"it is .safetensors, or for PyTorch one of {', '.join(TORCH_SUFFIXES)}",
            location=str(target),
            remedy="use NAME.safetensors or NAME.pth; NAME.onnx is written by esrjax export",
        )
    from_suffix: CheckpointFormat = "safetensors" if suffix == ".safetensors" else "torch"
    if requested in (None, from_suffix):
        return from_suffix
    raise InvalidArgument(
        f"Suffix of {target.name!r} does not fit the format {requested!r}",
        rule=f"the suffix .safetensors means safetensors, {', '.join(TORCH_SUFFIXES)} PyTorch",
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
        UnwritableFile: If the file cannot be written, or is the checkpoint.
        UserError: If the checkpoint cannot be read, or does not fit.
    """
    check_outputs([target], [source])
    method = registry.get_method(name)
    loaded = load_network(name, method, checkpoint_io.read_checkpoint(source), hparams)
    _check_cost(name, method, loaded)
    net = deploy(loaded.net) if form == "deploy" else loaded.net
    target_form: Form = "deploy" if form == "deploy" else loaded.form
    key_map = KeyMap(method.torch_names)
    state_dict = to_state_dict(net, key_map)
    if to == "torch":
        buffers = method.torch_buffers(net) if method.torch_buffers else {}
        state_dict |= {key_map.to_torch(path): value for path, value in buffers.items()}
        checkpoint_io.write_torch(target, state_dict, _root_keys(method, loaded))
    else:
        metadata = checkpoint_io.make_metadata(
            name,
            method,
            target_form,
            loaded.hparams,
            source_sha256=checkpoint_io.source_sha256(loaded.checkpoint),
            tensors_sha256=checkpoint_io.hash_tensors(state_dict),
        )
        checkpoint_io.write_safetensors(target, state_dict, metadata)
    num_params = sum(tensor.size for tensor in state_dict.values())
    return ConversionResult(form=target_form, num_tensors=len(state_dict), num_params=num_params)


def _check_cost(name: str, method: Method, loaded: LoadedNetwork) -> None:
    """Check the deployed network's cost; the reported one is that of default hyperparameters."""
    cost = None if loaded.hparams else cost_of(method, deploy(loaded.net))
    if cost and (differences := mismatches(cost, method.reported)):
        raise ExportError(
            f"The cost of {name} is not the one its team reported: {'; '.join(differences)}",
            rule="parameters and FLOPs of a converted network are those of Method.reported",
            location=str(loaded.checkpoint.path),
            remedy="correct the network, `cost_options` or `reported` of the plugin",
        )


def _root_keys(method: Method, loaded: LoadedNetwork) -> tuple[str, ...]:
    """Return the top-level keys of the published file that contain state dicts, if any."""
    for weights in _published_weights(method, loaded.hparams):
        if weights.form == loaded.form and weights.state_dict_key:
            return (weights.state_dict_key, *weights.other_keys)
    return ()


def _published_weights(method: Method, hparams: Mapping[str, Any]) -> list[Weights]:
    return [w for w in method.weights.values() if dict(w.hparams) == dict(hparams)]


# --- the published form ---


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
        tensors, file = f"{self.num_tensors} tensors", self.reference_file
        if file:
            return f"{tensors}; keys, shapes and dtypes as in {file}"
        return (
            f"{tensors}, which load strictly into the JAX network; no published checkpoint of "
            "these hyperparameters on this machine"
        )


def export_official(model: Model, target: Path) -> ExportedCheckpoint:
    """Write weights with the form, keys and nesting of the method's published checkpoint.

    Args:
        model: The model.
        target: The .pth to write.

    Raises:
        UserError: If the weights cannot be converted or written.
    """
    published, reference_file = _find_published(model)
    source, hparams = model.checkpoint.path, dict(model.hparams)
    form = "same" if published and published.form == "train" else "deploy"
    if source.name == "deploy.safetensors" and form == "same":
        train_file = source.with_name("train.safetensors")  # a run's folder has both forms
        source = train_file if train_file.is_file() else source
    result = convert(model.name, source, target, to="torch", form=form, hparams=hparams)
    written = checkpoint_io.read_checkpoint(target)
    diffs: Iterator[str] = iter(())
    if reference_file:
        reference = checkpoint_io.read_checkpoint(reference_file)
        diffs = state_dict_diffs(written.state_dict, reference.state_dict)
    else:
        load_network(model.name, model.method, written, hparams)
    return ExportedCheckpoint(
        form=result.form,
        num_tensors=result.num_tensors,
        sha256=written.sha256,
        reference_file=reference_file.name if reference_file else None,
        mismatches=tuple(diffs),
    )


def _find_published(model: Model) -> tuple[Weights | None, Path | None]:
    """Return the published weights of these hyperparameters, preferably with a local file."""
    candidates = _published_weights(model.method, model.hparams)
    files = [path for folder in weights_dirs() for path in sorted(folder.glob("*.pth"))]
    for weights in candidates:
        for path in files:
            if sha256_file(path) == weights.sha256:
                return weights, path
    return (candidates[0] if candidates else None), None


def state_dict_diffs(written: StateDict, published: StateDict) -> Iterator[str]:
    """Yield one line for every difference in keys, shapes and dtypes.

    Args:
        written: State dict to check.
        published: State dict of the published checkpoint.
    """
    written_types, published_types = (
        {key: f"{value.dtype} {value.shape}" for key, value in state_dict.items()}
        for state_dict in (written, published)
    )
    for key in sorted(written_types.keys() | published_types.keys()):
        if key not in written:
            yield f"{key} is missing"
        elif key not in published:
            yield f"{key} is unexpected"
        elif written_types[key] != published_types[key]:
            yield f"{key} is {written_types[key]}, published {published_types[key]}"
