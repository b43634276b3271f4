"""Pictures on disk: any mode in, 8-bit RGB out."""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from esrjax.errors import UserError
from esrjax.pictures import samples as samples_of
from esrjax.pictures.samples import FORMATS, Samples, Source

Pixels = NDArray[np.uint8]  # (h, w, 3), RGB

# Suffix -> Pillow's format and options: lossless where the format can be, else as good as it gets.
SUFFIXES: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
    ".bmp": ("BMP", {}),
}

_AGAIN = "save it again, or download it again"


class UnreadablePicture(UserError):
    """A file that is not there, or of which no picture can be made."""


class UnwritablePicture(UserError):
    """A picture that cannot be put where it should go."""


class PicturesNotFound(UserError):
    """Paths that lead to no pictures."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as (h, w, 3) RGB bytes, and what was lost or changed on the way from its file."""

    pixels: Pixels
    notes: tuple[str, ...] = ()


def read(path: str | Path) -> Picture:
    """The picture in a file: upright, white where transparent, 8 bits, three channels."""
    path = Path(path)
    _check_is_file(path)
    return decode(path, path)


def size(path: str | Path) -> tuple[int, int]:
    """(h, w) of the picture in a file, upright; its header alone is read."""
    path = Path(path)
    _check_is_file(path)
    return measure(path, path)


def decode(source: Source, place: object) -> Picture:
    """The picture in a file or in its bytes; `place` is what it is called if there is none."""
    try:
        samples, notes = samples_of.decode(source)
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise _unreadable(place, _reason(error), _AGAIN) from error
    if samples.shape[2] < 3:
        notes = ("grey repeated in three channels", *notes)
    if samples.shape[2] in (2, 4):
        samples, notes = _lay_over_white(samples, notes)
    return Picture(pixels=_to_rgb(samples), notes=notes)


def measure(source: Source, place: object) -> tuple[int, int]:
    """(h, w) of the picture in a file or in its bytes, upright, from its header alone."""
    try:
        return samples_of.size(source)
    except Exception as error:  # on damaged files Pillow raises almost anything
        raise _unreadable(place, _reason(error), _AGAIN) from error


def write(path: str | Path, pixels: Pixels) -> None:
    """Put (h, w, 3) bytes into a file, whole or not at all; the suffix names the format."""
    path = Path(path)
    data = _encode(path, pixels)
    partial = path.with_name(f".esrjax-{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except (FileExistsError, NotADirectoryError) as error:
        raise _unwritable(path, f"'{path.parent}' cannot be a folder, a file is there") from error
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def find(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The files named and the pictures in the folders named (not in theirs), sorted, each once."""
    given = [Path(path) for path in paths]
    if missing := [path for path in given if not path.exists()]:
        raise _not_found("there is nothing at", missing)
    found = {file for path in given for file in (inside(path) if path.is_dir() else (path,))}
    if not found:
        raise _not_found("there is no picture in", given)
    return tuple(sorted(found))


def inside(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, told by suffix, sorted; hidden files are none."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _lay_over_white(samples: Samples, notes: tuple[str, ...]) -> tuple[Samples, tuple[str, ...]]:
    """Without the alpha channel; where all is opaque there is nothing to say."""
    white = np.iinfo(samples.dtype).max
    colours, alpha = samples[..., :-1], samples[..., -1:].astype(np.int64)
    if (alpha == white).all():
        return colours, notes
    blended = (colours * alpha + white * (white - alpha) + white // 2) // white
    return blended.astype(samples.dtype), (*notes, "transparency laid over white")


def _to_rgb(samples: Samples) -> Pixels:
    """(h, w, 1 or 3) of 8 or 16 bits -> (h, w, 3) bytes; 16 bits become round(value / 257)."""
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.array(np.broadcast_to(samples, (*samples.shape[:2], 3)), np.uint8)


def _encode(path: Path, pixels: Pixels) -> bytes:
    if path.suffix.lower() not in SUFFIXES:
        raise _unwritable(path, f"the suffix '{path.suffix}' names no format that is written")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise _unwritable(path, f"the pixels are {pixels.dtype} {pixels.shape}")
    kind, options = SUFFIXES[path.suffix.lower()]
    stream = BytesIO()
    try:
        Image.fromarray(pixels).save(stream, kind, **options)
    except (OSError, ValueError) as error:  # sides beyond what the format can say
        raise _unwritable(path, f"{kind} cannot hold {pixels.shape}: {error}") from error
    return stream.getvalue()


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise _unreadable(path, "there is no such file", "check the path")
    if path.is_dir():
        raise _unreadable(path, "it is a folder", "name a picture in it")
    if not path.is_file() or not path.stat().st_size:
        raise _unreadable(path, "it is empty", _AGAIN)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is not that of a picture"
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: object, reason: str, remedy: str) -> UnreadablePicture:
    rule = f"a picture is a whole file in one of the formats {', '.join(FORMATS)}"
    return UnreadablePicture(f"'{path}' cannot be read: {reason}", rule=rule, remedy=remedy)


def _unwritable(path: Path, reason: str) -> UnwritablePicture:
    rule = f"pictures are uint8 (h, w, 3) and their files end in {', '.join(SUFFIXES)}"
    remedy = "choose another file name or folder, or mend the pixels"
    return UnwritablePicture(f"'{path}' cannot be written: {reason}", rule=rule, remedy=remedy)


def _not_found(what: str, paths: list[Path]) -> PicturesNotFound:
    named = ", ".join(f"'{path}'" for path in paths) or "an empty list of paths"
    rule = f"name pictures, or folders in which pictures lie ({', '.join(SUFFIXES)})"
    return PicturesNotFound(f"{what} {named}", rule=rule, remedy="check the paths")
