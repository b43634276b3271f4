"""What is compared, as sha256."""

import hashlib
from pathlib import Path

import numpy as np

from esrjax.bridge.case import Array
from esrjax.errors import UserError
from esrjax.network.archive import Tensors
from esrjax.pictures.records import Record


class Unreadable(UserError):
    """A file that is not there."""


def of_file(path: Path | Record) -> str:
    """The sha256 of the file's bytes, or of a picture as a dataset stores it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Unreadable(
            f"cannot read {path}: {error.strerror or error}",
            rule="what is compared is read from files",
            remedy="check the path; files of a certificate may also lie beside it",
        ) from error


def of_tensors(tensors: Tensors) -> str:
    """Of names, shapes, types and numbers, in the order of the names: whatever file they are in."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def of_array(array: Array) -> str:
    """Of type, shape and numbers."""
    return of_tensors({"": array})
