"""The format of a file of weights, told by its content: a suffix may be wrong."""

import zipfile
from pathlib import Path

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
    with path.open("rb") as file:
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
    except zipfile.BadZipFile:
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
    if (
        not text.replace("\n", "")
        .replace("\r", "")
        .replace("\t", "")
        .rstrip("\ufffd")
        .isprintable()
    ):
        return "of no known format"
    start = text.split("\n", 1)[0][:40]
    is_html = text.lstrip().lower().startswith(("<!doctype", "<html"))
    return f"an HTML page, {start!r}" if is_html else f"a text file, {start!r}"
