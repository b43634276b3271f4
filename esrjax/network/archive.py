"""Files of named tensors: PyTorch's `.pth`, and `.safetensors` with a manifest.

Both hold tensors under PyTorch's names and in PyTorch's layout.
"""

import hashlib
import json
import os
import pickle
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.errors import UserError
from esrjax.method import Form, Method

Tensors = dict[str, NDArray[Any]]

ROOTS = ("params_ema", "params", "state_dict", "model_state_dict", "model")
_MANIFEST = "esrjax"


class UnreadableCheckpoint(UserError):
    """A file that holds no tensors, or that would run code."""


class UnwritableCheckpoint(UserError):
    """A place where no file can be written."""


class MissingExtra(UserError):
    """An optional dependency that is not installed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a file says of its tensors.

    source_sha256: of the file they were converted from. certificate: of their parity with PyTorch
    (`esrjax.bridge.certificate`), where there is one.
    """

    method: str
    form: Form
    sizes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data_range: float = 1.0
    scale: int = 4
    license: str = ""
    source_sha256: str = ""
    esrjax: str = ""
    note: str = ""
    certificate: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Named tensors from a file. manifest: None in a file that is not ours."""

    path: Path
    sha256: str
    tensors: Tensors
    manifest: Manifest | None = None


def describe(
    name: str,
    method: Method,
    form: Form,
    sizes: Mapping[str, Any],
    *,
    source_sha256: str = "",
    note: str = "",
) -> Manifest:
    """The manifest of weights of `method`."""
    return Manifest(
        method=name,
        form=form,
        sizes=dict(sizes),
        data_range=method.data_range,
        scale=method.scale,
        license=method.license,
        source_sha256=source_sha256,
        esrjax=metadata.version("esrjax"),
        note=note,
    )


def read(path: str | Path) -> Checkpoint:
    """The tensors of a `.pth`, a `.safetensors` or a run directory's deployed network."""
    path = Path(path)
    try:
        path = path / "deploy.safetensors" if path.is_dir() else path
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "check the path") from error
    if path.suffix == ".safetensors":
        tensors, manifest = _read_safetensors(path)
    else:
        tensors, manifest = _read_torch(path), None
    return Checkpoint(path=path, sha256=digest, tensors=tensors, manifest=manifest)


def write_safetensors(path: str | Path, tensors: Tensors, manifest: Manifest) -> None:
    """Write `tensors` with their manifest, all or nothing."""
    from safetensors.numpy import save

    said = {key: value for key, value in asdict(manifest).items() if value is not None}
    metadata = {_MANIFEST: json.dumps(said, sort_keys=True)}
    # Not np.ascontiguousarray, which makes vectors of scalars.
    contiguous = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    _replace(Path(path), lambda file: file.write_bytes(save(contiguous, metadata)))


def write_torch(path: str | Path, tensors: Tensors, roots: Sequence[str] = ()) -> None:
    """Write `tensors` as a PyTorch state dict, under each of the keys `roots` if there are any."""
    torch = pytorch("writing a .pth file")
    state = {key: torch.from_numpy(np.array(value, order="C")) for key, value in tensors.items()}
    _replace(Path(path), lambda file: torch.save({root: state for root in roots} or state, file))


# --- reading -----------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> tuple[Tensors, Manifest | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 # not a dict
            said = (file.metadata() or {}).get(_MANIFEST)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error), "copy or download the file again") from error
    try:
        return tensors, None if said is None else Manifest(**json.loads(said))
    except (ValueError, TypeError) as error:
        why = f"its manifest is not one that this version writes: {error}"
        raise _unreadable(path, why, "convert it again, or update esrjax") from error


def _read_torch(path: Path) -> Tensors:
    torch = pytorch("reading a .pth file")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise _would_run_code(path, error) from error
        raise _unreadable(path, _why(error), "give a file written by torch.save") from error
    return _named_tensors(path, held, torch)


def _why(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # whose text advises to run it
        return "it is not what torch.save writes"
    return f"PyTorch raised {type(error).__name__}: {error}".strip().split("\n", 1)[0]


def _named_tensors(path: Path, held: Any, torch: Any) -> Tensors:
    """The state dict in what was saved: itself, or under one of `ROOTS`."""
    for root in ROOTS:
        if isinstance(held, dict) and isinstance(held.get(root), dict):
            held = held[root]
    if not isinstance(held, dict) or not any(torch.is_tensor(v) for v in held.values()):
        raise _unreadable(path, f"it holds a {type(held).__name__}", "save net.state_dict()")
    return {
        str(key).removeprefix("module."): _array(value, torch)
        for key, value in held.items()
        if torch.is_tensor(value)
    }


def _array(tensor: Any, torch: Any) -> NDArray[Any]:
    """The numbers of a tensor, trainable or not; bfloat16, which numpy lacks, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def pytorch(what: str) -> Any:
    """The module `torch`, or `MissingExtra`: `what` needs it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(
            f"{what} needs PyTorch",
            rule="PyTorch is an optional dependency",
            remedy='pip install "esrjax[torch]"',
        ) from error
    return torch


def _would_run_code(path: Path, error: Exception) -> UnreadableCheckpoint:
    wanted = next(line for line in str(error).splitlines() if "GLOBAL" in line)
    return UnreadableCheckpoint(
        "this checkpoint would run code when loaded, so it was not loaded",
        rule="only tensors and plain containers are read (torch.load with weights_only=True): "
        + wanted.strip()[:200],
        place=str(path),
        remedy="if you trust it, load it yourself and save net.state_dict() alone",
    )


def _unreadable(path: Path, why: str, remedy: str) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"cannot read the checkpoint: {why}",
        rule="a checkpoint is a .pth, a .safetensors or a run directory",
        place=str(path),
        remedy=remedy,
    )


# --- writing -----------------------------------------------------------------------------------


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside `path`, then put it in place: a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")  # replacing /dev/null would break the machine
        try:
            write(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise UnwritableCheckpoint(
            f"cannot write the checkpoint: {getattr(error, 'strerror', None) or error}",
            rule="the folder must exist or be creatable, be writable and have room",
            place=str(path),
            remedy="choose another output with -o",
        ) from error
