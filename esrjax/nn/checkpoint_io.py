"""Checkpoint files, read and written: PyTorch's `.pth`, and `.safetensors` with metadata.

Both store a state dict: tensors under PyTorch's names and in PyTorch's layout.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.errors import MissingExtra, UnreadableFile
from esrjax.io import sha256_file, write_bytes
from esrjax.method import Form, Method

StateDict = dict[str, NDArray[Any]]  # tensors by PyTorch's names, in PyTorch's layout

# Keys under which training code stores a state dict in a `.pth`, by preference: BasicSR writes
# `params_ema` and `params`, others `state_dict` or `model`.
STATE_DICT_KEYS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
_METADATA_KEY = "esrjax"  # in the header of a `.safetensors`; its value is JSON


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """Metadata of a `.safetensors` that esrjax wrote.

    Attributes:
        method: Registered name of the method that the tensors belong to.
        form: Form of the network: "train" with its branches, or "deploy", fused.
        hparams: Arguments of `Method.network`; the others have their defaults.
        data_range: Images at the network's input and output have values in [0, data_range].
        scale: Upscaling factor.
        license: License of the weights.
        source_sha256: SHA-256 of the file that the tensors were converted from, if any.
        tensors_sha256: `hash_tensors` of the converted tensors, which `source_sha256` is true of.
        esrjax: Version of esrjax that wrote the file.
        note: Free text, for instance the recipe and the data of a training.
        parity_report: Report of the comparison with PyTorch, if any; see
            `esrjax.interop.parity_report`.
    """

    method: str
    form: Form
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data_range: float = 1.0
    scale: int = 4
    license: str = ""
    source_sha256: str = ""
    tensors_sha256: str = ""
    esrjax: str = ""
    note: str = ""
    parity_report: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict that was read from a file.

    Attributes:
        path: The file.
        sha256: SHA-256 of the file, in hex.
        state_dict: Tensors by PyTorch's names, in PyTorch's layout.
        metadata: What esrjax wrote of the tensors; None in a file of another program.
    """

    path: Path
    sha256: str
    state_dict: StateDict
    metadata: CheckpointMetadata | None = None


def make_metadata(
    method_name: str,
    method: Method,
    form: Form,
    hparams: Mapping[str, Any],
    *,
    source_sha256: str = "",
    tensors_sha256: str = "",
    note: str = "",
) -> CheckpointMetadata:
    """Return the metadata for weights of `method`, with the installed version of esrjax.

    Args:
        method_name: Registered name of the method.
        method: The method; data range, scale and license are taken from it.
        form: Form of the network that the weights belong to.
        hparams: Arguments of `Method.network` that the weights need.
        source_sha256: SHA-256 of the file that the weights were converted from.
        tensors_sha256: `hash_tensors` of the weights, if they were converted.
        note: Free text.
    """
    return CheckpointMetadata(
        method=method_name,
        form=form,
        hparams=dict(hparams),
        data_range=method.data_range,
        scale=method.scale,
        license=method.license,
        source_sha256=source_sha256,
        tensors_sha256=tensors_sha256,
        esrjax=metadata.version("esrjax"),
        note=note,
    )


def source_sha256(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the file that a checkpoint was converted from, else its own.

    The metadata is trusted only as long as its hash of the tensors is right: a program that changes
    the tensors and copies the header does not pass its weights off as the converted ones.
    """
    metadata = checkpoint.metadata
    if metadata is None or not metadata.source_sha256:
        return checkpoint.sha256
    is_unchanged = metadata.tensors_sha256 == hash_tensors(checkpoint.state_dict)
    return metadata.source_sha256 if is_unchanged else checkpoint.sha256


def hash_tensors(tensors: StateDict) -> str:
    """Return the SHA-256 of a state dict, independent of its file format and key order.

    Args:
        tensors: State dict; names, dtypes, shapes and values are hashed in the order of the names.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pth`, a `.safetensors` or the deployed network of a run directory.

    A `.pth` is read with `weights_only=True`: no code of the file is run.

    Args:
        path: The file, or the directory of a training run.

    Raises:
        UnreadableFile: The file does not exist, contains no state dict or would run code.
        MissingExtra: The file is a `.pth` and PyTorch is not installed.
    """
    path = Path(path)
    try:
        path = path / "deploy.safetensors" if path.is_dir() else path
        sha256 = sha256_file(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "check the path") from error
    if path.suffix == ".safetensors":
        state_dict, metadata = _read_safetensors(path)
    else:
        state_dict, metadata = _read_torch(path), None
    return Checkpoint(path=path, sha256=sha256, state_dict=state_dict, metadata=metadata)


def write_safetensors(
    path: str | Path,
    state_dict: StateDict,
    metadata: CheckpointMetadata,
    remedy: str = "choose another output with -o",
) -> None:
    """Write a state dict and its metadata atomically: the whole file or none.

    Args:
        path: The file; missing folders are created.
        state_dict: Tensors by PyTorch's names, in PyTorch's layout.
        metadata: Written as JSON into the header of the file; fields that are None are left out.
        remedy: What the user can do where the path cannot be written.

    Raises:
        UnwritableFile: The path cannot be written to.
    """
    from safetensors.numpy import save

    fields = {key: value for key, value in asdict(metadata).items() if value is not None}
    header = {_METADATA_KEY: json.dumps(fields, sort_keys=True)}
    # Not np.ascontiguousarray, which turns scalars into vectors.
    contiguous = {key: np.asarray(value, order="C") for key, value in state_dict.items()}
    write_bytes(Path(path), save(contiguous, header), remedy)


def write_torch(path: str | Path, state_dict: StateDict, keys: Sequence[str] = ()) -> None:
    """Write a state dict as `torch.save` does, atomically.

    Args:
        path: The file; missing folders are created.
        state_dict: Tensors by PyTorch's names, in PyTorch's layout.
        keys: Keys under each of which the file stores the state dict, for instance `params_ema`;
            without any, the file is the state dict itself.

    Raises:
        UnwritableFile: The path cannot be written to.
        MissingExtra: PyTorch is not installed.
    """
    torch = import_torch("writing a .pth file")
    # Copies: a tensor shares the memory of its array, and arrays that come from JAX are read-only.
    tensors = {
        key: torch.from_numpy(np.array(value, order="C")) for key, value in state_dict.items()
    }
    buffer = io.BytesIO()
    torch.save({key: tensors for key in keys} or tensors, buffer)
    write_bytes(Path(path), buffer.getvalue())


# --- reading -----------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> tuple[StateDict, CheckpointMetadata | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # not a dict  # noqa: SIM118
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error), "copy or download the file again") from error
    try:
        return state_dict, None if text is None else CheckpointMetadata(**json.loads(text))
    except (ValueError, TypeError) as error:
        reason = f"its metadata is not of this version of esrjax: {error}"
        raise _unreadable(path, reason, "convert it again, or update esrjax") from error


def _read_torch(path: Path) -> StateDict:
    torch = import_torch("reading a .pth file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own text advises to load the file with weights_only=False, which runs its code.
        reason = "torch.save did not write it, or it is incomplete"
        if not isinstance(error, pickle.UnpicklingError):
            reason = f"PyTorch raised {type(error).__name__}: {error}".strip().split("\n", 1)[0]
        elif "GLOBAL" in str(error):
            raise _unsafe_checkpoint(path, error) from error
        raise _unreadable(path, reason, "give a file written by torch.save") from error
    for key in STATE_DICT_KEYS:  # nested keys are followed in this order
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not any(torch.is_tensor(v) for v in loaded.values()):
        raise _unreadable(path, f"it contains a {type(loaded).__name__}", "save net.state_dict()")
    tensors = {key: value.detach() for key, value in loaded.items() if torch.is_tensor(value)}
    return {  # without the prefix of DistributedDataParallel; numpy lacks bfloat16
        str(key).removeprefix("module."): (t.float() if t.dtype == torch.bfloat16 else t).numpy()
        for key, t in tensors.items()
    }


def import_torch(purpose: str) -> Any:
    """Return the module `torch`.

    Args:
        purpose: What needs it, the subject of the error's sentence: "reading a .pth file".

    Raises:
        MissingExtra: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs PyTorch",
            rule="PyTorch is an optional dependency",
            remedy='pip install "esrjax[torch]"',
        ) from error
    return torch


def _unsafe_checkpoint(path: Path, error: Exception) -> UnreadableFile:
    # PyTorch's message names the class or function that it refused, on a line with "GLOBAL".
    global_line = next(line for line in str(error).splitlines() if "GLOBAL" in line)
    return UnreadableFile(
        "This checkpoint would run code when loaded, so it was not loaded",
        rule="only tensors and plain containers are read (torch.load with weights_only=True): "
        + global_line.strip()[:200],
        location=str(path),
        remedy="if you trust its source, load it in PyTorch and save net.state_dict() alone",
    )


def _unreadable(path: Path, reason: str, remedy: str) -> UnreadableFile:
    return UnreadableFile(
        f"Cannot read the checkpoint: {reason}",
        rule="a checkpoint is a .pth file, a .safetensors file or a run directory",
        location=str(path),
        remedy=remedy,
    )
