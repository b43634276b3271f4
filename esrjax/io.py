"""File helpers: atomic writes, checks of outputs, hashes, glob patterns; folders of the user."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from esrjax.errors import UnwritableFile

MAX_NAME_BYTES = 255  # of a file or folder, on common file systems


@contextmanager
def atomic_write(path: Path, remedy: str = "choose another output with -o") -> Generator[Path]:
    """Yield a temporary path whose file or folder replaces `path` when the block ends.

    The temporary path is in the same folder, which is created. A file is flushed to the disk before
    it is renamed, so that after a crash `path` has its old or its new content. After an exception
    nothing is left behind.

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
        if partial.is_file():
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except (FileExistsError, NotADirectoryError) as error:
        raise _unwritable(path, f"'{path.parent}' is not a folder", remedy) from error
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error), remedy) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.is_file():
            partial.unlink()


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the glob patterns; case matters."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unmatched_patterns(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the glob patterns that match none of the names."""
    names = list(names)
    return [pattern for pattern in patterns if not any(fnmatchcase(n, pattern) for n in names)]


def cache_dir(name: str) -> Path:
    """Return the folder `name` in `$XDG_CACHE_HOME/esrjax`, else in `~/.cache/esrjax`.

    What it contains can be downloaded or computed again.
    """
    xdg_cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache") / "esrjax" / name


def data_dirs() -> list[Path]:
    """Return the folders of datasets: `$ESRJAX_DATA` and `$ESRJAX_REFERENCE/data`, where set."""
    return _env_dirs(("ESRJAX_DATA", ""), ("ESRJAX_REFERENCE", "data"))


def weights_dir() -> Path:
    """Return the folder of downloaded weights: `$ESRJAX_DATA/weights`, else the user's cache."""
    folders = _env_dirs(("ESRJAX_DATA", "weights"))
    return folders[0] if folders else cache_dir("weights")


def weights_dirs() -> list[Path]:
    """Return the folders in which checkpoints are looked up by name."""
    folders = _env_dirs(("ESRJAX_DATA", ""), ("ESRJAX_DATA", "weights"))
    folders += _env_dirs(("ESRJAX_REFERENCE", "weights"))
    return list(dict.fromkeys([*folders, weights_dir()]))


def _env_dirs(*folders: tuple[str, str]) -> list[Path]:
    return [Path(os.environ[key]) / folder for key, folder in folders if os.environ.get(key)]


def _unwritable(path: Path, reason: str, remedy: str) -> UnwritableFile:
    return UnwritableFile(
        f"Cannot write '{path}': {reason}",
        rule="the folder must exist or be creatable, be writable and have free space",
        location=str(path),
        remedy=remedy,
    )
