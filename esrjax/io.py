"""File helpers: bounded reads, atomic writes, hashes, globs, formats; folders of the user."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from io import BufferedReader
from pathlib import Path
from typing import Any

from esrjax.errors import UnreadableFile, UnwritableFile

MAX_NAME_BYTES = 255  # of a file or folder, on common file systems
MAX_TEXT_BYTES = 64 << 20  # of a result, a table, a report
MAX_TOML_BYTES = 256 << 10
_MAX_DEPTH = 64  # of nested tables and lists
_MAX_DOTS = 500  # in a line of TOML; the time for a dotted key is the square of its length


# --- reading: whatever a file contains, neither time nor memory without bound --------------------


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading in binary mode.

    Raises:
        OSError: It cannot be opened, or is no regular file: a pipe would block, and a device such
            as /dev/zero never ends.
    """

    def open_without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=open_without_waiting)  # noqa: SIM115 # the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(0, "it is no regular file", str(path))


def read_bytes(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a file.

    Args:
        path: A regular file.
        max_bytes: What it may have at most.

    Raises:
        UnreadableFile: It cannot be opened, is no regular file, or has more bytes.
    """
    try:
        with open_regular(path) as file:
            is_small = os.fstat(file.fileno()).st_size <= max_bytes
            content = file.read(max_bytes + 1) if is_small else None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if content is not None and len(content) <= max_bytes:
            return content
        reason = f"it has more than {max_bytes:,} bytes"
    raise UnreadableFile(
        f"Cannot read '{path}': {reason}",
        rule=f"it is a regular file of at most {max_bytes:,} bytes",
        remedy="check the path and its permissions",
    )


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML document.

    Raises:
        ValueError: It is not TOML, too long, or nested too deeply.
    """
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, {MAX_TOML_BYTES:,} are possible")
    if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line has more than {_MAX_DOTS} dots")
    return _parse_shallow(tomllib.loads, text)


def parse_json(text: str) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: It is not JSON, or nested too deeply.
    """
    return _parse_shallow(json.loads, text)


def _parse_shallow(parse: Callable[[str], Any], text: str) -> Any:
    with suppress(RecursionError):
        content = parse(text)
        if _is_shallow(content):
            return content
    raise ValueError(f"it has more than {_MAX_DEPTH} levels")


def _is_shallow(value: Any, depth: int = _MAX_DEPTH) -> bool:
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    nested = (child for child in children if isinstance(child, (dict, list)))  # not every number
    return depth > 0 and all(_is_shallow(child, depth - 1) for child in nested)


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path, remedy: str = "choose another output with -o") -> Generator[Path]:
    """Yield a temporary path whose file or folder replaces `path` when the block ends.

    The temporary path is in the same folder, which is created. It is flushed to the disk before it
    is renamed (see `commit`), so that after a crash `path` has its old or its new content. After an
    exception nothing is left behind.

    Args:
        path: A file, new or existing, or a new or empty folder.
        remedy: What the user can do where `path` cannot be written.

    Raises:
        UnwritableFile: The path cannot be written to.
    """
    # Cut, because the longest name of a file system leaves no room for more characters.
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("it is not a file")  # os.replace would replace even /dev/null
        yield partial
        commit(partial, path)
    except (FileExistsError, NotADirectoryError) as error:
        raise _unwritable(path, f"'{path.parent}' is not a folder", remedy) from error
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), remedy) from error
    finally:
        _discard(partial)


def commit(partial: Path, path: Path) -> None:
    """Rename a file or folder that is complete; it survives a crash of the machine from then on.

    Args:
        partial: The file or folder; its content is flushed to the disk first.
        path: Its new name in the same folder: a file, an empty folder, or nothing yet.

    Raises:
        OSError: It cannot be flushed or renamed.
    """
    for entry in (*partial.rglob("*"), partial):
        _flush(entry)
    os.replace(partial, path)
    _flush(path.parent)  # the new name itself


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # a folder that may be written to but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, link or folder at once: a folder is renamed first, so that no part remains.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        hidden = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.partial")
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what `atomic_write` and `remove` leave in a folder when their process is killed."""
    for path in folder.glob(".*.partial*"):
        _discard(path)


def _discard(path: Path) -> None:
    """Delete a file or folder, if there is one and the disk allows it."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def write_bytes(path: Path, data: bytes, remedy: str = "choose another output with -o") -> None:
    """Write a file atomically, see `atomic_write`."""
    with atomic_write(path, remedy) as partial:
        partial.write_bytes(data)


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise `UnwritableFile` if an output is one of the inputs.

    Files are compared by identity: a link, another spelling of the path, and another case where the
    file system ignores case are the same file.

    Args:
        outputs: Files that will be written; one that does not exist yet is no input.
        inputs: Files, and folders, which stand for the files directly in them. None and what does
            not exist are skipped.
    """
    input_of = {_file_id(path): path for path in inputs if path is not None}
    for output in outputs:
        if (output_id := _file_id(output)) is None:
            continue
        folder_id = _file_id(Path(os.path.realpath(output)).parent)
        if source := input_of.get(output_id) or input_of.get(folder_id):
            raise UnwritableFile(
                f"'{output}' would be overwritten, but is an input",
                rule="an output is another file than every input, also under another name or "
                "through a link",
                location=str(source),
                remedy="choose another output with -o",
            )


def _file_id(path: Path) -> tuple[int, int] | None:
    """Return what identifies a file or folder on this machine; None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_writable(path: Path, remedy: str = "choose another output with -o") -> None:
    """Raise `UnwritableFile` unless a file can be created at `path`, whose folders may be new."""
    absolute = path.absolute()
    folder = next(parent for parent in absolute.parents if os.path.lexists(parent))
    long_names = [name for name in absolute.parts if len(os.fsencode(name)) > MAX_NAME_BYTES]
    if long_names:
        num_bytes = len(os.fsencode(long_names[0]))
        reason = f"a name has {num_bytes} bytes, {MAX_NAME_BYTES} are possible"
    elif not os.path.isdir(folder):
        reason = f"'{folder}' is not a folder"
    elif os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        reason = "it is a folder" if os.path.isdir(path) else "it is not a file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"no write permission in '{folder}'"
    else:
        return
    raise _unwritable(path, reason, remedy)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- names and folders ---------------------------------------------------------------------------


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the glob patterns; case matters."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unmatched_patterns(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the glob patterns that match none of the names."""
    names = list(names)
    return [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]


def cache_dir(name: str) -> Path:
    """Return the folder `name` of the user's cache: the first of `cache_dirs` that is writable.

    What it contains can be downloaded or computed again.

    Raises:
        UnwritableFile: There is none.
    """
    for folder in cache_dirs(name):
        if _is_writable_dir(folder):
            return folder
    raise UnwritableFile(
        "There is no folder for a cache",
        rule="it is in $XDG_CACHE_HOME, ~/.cache or the folder of temporary files",
        remedy="set XDG_CACHE_HOME to a folder that can be written to",
    )


def cache_dirs(name: str) -> Iterator[Path]:
    """Yield the possible folders `name` of the user's cache.

    These are `$XDG_CACHE_HOME/esrjax`, else `~/.cache/esrjax`, and, for a user without a writable
    home, `esrjax-UID` in the folder of temporary files, unless another user can write to it.
    """
    if xdg_cache_home := os.environ.get("XDG_CACHE_HOME"):
        yield Path(xdg_cache_home) / "esrjax" / name
    elif os.path.isabs(home := os.path.expanduser("~")):
        yield Path(home) / ".cache/esrjax" / name
    user_id = getattr(os, "getuid", int)()
    with suppress(OSError):  # there is no folder of temporary files
        temporary = Path(tempfile.gettempdir()) / f"esrjax-{user_id}"
        if _is_private(temporary, user_id):
            yield temporary / name


def _is_private(folder: Path, user_id: int) -> bool:
    """Return whether a folder is new, or belongs to the user and nobody else can write to it."""
    if not os.path.lexists(folder):
        return True
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user_id and not status.st_mode & 0o022


def _is_writable_dir(folder: Path) -> bool:
    """Return whether files can be created in a folder, which may be new."""
    existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK)


def data_dirs() -> list[Path]:
    """Return the folders of datasets: `$ESRJAX_DATA` and `$ESRJAX_REFERENCE/data`, where set."""
    return _env_dirs(("ESRJAX_DATA", ""), ("ESRJAX_REFERENCE", "data"))


def weights_dir() -> Path:
    """Return the folder to which weights are downloaded: `$ESRJAX_DATA/weights`, else a cache."""
    folders = _env_dirs(("ESRJAX_DATA", "weights"))
    return folders[0] if folders else cache_dir("weights")


def download_dirs() -> list[Path]:
    """Return the folders that may have downloaded weights."""
    return _env_dirs(("ESRJAX_DATA", "weights")) or list(cache_dirs("weights"))


def weights_dirs() -> list[Path]:
    """Return the folders in which checkpoints are looked up by name."""
    folders = _env_dirs(("ESRJAX_DATA", ""), ("ESRJAX_DATA", "weights"))
    folders += _env_dirs(("ESRJAX_REFERENCE", "weights"))
    return list(dict.fromkeys([*folders, *cache_dirs("weights")]))


def _env_dirs(*folders: tuple[str, str]) -> list[Path]:
    return [Path(os.environ[key]) / folder for key, folder in folders if os.environ.get(key)]


def _unwritable(path: Path, reason: str, remedy: str) -> UnwritableFile:
    return UnwritableFile(
        f"Cannot write '{path}': {reason}",
        rule="the folder must exist or be creatable, be writable and have free space",
        location=str(path),
        remedy=remedy,
    )


# --- formats of files of weights -----------------------------------------------------------------

# Formats that esrjax reads; `file_format` describes any other one in words.
SAFETENSORS, TORCH, ONNX = "a safetensors file", "a PyTorch file", "an ONNX model"
_SUFFIXES = {
    ".safetensors": SAFETENSORS,
    ".onnx": ONNX,
    ".pth": TORCH,
    ".pt": TORCH,
    ".ckpt": TORCH,
}
_HEAD_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file
_MAGIC = {
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
    b"\x80": TORCH,  # a pickle
}
# After the version of the format, an ONNX model has one of its fields 2 to 8 or 20.
_ONNX_TAGS = b"\x12\x1a\x22\x28\x32\x3a\x42\xa2"


def file_format(path: Path) -> str:
    """Return the format of a file: `SAFETENSORS`, `TORCH`, `ONNX`, or what else it is, in words.

    Args:
        path: A file.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_HEADER_BYTES:
        return SAFETENSORS
    if head.startswith(b"PK"):
        return _zip_format(path)
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head[:1] == b"\x08" and head[2:3] in list(map(bytes, zip(_ONNX_TAGS, strict=True))):
        return ONNX
    if head[257:262] == b"ustar":
        return "a tar archive"
    return _text_format(head)


def is_onnx(path: Path) -> bool:
    """Return whether a path is an ONNX model, by its content; without a file, by its suffix."""
    try:
        return file_format(path) == ONNX
    except OSError:
        return path.suffix == ".onnx"


def format_note(path: Path, name: str) -> str | None:
    """Return a note if the suffix of a file stands for another format than `name`."""
    expected = _SUFFIXES.get(path.suffix.lower(), name)
    return None if expected == name else f"it is {name}, not {expected} as its suffix says"


def _zip_format(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # on damaged archives almost any
        return "an incomplete archive (of torch.save or NumPy)"
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript archive, a program with its weights"
    if any(name.endswith("data.pkl") for name in names):
        return TORCH
    has_arrays = bool(names) and all(name.endswith(".npy") for name in names)
    return "a NumPy archive (.npz)" if has_arrays else "a zip archive"


def _text_format(head: bytes) -> str:
    if not head:
        return "an empty file"
    text = head.decode("utf-8", "replace")
    without_breaks = text.translate(dict.fromkeys(map(ord, "\n\r\t")))
    if not without_breaks.rstrip("\ufffd").isprintable():  # a character may be cut at the end
        return "of no known format"
    start = text.split("\n", 1)[0][:40]
    is_html = text.lstrip().lower().startswith(("<!doctype", "<html"))
    return f"an HTML page, {start!r}" if is_html else f"a text file, {start!r}"
