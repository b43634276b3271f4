"""`convert`, the conversion of checkpoints between PyTorch and safetensors, with checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.network import archive
from esrjax.network.archive import StateDict
from esrjax.network.cost import cost_of, mismatches
from esrjax.network.naming import KeyMap
from esrjax.network.reparam import deploy
from esrjax.network.weights import to_state_dict
from esrjax.recognition import LoadedNetwork, load_network

CheckpointFormat = Literal["safetensors", "torch"]


class SuffixMismatch(UserError):
    """Raised when an output's suffix contradicts the requested format."""


class CostMismatch(UserError):
    """Raised when a network's parameters or FLOPs are not those that its team reported."""


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
        SuffixMismatch: If both contradict each other.
    """
    from_suffix: CheckpointFormat = "safetensors" if target.suffix == ".safetensors" else "torch"
    if requested in (None, from_suffix):
        return from_suffix
    raise SuffixMismatch(
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
        CostMismatch: If the network's cost is not the reported one.
        UserError: If the checkpoint cannot be read, does not fit, or the file cannot be written.
    """
    method = registry.get_method(name)
    loaded = load_network(name, method, archive.read_checkpoint(source), hparams)
    _check_cost(name, method, loaded)
    net = deploy(loaded.net) if form == "deploy" else loaded.net
    target_form: Form = "deploy" if form == "deploy" else loaded.form
    state_dict = to_state_dict(net, KeyMap(method.torch_names))
    if to == "torch":
        key_map = KeyMap(method.torch_names)
        state_dict |= {
            key_map.to_torch(path): value for path, value in _buffers(method, net).items()
        }
        archive.write_torch(target, state_dict, _root_keys(method, loaded))
    else:
        source_metadata = loaded.checkpoint.metadata
        sha256 = (
            source_metadata.source_sha256 if source_metadata else ""
        ) or loaded.checkpoint.sha256
        metadata = archive.make_metadata(
            name, method, target_form, loaded.hparams, source_sha256=sha256
        )
        archive.write_safetensors(target, state_dict, metadata)
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
        raise CostMismatch(
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
