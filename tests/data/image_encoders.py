"""Encoders of PNG, TIFF and ICC profiles for tests, independent of Pillow."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# 16 x 16 pixels of 10 bits: red rises from left to right, green from top to bottom, blue is 512.
AVIF_10_BIT = base64.b64decode(
    b"AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAA"
    b"AAAAAAAAAAAAAAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAagAAAChpaW5mAAAA"
    b"AAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAEAAAABAA"
    b"AAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAAgAAAABdpcG1hAAAAAAAAAAEAAQQB"
    b"AoMEAAAAcm1kYXQSAAoIOAz/+cCAgCQyXBAAAHHrce13mOzULtL82AuSPqcCijMwGoMKOzCP1SwnPIgtt/HsK7aB"
    b"BhqLZhtke9NVD730ARvZXRgoltFI58Dq4yam+byvXVSXF1XCq5S5HD3l5AiGYxdZMPvA"
)
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> samples per pixel


def pack_bits(samples: NDArray[Any], bits: int, endian: str = ">") -> NDArray[np.uint8]:
    """Pack samples (h, w, C) into rows of bytes (h, n), as PNG and TIFF store them."""
    rows = samples.reshape(len(samples), -1)
    if bits >= 8 and bits != 12:
        packed = rows.astype(f"{endian}u{bits // 8}")
        return np.frombuffer(packed.tobytes(), np.uint8).reshape(len(rows), -1)
    shifts = np.arange(bits - 1, -1, -1)
    planes = (rows[..., None] >> shifts & 1).astype(np.uint8)
    return np.packbits(planes.reshape(len(rows), -1), axis=1)


def png(
    samples: NDArray[Any], bits: int, color_type: int, chunks: Mapping[bytes, bytes] | None = None
) -> bytes:
    """Encode (h, w, C) as PNG; `chunks` stand before the pixels."""
    height, width = samples.shape[:2]
    data = b"".join(b"\0" + row.tobytes() for row in pack_bits(samples, bits))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(data), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + chunk_type
        + body
        + struct.pack(">I", zlib.crc32(chunk_type + body))
        for chunk_type, body in parts.items()
    )


def tiff(
    samples: NDArray[Any],
    bits: int,
    photometric: int,
    endian: str = "<",
    tags: Mapping[int, int] | None = None,
    profile: bytes = b"",
    deflate: bool = False,
) -> bytes:
    """Encode (h, w, C) as a TIFF of one strip; photometric 0 is white at 0, 1 black, 2 RGB.

    Args:
        samples: Unsigned levels, or signed ones in two's complement.
        bits: Per sample.
        photometric: PhotometricInterpretation.
        endian: "<" or ">".
        tags: Further tags of one value each, such as Orientation, 274.
        profile: ICC profile.
        deflate: Whether the strip is compressed.
    """
    height, width, channels = samples.shape
    data = pack_bits(samples, bits, endian).tobytes()
    data = zlib.compress(data) if deflate else data
    entries: dict[int, Any] = {
        256: width, 257: height, 258: [bits] * channels, 259: 8 if deflate else 1,
        262: photometric, 273: 0, 277: channels, 278: height, 279: len(data), **(tags or {}),
    }  # fmt: skip
    if profile:
        entries[34675] = profile
    start = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    table: list[bytes] = []
    for tag in sorted(entries):
        value = entries[tag]
        if isinstance(value, bytes):
            field_type, count, body = 7, len(value), value
        else:
            values = value if isinstance(value, list) else [value]
            field_type, count = (4, 1) if tag in (273, 279) else (3, len(values))
            body = struct.pack(f"{endian}{count}{'I' if field_type == 4 else 'H'}", *values)
        if len(body) > 4:
            table.append(struct.pack(f"{endian}HHII", tag, field_type, count, start + len(extra)))
            extra += body + b"\0" * (len(body) % 2)
        else:
            table.append(struct.pack(f"{endian}HHI", tag, field_type, count) + body.ljust(4, b"\0"))
    strip = struct.pack(f"{endian}HHII", 273, 4, 1, start + len(extra))
    table = [strip if struct.unpack(f"{endian}H", row[:2])[0] == 273 else row for row in table]
    header = (b"II" if endian == "<" else b"MM") + struct.pack(f"{endian}HI", 42, 8)
    body = struct.pack(f"{endian}H", len(table)) + b"".join(table) + bytes(4)
    return header + body + extra + data


def exif(orientation: int) -> bytes:
    """An EXIF block with nothing but an orientation, without the prefix of JPEG."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


# --- ICC profiles ---

ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def icc_profile(primaries: Any, gamma: float, name: bytes = b"test") -> bytes:
    """A minimal profile (version 2) of RGB, or of gray where `primaries` is None."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + bytes(1 + 78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0"}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for key, color in zip("rgb", primaries, strict=True):
            tags[f"{key}XYZ".encode()] = b"XYZ \0\0\0\0" + fixed(*color)
            tags[f"{key}TRC".encode()] = curve
    tags = {key: body + bytes(-len(body) % 4) for key, body in tags.items()}
    table, bodies, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for key, body in tags.items():
        table += key + struct.pack(">II", start + len(bodies), len(body))
        bodies += body
    space = b"GRAY" if primaries is None else b"RGB "
    return _profile_header(start + len(bodies), b"mntr", space, b"XYZ ") + table + bodies


def cmyk_profile() -> bytes:
    """A profile that shows cyan as red: a table of two levels for each of the four inks."""
    cyan, magenta, yellow, black = np.meshgrid(*[[0, 1]] * 4, indexing="ij")
    is_white = (cyan + magenta + yellow + black) == 0
    is_red = (cyan == 1) & (magenta + yellow + black == 0)
    lab = np.stack([255 * is_white + 136 * is_red, 128 + 80 * is_red, 128 + 67 * is_red], -1)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + 4 * ramp
    table += lab.astype(np.uint8).tobytes() + 3 * ramp
    table += bytes(-len(table) % 4)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    return _profile_header(144 + len(table), b"prtr", b"CMYK", b"Lab ") + tags + table


def _profile_header(size: int, device: bytes, space: bytes, connection: bytes) -> bytes:
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x2400000, device, space, connection)
    header += bytes(12) + b"acsp" + bytes(28)
    return (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0")


def to_srgb(levels: NDArray[Any], primaries: Any, gamma: float) -> NDArray[np.float64]:
    """Convert levels (..., 3) of 0 to 255 of a profile to sRGB levels, by its matrix."""
    linear = (levels / 255.0) ** gamma
    if primaries is not None:
        xyz = linear @ np.array(primaries)
        linear = xyz @ np.linalg.inv(np.array(SRGB))
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
