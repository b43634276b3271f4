"""What an image file has beside its pixels and can keep when it is written again: EXIF, dpi."""

from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

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
