"""Checkpoint files, read and written: PyTorch's `.pth`, and `.safetensors` with metadata.

Both store a state dict: tensors under PyTorch's names and in PyTorch's layout. The content of a
file decides which it is, and metadata is validated. Values are checked where they are put into a
network (`esrjax.nn.state_dict.load_state_dict`).
"""

import hashlib
import io
import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes  # noqa: F401 # pyright: ignore[reportUnusedImport] # bfloat16 for NumPy
import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from esrjax.errors import UnreadableFile, error_summary, import_extra, list_some, log_note
from esrjax.io import (
    ONNX,
    SAFETENSORS,
    TORCH,
    file_format,
    format_note,
    open_regular,
    sha256_file,
    write_bytes,
)
from esrjax.method import Form, Method
from esrjax.schema import STRICT, PositiveFloat, format_errors

StateDict = dict[str, NDArray[Any]]  # tensors by PyTorch's names, in PyTorch's layout

# Keys under which training code stores a state dict in a `.pth`, by preference, moving averages
# first: BasicSR writes `params_ema` and `params`, timm `state_dict_ema`, Lightning `state_dict`.
STATE_DICT_KEYS = (
    *("params_ema", "state_dict_ema", "model_ema", "ema"),
    *("params", "state_dict", "model_state_dict", "model", "net_g", "generator", "network", "net"),
)
_MAX_BYTES = 16 << 30  # of a file
# Tensors that share memory, or are expanded, are larger than in the file.
_MAX_EXPANSION, _MIN_EXPANDED_BYTES = 4, 64 << 20
_MAX_LEVELS = 16  # of dictionaries around a state dict
# Those of safetensors' dtypes that NumPy has; the others have 8 bits or fewer.
_NUMPY_DTYPES = "F64 F32 F16 BF16 C64 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()
_METADATA_KEY = "esrjax"  # in the header of a `.safetensors`; its value is JSON


Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
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

    method: Annotated[str, Field(min_length=1)]
    form: Form
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data_range: PositiveFloat = 1.0
    scale: Annotated[int, Field(ge=1)] = 4
    license: str = ""
    source_sha256: Sha256 = ""
    tensors_sha256: Sha256 = ""
    esrjax: str = ""
    note: str = ""
    parity_report: Mapping[str, Any] | None = None


_METADATA = TypeAdapter(CheckpointMetadata)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state dict that was read from a file.

    Attributes:
        path: The file.
        sha256: SHA-256 of the file, in hex.
        state_dict: Tensors by PyTorch's names, in PyTorch's layout.
        metadata: What esrjax wrote of the tensors; None in a file of another program.
        notes: What was assumed or left out on reading, a line each; they are also logged.
    """

    path: Path
    sha256: str
    state_dict: StateDict
    metadata: CheckpointMetadata | None = None
    notes: tuple[str, ...] = ()


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
        method: The method; data range and license are taken from it, and the scale with `hparams`.
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
        scale=method.scale_of(hparams),
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

    The content decides which of them a file is. A PyTorch file is read with `weights_only=True`: no
    code of the file is run.

    Args:
        path: The file, or the directory of a training run.

    Raises:
        UnreadableFile: The file does not exist, contains no state dict or would run code, or its
            metadata is invalid.
        MissingExtra: The file is a PyTorch file and PyTorch is not installed.
    """
    path = Path(path)
    try:
        path = path / "deploy.safetensors" if path.is_dir() else path
        name, num_bytes = file_format(path), path.stat().st_size
        if name not in (SAFETENSORS, TORCH):
            raise _unreadable(
                path, f"it is {name}", _REMEDIES.get(name, "copy or download it again")
            )
        if num_bytes > _MAX_BYTES:
            raise _unreadable(path, f"it has {num_bytes:,} bytes", "give a file of weights alone")
        sha256 = sha256_file(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, reason, "check the path") from error
    notes = [note for note in [format_note(path, name)] if note]
    if name == SAFETENSORS:
        state_dict, metadata = _read_safetensors(path)
    else:
        state_dict, metadata = _read_torch(path, notes), None
    for note in notes:
        log_note(f"{path}: {note}")
    return Checkpoint(
        path=path, sha256=sha256, state_dict=state_dict, metadata=metadata, notes=tuple(notes)
    )


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


_REMEDIES = {
    ONNX: "run it with `esrjax upscale --engine onnxruntime`; JAX needs the checkpoint it is from",
    "a TorchScript archive, a program with its weights": "save its state_dict() alone in PyTorch",
    "a NumPy archive (.npz)": "save the arrays by safetensors.numpy.save_file",
}


def _read_safetensors(path: Path) -> tuple[StateDict, CheckpointMetadata | None]:
    from safetensors import SafetensorError, safe_open

    state_dict: StateDict = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # not a dict  # noqa: SIM118
                dtype = file.get_slice(key).get_dtype()
                if dtype not in _NUMPY_DTYPES:
                    raise _unreadable_tensor(path, key, dtype)
                state_dict[key] = file.get_tensor(key)
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _unreadable(path, str(error), "copy or download the file again") from error
    return state_dict, None if text is None else _parse_metadata(path, text)


def _parse_metadata(path: Path, text: str) -> CheckpointMetadata:
    try:
        metadata = _METADATA.validate_json(text)
        json.loads(text, object_pairs_hook=_unique_keys)
        return metadata
    except (ValidationError, ValueError, RecursionError) as error:
        is_invalid = isinstance(error, ValidationError)
        lines = format_errors(error, _METADATA.json_schema()) if is_invalid else [str(error)]
        raise UnreadableFile(
            f"Cannot read the checkpoint: its metadata is invalid: {'; '.join(lines)}",
            rule="metadata has the fields of esrjax.nn.checkpoint_io.CheckpointMetadata",
            location=f"{path}, metadata {_METADATA_KEY!r}",
            remedy="convert the file again from its source, or update esrjax",
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if repeated := [key for key, count in Counter(keys).items() if count > 1]:
        raise ValueError(f"{repeated[0]} is there twice")
    return dict(pairs)


def _read_torch(path: Path, notes: list[str]) -> StateDict:
    torch = import_torch("reading a .pth file")
    if problem := _archive_problem(path):
        raise _unreadable(path, problem, "give a file written by torch.save")
    try:
        with open_regular(path) as file:  # of a path, PyTorch believes the suffix
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own text advises to load the file with weights_only=False, which runs its code.
        reason = "torch.save did not write it, or it is incomplete"
        if not isinstance(error, pickle.UnpicklingError):
            reason = f"PyTorch raised {type(error).__name__}: {error}".strip().split("\n", 1)[0]
        elif "GLOBAL" in str(error):
            raise _unsafe_checkpoint(path, error) from error
        raise _unreadable(path, reason, "give a file written by torch.save") from error
    entries = _find_state_dict(contents, torch.is_tensor, notes)
    tensors = {key: value for key, value in entries.items() if torch.is_tensor(value)}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > max(_MAX_EXPANSION * path.stat().st_size, _MIN_EXPANDED_BYTES):
        reason = f"its tensors have {num_bytes:,} bytes, more than it contains"
        raise _unreadable(path, reason, "save contiguous tensors")
    if not tensors:
        names = f" of {list_some(entries)}" if entries else ""
        reason = f"it contains no state dict, but a {type(contents).__name__}{names}"
        raise _unreadable(path, reason, "save net.state_dict()")
    if unnamed := [key for key in tensors if not isinstance(key, str)]:
        raise _unreadable(path, f"the key {unnamed[0]!r} is no name", "save net.state_dict()")
    if "n_averaged" in tensors and len(tensors) > 1:  # of torch.optim.swa_utils.AveragedModel
        del tensors["n_averaged"]
    if unused := entries.keys() - tensors.keys():
        notes.append(f"not used: {list_some(sorted(map(str, unused)))}")
    return {key: _torch_to_numpy(path, key, value) for key, value in tensors.items()}


def _archive_problem(path: Path) -> str | None:
    """Return why a zip is none of torch.save; the format before PyTorch 1.6 is no zip."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # on damaged archives almost any
        return f"it is incomplete: {error_summary(error)}"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, so that its size in memory has no bound"
    has_overlaps = sum(entry.file_size for entry in entries) > path.stat().st_size
    return "its parts are larger than it is" if has_overlaps else None


def _find_state_dict(contents: Any, is_tensor: Any, notes: list[str]) -> Mapping[Any, Any]:
    """Return the innermost state dict, and add a note where the file has several of them."""
    for _ in range(_MAX_LEVELS):
        if not isinstance(contents, Mapping):
            break
        children = {key: child for key, child in contents.items() if isinstance(child, Mapping)}
        nested = {key: child for key, child in children.items() if _has_tensors(child, is_tensor)}
        keys = [key for key in STATE_DICT_KEYS if key in nested]
        if not keys and len(nested) == 1 and not any(map(is_tensor, contents.values())):
            keys = list(nested)
            notes.append(f"the state dict is that under the key {keys[0]!r}")
        if empty := [key for key in STATE_DICT_KEYS if key in contents and key not in nested]:
            notes.append(f"without tensors: {', '.join(empty)}")
        if not keys:
            return contents
        if len(keys) > 1:
            notes.append(f"the weights are those of {keys[0]!r}; not used: {', '.join(keys[1:])}")
        contents = nested[keys[0]]
    return {}


def _has_tensors(contents: Mapping[Any, Any], is_tensor: Any) -> bool:
    seen: set[int] = set()  # a pickle can store one dictionary in many places, and in itself
    rest: list[Any] = [contents]
    while rest:
        values = list(rest.pop().values())
        if any(map(is_tensor, values)):
            return True
        unseen = [v for v in values if isinstance(v, Mapping) and id(v) not in seen]
        seen.update(map(id, unseen))
        rest += unseen
    return False


def _torch_to_numpy(path: Path, key: str, tensor: Any) -> NDArray[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.is_meta:
        sort = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
        raise _unreadable_tensor(path, key, f"{sort} {dtype}")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    try:  # NumPy lacks bfloat16
        return (tensor.float() if dtype == "bfloat16" else tensor).numpy()
    except TypeError as error:
        raise _unreadable_tensor(path, key, dtype) from error


def _unreadable_tensor(path: Path, key: str, dtype: str) -> UnreadableFile:
    return UnreadableFile(
        f"Cannot read the checkpoint: the tensor {key} is {dtype}",
        rule="weights are dense tensors of float64, float32, float16 or bfloat16",
        location=str(path),
        remedy="save the weights before they are quantized or compressed, as float32",
    )


def import_torch(purpose: str) -> Any:
    """Return the module `torch`.

    Args:
        purpose: What needs it, the subject of the error's sentence: "reading a .pth file".

    Raises:
        MissingExtra: PyTorch is not installed.
    """
    return import_extra("torch", "torch", purpose)


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
