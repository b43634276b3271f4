"""Hostile files for every reader: each is refused in words, in bounded time and memory.

Pipes, devices, bombs, headers that promise what does not follow, nesting, odd types and names.
"""

import contextlib
import functools
import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from attack.case import Case, find_excess, find_refusal_fault, run_in_process
from esrjax.challenge import published_table, record, results, rules
from esrjax.data import image_io
from esrjax.interop import engines, parity, parity_report, similar
from esrjax.nn import checkpoint_io
from esrjax.training import recipe_loader

SECONDS, MIB = 20.0, 900  # 180 million pixels are 540 MB
READERS: Mapping[str, tuple[str, Callable[[Path], object]]] = {  # name -> suffix, reader
    "image": (".png", image_io.read_image),
    "image size": (".jpg", image_io.read_image_size),
    "pth": (".pth", checkpoint_io.read_checkpoint),
    "safetensors": (".safetensors", checkpoint_io.read_checkpoint),
    "golden": (".npz", parity.read_golden),
    "onnx": (".onnx", engines.open_onnx),
    "clip": (".onnx", similar.load_image_encoder),
    "results.json": (".json", lambda path: results.read_rows(path, rules.load_rules("ntire2026"))),
    "results.csv": (".csv", lambda path: results.read_rows(path, rules.load_rules("ntire2026"))),
    "published table": (".csv", published_table.read_table),
    "result": (".json", record.load_result),
    "recipe.toml": (".toml", recipe_loader.load),
    "recipe.json": (".json", recipe_loader.load),
    "rules": (".toml", rules.load_rules),
    "parity report": (".json", parity_report.read),
}

# --- paths, for every reader ---------------------------------------------------------------------


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)  # its address has at most 107 bytes


PATHS: Mapping[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe"))[1],
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": _socket,
    "folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
    "empty": lambda path: path.touch(),
    "3 GiB of zeros": _sparse,
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)) and None,
    "a page of HTML": lambda path: path.write_text("<!DOCTYPE html><html>quota") and None,
}

# --- content -------------------------------------------------------------------------------------


def _png_chunk(chunk_type: bytes, data: bytes) -> bytes:
    return (
        struct.pack(">I", len(data))
        + chunk_type
        + data
        + struct.pack(">I", zlib.crc32(chunk_type + data))
    )


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _png_chunk(b"IEND", b"")


def _idat(num_bytes: int) -> bytes:
    return _png_chunk(b"IDAT", zlib.compress(bytes(num_bytes), 9))


def _image(format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (9, 99, 200)).save(stream, format, **options)
    return stream.getvalue()


def _patch(content: bytes, index: int, data: bytes) -> bytes:
    return content[:index] + data + content[index + len(data) :]


def _tiff_tag(tag: int, value: int) -> bytes:
    """A small TIFF of which one tag (a LONG or SHORT) has another value."""
    content = bytearray(_image("TIFF"))
    start = struct.unpack_from("<I", content, 4)[0]
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HHII", content, entry, tag, 4, 1, value)
    return bytes(content)


JPEG_SIZE = _image("JPEG").index(b"\xff\xc0") + 5
IMAGES: Mapping[str, bytes] = {
    "PNG of 2**31 pixels a side": _png(2**31 - 1, 2**31 - 1, _idat(99)),
    "PNG of 30,000 pixels a side": _png(30000, 30000, _idat(99)),
    "PNG of 13,000 pixels a side without data": _png(13000, 13000, _idat(99)),
    "PNG of no pixels": _png(0, 0, _idat(0)),
    "PNG whose data end early": _png(800, 800, _idat(999)),
    "PNG without data": _png(8, 8),
    "PNG without header": b"\x89PNG\r\n\x1a\n" + _idat(99),
    "PNG with a chunk of 4 GiB": _png(8, 8)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(50),
    "PNG of 64 bits": _png(8, 8, _idat(9999), depth=64),
    "PNG of colour type 9": _png(8, 8, _idat(999), color=9),
    "PNG without palette": _png(8, 8, _idat(8), color=3),
    "PNG cut": _image("PNG")[:50],
    "PNG with a bomb of text": _png(
        8, 8, _png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "PNG with a bomb of a profile": _png(
        8, 8, _png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 9))
    ),
    "JPEG of 65,500 pixels a side": _patch(
        _image("JPEG"), JPEG_SIZE, struct.pack(">HH", 65500, 65500)
    ),
    "JPEG of 0 pixels": _patch(_image("JPEG"), JPEG_SIZE, bytes(4)),
    "JPEG without end": _image("JPEG")[:100],
    "JPEG of nothing": b"\xff\xd8\xff\xd9",
    "GIF of 65,535 pixels a side": _patch(_image("GIF"), 6, b"\xff\xff\xff\xff"),
    "GIF cut": _image("GIF")[:20],
    "BMP of 2**30 pixels a side": _patch(_image("BMP"), 18, struct.pack("<ii", 2**30, 2**30)),
    "BMP of negative width": _patch(_image("BMP"), 18, struct.pack("<i", -16)),
    "BMP with data beyond its end": _patch(_image("BMP"), 10, struct.pack("<I", 2**31)),
    "TIFF of 2**31 pixels wide": _tiff_tag(256, 2**31),
    "TIFF of 2**31 rows": _tiff_tag(257, 2**31),
    "TIFF with strips beyond its end": _tiff_tag(273, 2**32 - 1),
    "TIFF of 0 samples": _tiff_tag(277, 0),
    "TIFF of 2**30 samples": _tiff_tag(277, 2**30),
    "TIFF of 2**16 bits": _tiff_tag(258, 2**16),
    "TIFF of an unknown compression": _tiff_tag(259, 7777),
    "TIFF whose directory is beyond its end": b"II*\0" + struct.pack("<I", 2**31),
    "TIFF whose directory is itself": b"II*\0" + struct.pack("<IHI", 8, 0, 8),
    "TIFF with 65,535 tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(100),
    "WebP of 16,383 pixels a side, cut": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(30),
    "PPM of 10**9 pixels a side": b"P6 999999999 999999999 255\n",
    "PPM of 10**5 pixels a side": b"P6 100000 100000 255\n",
    "PPM of negative size": b"P6 -5 -5 255\n" + bytes(75),
    "PPM with a number of a megabyte": b"P6 " + b"9" * 10**6,
    "PPM of text": b"P3 9999 9999 255 " + b"1 " * 99,
    "JPEG 2000 cut": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50),
    "AVIF cut": b"\0\0\0\x1cftypavif" + bytes(50),
    "EPS, which would run a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run",
}


class _System:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


class _Allocate:
    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (10**15,)


def _nested(levels: int, opening: bytes, closing: bytes) -> bytes:
    return opening * levels + closing * levels


def _torch(contents: object, **options: object) -> bytes:
    torch = checkpoint_io.import_torch("an attack")
    stream = io.BytesIO()
    torch.save(contents, stream, **options)
    return stream.getvalue()


def _tensor(*shape: int) -> object:
    return checkpoint_io.import_torch("an attack").zeros(shape)


def _repacked(content: bytes, compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), compression)
    return stream.getvalue()


def _shared_dictionaries(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {"x": 1}
    for _ in range(levels):
        inner = {"a": inner, "b": inner}
    return inner


def _deep_dictionary(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {"w": _tensor(3)}
    for _ in range(levels):
        inner = {"net": inner}
    return inner


def _endless_dictionary() -> dict[str, object]:
    endless: dict[str, object] = {}
    endless["params"] = endless
    return endless


PTH: Mapping[str, Callable[[], bytes]] = {
    "code": lambda: _torch({"a": _System()}),
    "code in a plain pickle": lambda: pickle.dumps(_System()),
    "a petabyte of bytes": lambda: pickle.dumps(_Allocate(), protocol=2),
    "deflated": lambda: _repacked(_torch({"a": _tensor(999)}), zipfile.ZIP_DEFLATED),
    "compressed by bzip2": lambda: _repacked(_torch({"a": _tensor(999)}), zipfile.ZIP_BZIP2),
    "a tensor expanded to a terabyte": lambda: _torch({"a": _tensor(1).expand(2**18, 2**20)}),  # pyright: ignore
    "a thousand tensors that share memory": lambda: _torch(
        {str(k): _tensor(1).expand(2**10, 2**10) for k in range(1000)}  # pyright: ignore
    ),
    "dictionaries in 2**60 places": lambda: _torch({"model": _shared_dictionaries(60)}),
    "a dictionary in itself": lambda: _torch(_endless_dictionary()),
    "dictionaries of 90 levels": lambda: _torch(_deep_dictionary(90)),
    "lists of 100,000 levels": lambda: b"\x80\x02" + b"]" * 100000 + b"a" * 99999 + b".",
    "tuples of 100,000 levels": lambda: b"\x80\x02)" + b"\x85" * 100000 + b".",
    "no state dict": lambda: _torch([1, 2]),
    "a tensor": lambda: _torch(_tensor(3)),
    "numbers as names": lambda: _torch({1: _tensor(3)}),
    "names with escapes": lambda: _torch({"\x1b[2J": _tensor(3).to("meta")}),  # pyright: ignore
    "a name of a megabyte": lambda: _torch({"x" * 10**6: _tensor(3).to("meta")}),  # pyright: ignore
    "sparse": lambda: _torch({"a": _tensor(3, 3).to_sparse()}),  # pyright: ignore
    "cut in the middle": lambda: _torch({"a": _tensor(999)})[:2000],
    "cut, in the old format": lambda: _torch(
        {"a": _tensor(999)}, _use_new_zipfile_serialization=False
    )[:900],
    "a storage of a terabyte, in the old format": lambda: _torch(
        {"a": _tensor(77)}, _use_new_zipfile_serialization=False
    ).replace(b"KM", b"\x8a\x05\0\0\0\0\x01"),
    "a zip without entries": lambda: b"PK\5\6" + bytes(18),
    "a zip that says 65,535 entries": lambda: b"PK\5\6" + bytes(4) + b"\xff" * 14,
    "a tar": lambda: b"a".ljust(257, b"\0") + b"ustar" + bytes(250),
    "the magic number of the old format alone": lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2),
}


def _header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _one(dtype: object, shape: object, offsets: object, data: bytes = bytes(12)) -> bytes:
    return _header({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data)


def _metadata(text: str) -> bytes:
    tensor = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    return _header({"__metadata__": {"esrjax": text}, "a": tensor}, bytes(12))


SAFETENSORS: Mapping[str, bytes] = {
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 100 MB that is not there": struct.pack("<Q", 10**8) + b"{" + bytes(99),
    "a header of no JSON": _header(b"{x"),
    "a header of 100,000 levels": _header(b'{"a":' + _nested(100000, b"[", b"]") + b"}"),
    "a header that is no UTF-8": _header(b'{"\xff":1}'),
    "no tensor field": _header({"a": {}}),
    "offsets beyond the end": _one("F32", [3], [0, 2**40]),
    "offsets reversed": _one("F32", [3], [12, 0]),
    "offsets negative": _one("F32", [3], [-12, 0]),
    "offsets that leave a gap": _one("F32", [3], [4, 16], bytes(16)),
    "a shape of 2**60": _one("F32", [2**60], [0, 12]),
    "a shape that overflows": _one("F32", [2**62, 2**62], [0, 12]),
    "a shape of text": _one("F32", "3", [0, 12]),
    "a shape of floats": _one("F32", [3.5], [0, 12]),
    "an unknown type": _one("F99", [3], [0, 12]),
    "a type of 8 bits": _one("F8_E4M3", [12], [0, 12]),
    "two tensors in one place": _header(
        {k: {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} for k in "ab"}, bytes(12)
    ),
    "data after the last tensor": _one("F32", [3], [0, 12], bytes(99)),
    "metadata that is a number": _header({"__metadata__": 3}),
    "metadata of numbers": _header({"__metadata__": {"esrjax": 3}}),
    "our metadata, empty": _metadata(""),
    "our metadata, a list": _metadata("[1]"),
    "our metadata, of 100,000 levels": _metadata("[" * 100000),
    "our metadata, of 1,000 levels": _metadata('{"hparams":' + "[" * 990 + "]" * 990 + "}"),
    "our metadata, twice the same key": _metadata('{"method":"a","method":"b","form":"deploy"}'),
    "our metadata, 10,000 unknown keys": _metadata(json.dumps({f"k{n}": n for n in range(10**4)})),
    "our metadata, escapes": _metadata('{"method": "\\u001b[2J", "form": "\\u001b[2J"}'),
    "our metadata, a number of 9,999 digits": _metadata('{"scale":' + "9" * 9999 + "}"),
    "our metadata, NaN": _metadata('{"method":"a","form":"deploy","data_range":NaN}'),
    "our metadata, scale 0": _metadata('{"method":"a","form":"deploy","scale":0}'),
}


def _npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + data


def _npz(*, compression: int = zipfile.ZIP_STORED, **entries: object) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, entry in entries.items():
            buffer = io.BytesIO()
            if not isinstance(entry, bytes):
                np.save(buffer, np.asarray(entry))
            archive.writestr(
                f"{name}.npy", entry if isinstance(entry, bytes) else buffer.getvalue()
            )
    return stream.getvalue()


def _descr(descr: object, shape: object) -> str:
    return repr({"descr": descr, "fortran_order": False, "shape": shape}) + "\n"


def _npz_bomb() -> bytes:
    """Two zip entries of 3 GiB each, of which little is stored."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x0.npy", bytes(5000))
        archive.writestr("y0.npy", bytes(5000))
    size = struct.pack("<I", 5000)
    return stream.getvalue().replace(size, struct.pack("<I", 3 << 30))


X, Y = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 3, 32, 32), np.float32)
NPZ: Mapping[str, Callable[[], bytes]] = {
    "a bomb": _npz_bomb,
    "a shape of 2**50": lambda: _npz(x0=_npy(_descr("<f4", (2**50,))), y0=Y),
    "a shape that overflows": lambda: _npz(x0=_npy(_descr("<f4", (2**62, 2**62))), y0=Y),
    "a negative shape": lambda: _npz(x0=_npy(_descr("<f4", (-1, 3)), bytes(12)), y0=Y),
    "objects": lambda: _npz(x0=_npy(_descr("|O", (1,)), pickle.dumps([_System()])), y0=Y),
    "an unknown type": lambda: _npz(x0=_npy(_descr("<q9", (1,)), bytes(9)), y0=Y),
    "a type of no bytes": lambda: _npz(x0=_npy(_descr("|S0", (2**40,))), y0=Y),
    "a header that is code": lambda: _npz(x0=_npy("__import__('os').system('x')\n"), y0=Y),
    "a header of 9,000 levels": lambda: _npz(x0=_npy("(" * 9000), y0=Y),
    "a header that ends early": lambda: _npz(x0=b"\x93NUMPY\1\0\xff\xff{", y0=Y),
    "an unknown version": lambda: _npz(x0=_npy("{}", version=b"\7\0"), y0=Y),
    "no array": lambda: _npz(x0=b"hello", y0=Y),
    "an array that ends early": lambda: _npz(x0=_npy(_descr("<f4", (1, 3, 8, 8)), bytes(9)), y0=Y),
    "a zip without entries": lambda: b"PK\5\6" + bytes(18),
    "cut": lambda: _npz(x0=X, y0=Y)[:700],
    "encrypted": lambda: _npz(x0=X, y0=Y).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
    "an unknown compression": lambda: _npz(x0=X, y0=Y).replace(
        b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x63"
    ),
    "no output": lambda: _npz(x0=X),
    "rank 3": lambda: _npz(x0=X[0], y0=Y),
    "5 channels": lambda: _npz(x0=np.zeros((1, 5, 8, 8), "f4"), y0=Y),
    "no pixels": lambda: _npz(x0=np.zeros((1, 3, 0, 0), "f4"), y0=Y),
    "complex": lambda: _npz(x0=X.astype("c8"), y0=Y),
    "text": lambda: _npz(x0=np.array("abc"), y0=Y),
    "dates": lambda: _npz(x0=np.zeros((1, 3, 8, 8), "M8[s]"), y0=Y),
    "records": lambda: _npz(x0=np.zeros((1, 3, 8, 8), "f4,i4"), y0=Y),
    "NaN": lambda: _npz(x0=X * np.nan, y0=Y),
    "truth values": lambda: _npz(x0=X > 0, y0=Y),
}

DEEP = "[" * 100_000 + "]" * 100_000
TEXTS: Mapping[str, bytes] = {  # for all readers of text
    "100,000 levels": DEEP.encode(),
    "500 levels": b'{"a":' * 500 + b"1" + b"}" * 500,
    "a number of a megabyte": b"9" * 10**6,
    "a byte that is no UTF-8": b'{"a": "\xff"}',
    "null characters": bytes(1000),
    "half of UTF-16": b"\xff\xfe{",
    "escapes": b'\x1b[2J\x07{"\x1b[31m": 1}',
    "a line of a megabyte": b"x" * 10**6,
    "infinity": b'{"a": 1e999}',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "twice the same key": b'{"a": {}, "a": {}}',
    "a key of a megabyte": b'{"' + b"k" * 10**6 + b'": {}}',
    "100,000 keys": json.dumps({f"k{n}": {} for n in range(100_000)}).encode(),
    "100,000 columns": b"a," * 100_000 + b"\n1\n",
    "100,000 equal columns and as many lines": b",".join([b"team"] * 99_999) + b"\n1" * 99_999,
    "a quote without end": b'team,psnr\n"' + b"x" * 200_000,
}
TOML: Mapping[str, bytes] = {
    "100,000 levels": ("a = " + DEEP).encode(),
    "500 levels": ("a = " + "[" * 500 + "]" * 500).encode(),
    "tables of 500 levels": ("a = " + "{b = " * 500 + "1" + "}" * 500).encode(),
    "a key of 50,000 parts": b"a." * 50_000 + b"a = 1",
    "a table of 400 parts": b"[" + b"a." * 400 + b"a]\nb = 1",
    "400 parts in each of 100 lines": b"".join(b"a." * 400 + b"b%d = 1\n" % n for n in range(100)),
    "a megabyte": b"# x\n" * 250_000,
    "a number of 99,999 digits": b"seed = " + b"9" * 99_999,
    "a hexadecimal number of 99,999 digits": b"seed = 0x" + b"f" * 99_999,
    "twice the same key": b"a = 1\na = 2",
    "no end": b'method = "span',
    "escapes": b'method = "\\u001b[2J"\n"\\u001b[31m" = 1',
    "a key of 100,000 characters": b"k" * 100_000 + b" = 1",
    "infinity": b"seed = inf",
    "a date": b"seed = 2026-11-30",
    "stages that are numbers": b'method = "span"\nstage = 3\ndefaults = 4',
    "10,000 stages": b'method = "span"\n' + b"[[stage]]\n" * 10_000,
}

CONTENTS: Mapping[str, Mapping[str, bytes | Callable[[], bytes]]] = {  # reader -> what -> content
    "image": IMAGES,
    "pth": PTH,
    "safetensors": SAFETENSORS,
    "golden": NPZ,
    "recipe.toml": TOML,
    "rules": TOML,
    **dict.fromkeys(("results.json", "results.csv", "recipe.json", "parity report"), TEXTS),
}


OPTIONS: Mapping[str, tuple[str, ...]] = {  # what -> a command with a hostile value
    "an image size of 5,000 digits": ("method", "cost", "span", "--image-size", "9" * 5000),
    "an image size of 9 digits squared": ("method", "cost", "span", "--image-size", "9" * 12),
    "an image size of nothing": ("method", "cost", "span", "--image-size", "x"),
    "a hyperparameter of 9,000 levels": ("method", "cost", "span", "--hparam", f"a={'(' * 9000}"),
    "a hyperparameter of a megabyte": ("method", "cost", "span", "--hparam", "a=" + "9" * 10**6),
    "arguments of 100,000 levels": ("parity", "span", "--torch", "n.py:N", "--torch-args", DEEP),
    "a setting of 9,000 levels": ("train", "quick", "--dry-run", "--set", "seed=" + "[" * 9000),
    "a setting of 50,000 parts": ("train", "quick", "--dry-run", "--set", "a." * 50_000 + "a=1"),
    "a name with escapes": ("method", "show", "\x1b[2J\x07"),
    "a name of 100,000 characters": ("method", "show", "x" * 100_000),
    "a name with a slash": ("method", "show", "../../etc/passwd"),
    "a file with escapes": ("rank", "\x1b[2J.json"),
    "a name of a recipe with escapes": ("recipes", "show", "\x1b[2J"),
    "a key of weights with escapes": ("weights", "get", "span", "--key", "\x1b[2J"),
    "rules with escapes": ("eval", "span", "--data", "x", "-o", "r", "--rules", "\x1b[2J"),
}
COMMANDS: Mapping[str, tuple[bool, tuple[str, ...]]] = {  # on files with hostile names: refuses
    "fuse": (True, ("fuse", "a", "b", "-o", "fused")),
    "metrics explain": (False, ("metrics", "explain", "a/\x1b[2Jx.png", "b/\x1b[2Jx.png")),
    "data verify": (True, ("data", "verify", "a")),
    "rank": (True, ("rank", "a")),
    "weights convert": (True, ("weights", "convert", "span", "a/\x1b[2Jx.png", "-o", "x.pth")),
    "parity": (True, ("parity", "span", "--golden", "a/\x1b[2Jx.png")),
    "data select": (True, ("data", "select", "a", "--like", "none\x1b[2J", "-o", "selection")),
}


# --- how it is attacked --------------------------------------------------------------------------


def _attack(
    folder: Path, *, reader: str, write: Callable[[Path], object], name: str = "file"
) -> str | None:
    suffix, read = READERS[reader]
    path = folder / f"{name}{suffix}"
    write(path)
    refusal = functools.partial(find_refusal_fault, functools.partial(read, path))
    fault = find_excess(refusal, seconds=SECONDS, mib=MIB)
    return fault or ("it was executed" if (folder / "executed").exists() else None)


def _write_content(path: Path, content: bytes | Callable[[], bytes]) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content())


def _attack_command(folder: Path, *, command: tuple[str, ...], refuses: bool) -> str | None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    for name in ("a", "b"):
        image_io.write_image(folder / name / "\x1b[2Jx.png", pixels)
        (folder / name / "\x07\x9b5m.txt").touch()
    (folder / "a" / "cut\x1b[0m.png").write_bytes(_image("PNG")[:50])
    (folder / "b" / "cut\x1b[0m.png").write_bytes(_image("PNG"))
    return run_in_process(*command, folder=folder).find_fault(refuses=refuses)


def cases() -> list[Case]:
    """Return a case for every reader with every odd path, name and content of its formats."""
    attacks: dict[str, Callable[[Path], str | None]] = {}
    for reader in READERS:
        for what, write in PATHS.items():
            attacks[f"{reader}: {what}"] = functools.partial(_attack, reader=reader, write=write)
        for name in ("\x1b[2J\n", "x" * 400, "a\0b"):
            attacks[f"{reader}: name {name!r:.30}"] = functools.partial(
                _attack, reader=reader, write=lambda path: None, name=name
            )
    for reader, contents in CONTENTS.items():
        for what, content in contents.items():
            write = functools.partial(_write_content, content=content)
            attacks[f"{reader}: {what}"] = functools.partial(_attack, reader=reader, write=write)
    options = {what: (True, command) for what, command in OPTIONS.items()}
    names = {f"hostile names: {what}": item for what, item in COMMANDS.items()}
    for what, (refuses, command) in {**options, **names}.items():
        attacks[what] = functools.partial(_attack_command, command=command, refuses=refuses)
    return [Case(name=name, attack=attack, is_fast=True) for name, attack in attacks.items()]
