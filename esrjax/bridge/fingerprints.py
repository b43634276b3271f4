"""SHA-256 of the files and arrays that a parity report is about."""

import hashlib
from pathlib import Path

import numpy as np

from esrjax.bridge.case import Array
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import UserError
from esrjax.network.archive import StateDict


class UnreadableFile(UserError):
    """Raised when a file that is to be hashed cannot be read."""


def hash_file(path: Path | TfdsImage) -> str:
    """Return the SHA-256 of a file's bytes, or of an image's bytes as a TFDS dataset stores them.

    Args:
        path: A file, or an image in a TFDS dataset.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnreadableFile: If the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnreadableFile(
            f"Cannot read {path}: {error.strerror or error}",
            rule="weights, code and images are hashed before they are compared",
            remedy="check the path; files of a parity report may also be in the report's folder",
        ) from error


def hash_tensors(tensors: StateDict) -> str:
    """Return the SHA-256 of a state dict, independent of its file format and key order.

    Args:
        tensors: State dict; names, dtypes, shapes and values are hashed in the order of the names.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def hash_array(array: Array) -> str:
    """Return the SHA-256 of an array's dtype, shape and values."""
    return hash_tensors({"": array})
