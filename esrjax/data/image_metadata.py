"""What an image file has beside its pixels: EXIF and dpi, ICC profiles, chunks of PNG."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from esrjax.errors import list_some

_IFD0 = ExifTags.Base
# EXIF fields that describe the photo, not the layout of the file.
_KEPT_FIELDS = tuple(
    int(ExifTags.Base[name])
    for name in "ImageDescription Make Model Software DateTime Artist Copyright".split()
)
_KEPT_IFDS = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo))
# Of the Exif IFD: sizes that upscaling makes wrong, and what has offsets into the old file.
_DROPPED_FIELDS = {_IFD0.ExifImageWidth, _IFD0.ExifImageHeight, _IFD0.ExifInteroperabilityOffset}
_MAKER_NOTE = _IFD0.MakerNote
_LOST_INFO = {  # key in Pillow's `info` -> its name in notes
    "xmp": "XMP",
    "XML:com.adobe.xmp": "XMP",
    "photoshop": "Photoshop data",
    "comment": "a comment",
}
_LOST_TIFF_TAGS = {700: "XMP", 33723: "IPTC", 34377: "Photoshop data", 34735: "GeoTIFF keys"}
MAX_DPI = 65535  # of JPEG
MAX_EXIF_BYTES = 65527  # what a JPEG segment can store, without its header of 8 bytes

NOTE_DAMAGED_PROFILE = "damaged ICC profile ignored"
_SRGB_GAMMA = 0.45455  # of PNG's gAMA chunk
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # of its cHRM chunk
_SRGB_CICP = (1, 13)  # BT.709 primaries, transfer function of sRGB; of its cICP chunk
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

# --- EXIF and dpi, which a file keeps when it is written again ---


@dataclass(frozen=True, kw_only=True)
class ImageMetadata:
    """What `write_image` can store beside the pixels.

    Attributes:
        dpi: Horizontal and vertical resolution, pixels per inch; None if the file has none.
        exif: An EXIF block with date, camera, author and place, without orientation (the pixels are
            upright), sizes and thumbnail; empty if the file has none.
        notes: What the file has and cannot be kept, a sentence; empty if there is nothing.
    """

    dpi: tuple[float, float] | None = None
    exif: bytes = b""
    notes: tuple[str, ...] = ()


def read_metadata(image: Image.Image) -> ImageMetadata:
    """Return the metadata of an open image; damaged ones are a note, never an error."""
    lost = dict.fromkeys(name for key, name in _LOST_INFO.items() if key in image.info)
    tags = getattr(image, "tag_v2", {})
    lost |= dict.fromkeys(name for tag, name in _LOST_TIFF_TAGS.items() if tag in tags)
    lost |= {"text": None} if getattr(image, "text", None) else {}
    try:
        exif, has_maker_note = _kept_exif(image.getexif())
        lost |= {"EXIF maker notes": None} if has_maker_note else {}
    except Exception:  # Pillow raises almost any exception
        exif, lost = b"", {**lost, "damaged EXIF data": None}
    if len(exif) > MAX_EXIF_BYTES:
        exif, lost = b"", {**lost, f"EXIF data of {len(exif):,} bytes": None}
    notes = (f"not kept: {list_some(lost)}",) if lost else ()
    return ImageMetadata(dpi=_dpi(image.info.get("dpi")), exif=exif, notes=notes)


def _kept_exif(exif: Image.Exif) -> tuple[bytes, bool]:
    """Return the EXIF block of the fields that are kept, and whether maker notes are not."""
    kept, has_maker_note = Image.Exif(), False
    for field in _KEPT_FIELDS:
        if field in exif:
            kept[field] = exif[field]
    for ifd in _KEPT_IFDS:
        fields = {k: v for k, v in exif.get_ifd(ifd).items() if k not in _DROPPED_FIELDS}
        has_maker_note |= fields.pop(_MAKER_NOTE, None) is not None
        if fields:
            kept[ifd] = fields
    return kept.tobytes() if len(kept) else b"", has_maker_note


def _dpi(value: Any) -> tuple[float, float] | None:
    """Return a resolution as two positive numbers; None for anything else."""
    try:
        x, y = map(float, value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (x, y) if min(x, y) >= 1 and max(x, y) <= MAX_DPI else None


# --- ICC profiles ---


def profile_to_srgb(
    samples: NDArray[np.uint8], profile_bytes: bytes, *, convert: bool = True
) -> tuple[NDArray[np.uint8] | None, str]:
    """Convert colours from an ICC profile to sRGB (perceptual intent).

    Args:
        samples: (h, w, 1 or 3), gray or RGB.
        profile_bytes: The profile. One that differs from sRGB by at most a level changes nothing.
        convert: Whether to convert, or to keep the levels and say so.

    Returns:
        (h, w, 3), None if the levels are kept; and a note, empty if there is nothing to say.
    """
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(profile_bytes))
        if profile.profile.xcolor_space.strip() == "RGB":  # gray files with RGB profiles exist
            samples = np.repeat(samples, 3, axis=-1) if samples.shape[-1] == 1 else samples
        image = Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else samples)
        transform: Any = ImageCms.buildTransform(profile, _srgb(), image.mode, "RGB")
        if _is_identity(transform, image.mode):
            return None, ""
        name = _profile_name(profile)
        if not convert:
            return None, f"ICC profile {name} not applied: levels as stored"
        converted: Any = transform.apply(image)
        return np.asarray(converted), f"colours converted from the ICC profile {name} to sRGB"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None, NOTE_DAMAGED_PROFILE


def cmyk_to_rgb(image: Image.Image, profile_bytes: bytes | None) -> tuple[Image.Image, str]:
    """Convert a CMYK image to RGB by its ICC profile, without one as Pillow does."""
    plain = "CMYK converted to RGB without its color profile"
    if not profile_bytes:
        return image.convert("RGB"), plain
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(profile_bytes))
        transform: Any = ImageCms.buildTransform(profile, _srgb(), "CMYK", "RGB")
        return transform.apply(image), "CMYK converted to sRGB by its ICC profile"
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), f"{plain}, which is damaged"


@cache
def _srgb() -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_identity(transform: Any, mode: str) -> bool:
    """Return whether a transform to sRGB changes no color by more than a level."""
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    grid = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    probe = grid if mode == "L" else grid.reshape(1, -1, 3)
    expected = np.broadcast_to(probe[..., None], (*probe.shape, 3)) if mode == "L" else probe
    result = np.asarray(transform.apply(Image.fromarray(probe)))
    return bool(np.abs(result.astype(int) - expected).max() <= 1)


def _profile_name(profile: Any) -> str:
    """Return the name of a profile in quotes; it is text from the file, which may be anything."""
    name = " ".join((profile.profile.profile_description or "").split())
    printable = "".join(character for character in name if character.isprintable())
    return f"'{printable[:40] or 'without name'}'"


# --- chunks of PNG ---


def png_color_note(info: dict[Any, Any], header: bytes) -> str:
    """Return a note on a colour space that a PNG declares without profile and that is ignored.

    Args:
        info: Pillow's `info` of the image.
        header: The beginning of the file.
    """
    cicp = next((body for chunk_type, body in png_chunks(header) if chunk_type == b"cICP"), None)
    if cicp is not None and len(cicp) >= 12:
        primaries, transfer = cicp[8], cicp[9]
        is_srgb = (primaries, transfer) == _SRGB_CICP
        text = f"colour space of its cICP chunk (primaries {primaries}, transfer {transfer})"
        return "" if is_srgb else f"{text} not applied"
    if "icc_profile" in info or "srgb" in info:
        return ""
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if gamma and abs(gamma / _SRGB_GAMMA - 1) > 0.02:
        return f"gamma {gamma:g} of its gAMA chunk not applied"
    if chromaticity and np.abs(np.subtract(chromaticity, _SRGB_CHROMATICITY)).max() > 0.005:
        return "primaries of its cHRM chunk not applied"
    return ""


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type of every chunk of a PNG, and the chunk with length, type, data and CRC."""
    start = len(PNG_SIGNATURE)
    while content[: len(PNG_SIGNATURE)] == PNG_SIGNATURE and start + 8 <= len(content):
        stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
        yield content[start + 4 : start + 8], content[start:stop]
        start = stop


def readable_variants(content: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield a PNG without what Pillow may refuse to read, and the note on what was left out.

    Pillow refuses texts of more than 1 MiB, such as those of programs that store their whole
    project, and profiles of that size, though the pixels are sound.
    """
    for dropped_types, note in (
        (_TEXT_CHUNKS, ""),
        ((*_TEXT_CHUNKS, b"iCCP"), NOTE_DAMAGED_PROFILE),
    ):
        chunks = [
            chunk for chunk_type, chunk in png_chunks(content) if chunk_type not in dropped_types
        ]
        variant = b"".join([PNG_SIGNATURE, *chunks])
        if chunks and len(variant) < len(content):
            yield variant, note
