"""Drawn image files: what is read equals the array that was encoded, or the file is refused."""

import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from image_encoders import ADOBE, PNG_CHANNELS, SRGB, exif, icc_profile, png, tiff, to_srgb
from numpy.typing import NDArray
from PIL import Image

from esrjax.data.image_io import read_image, read_image_size
from esrjax.errors import UnreadableFile

NUM_SAMPLES, NUM_DRAWS = 300, 10_000  # in the fast suite, and in the campaign of the slow one
PROFILES = {"Adobe": (ADOBE, 2.2), "sRGB primaries": (SRGB, 1.8), "grey": (None, 1.8)}
_TRANSPOSED = range(5, 9)


@dataclass
class Drawn:
    """A file, and what reading it must give."""

    content: bytes
    colors: NDArray[np.float64]  # (h, w, 1 or 3), levels of 0 to 255, as stored
    alpha: NDArray[np.float64] | None = None  # (h, w, 1) in [0, 1]
    orientation: int = 1
    profile: str | None = None
    tolerance: float = 0.51
    alpha_tolerance: float = 0.51
    is_required: bool = True  # whether refusing it is wrong
    label: str = ""


def turn_upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation, from its definition: where row 0 and column 0 are."""
    if orientation in _TRANSPOSED:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):  # row 0 is the bottom
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def expected_pixels(drawn: Drawn) -> NDArray[np.float64]:
    colors = np.broadcast_to(drawn.colors, (*drawn.colors.shape[:2], 3))
    if drawn.profile:
        colors = to_srgb(colors, *PROFILES[drawn.profile])
    if drawn.alpha is not None:
        colors = drawn.alpha * colors + (1 - drawn.alpha) * 255
    return turn_upright(colors, drawn.orientation)


def noise(rng: np.random.Generator, channels: int, bits: int) -> NDArray[np.int64]:
    height, width = rng.integers(1, 9, 2)
    samples = rng.integers(0, 2**bits, (height, width, channels))
    return np.where(rng.random(samples.shape) < 0.2, rng.choice([0, 2**bits - 1]), samples)


def draw_profile(rng: np.random.Generator, channels: int) -> str | None:
    names = ["Adobe", "sRGB primaries"] + ["grey"] * (channels < 3)
    return str(rng.choice(names)) if rng.integers(4) == 0 else None


def draw_png(rng: np.random.Generator) -> Drawn:
    color_type = int(rng.choice(list(PNG_CHANNELS)))
    depths = {0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(color_type, [8, 16])
    bits, channels = int(rng.choice(depths)), PNG_CHANNELS[color_type]
    samples, white = noise(rng, channels, bits), 2**bits - 1
    chunks: dict[bytes, bytes] = {}
    colors, alpha = samples * 255 / white, None
    profile = draw_profile(rng, 3 if color_type in (2, 3, 6) else 1)
    if profile:
        chunks[b"iCCP"] = b"p\0\0" + zlib.compress(icc_profile(*PROFILES[profile]))
    if color_type == 3:
        palette = rng.integers(0, 256, (2**bits, 3))
        chunks[b"PLTE"] = palette.astype(np.uint8).tobytes()
        colors = palette[samples[..., 0]].astype(float)
        if rng.integers(2):
            opacity = rng.integers(0, 256, 2**bits)
            chunks[b"tRNS"] = opacity.astype(np.uint8).tobytes()
            alpha = opacity[samples] / 255
    elif channels in (2, 4):
        colors, alpha = colors[..., :-1], samples[..., -1:] / white
    elif rng.integers(3) == 0:
        key = samples[0, 0]
        chunks[b"tRNS"] = key.astype(">u2").tobytes()
        alpha = (samples != key).any(axis=-1, keepdims=True).astype(float)
    orientation = int(rng.integers(1, 9))
    chunks |= {b"eXIf": exif(orientation)} if orientation > 1 else {}
    if rng.integers(10) == 0:
        chunks[b"zTXt"] = b"k\0\0" + zlib.compress(bytes(2**21))  # more than Pillow reads
    label = f"PNG of {bits} bits, color type {color_type}, chunks {list(chunks)}"
    content = png(samples, bits, color_type, chunks)
    return Drawn(content, colors, alpha, orientation, profile, label=label)


def draw_tiff(rng: np.random.Generator) -> Drawn:
    photometric = int(rng.integers(3))
    bits = int(rng.choice([8, 16] if photometric == 2 else [1, 2, 4, 8, 12, 16, 32]))
    channels = 3 if photometric == 2 else 1
    extra = int(rng.integers(3)) if rng.integers(3) == 0 else None  # of unknown use, alpha
    tags = {} if extra is None else {338: extra}
    samples = noise(rng, channels + (extra is not None), min(bits, 16))
    white = 2 ** min(bits, 16) - 1
    colors, alpha = samples[..., :channels] * 255 / white, None
    if photometric == 0:
        colors = 255 - colors
    if extra in (1, 2):
        alpha = samples[..., -1:] / white
    tolerance = 0.51
    if extra == 1:  # colors are multiplied by alpha, and at most as large
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
        # Where Pillow divides, 8 bits are rounded, and so is the composition.
        colors, tolerance = samples[..., :channels] * 255 / white / np.maximum(alpha, 1e-9), 2.01
    if is_signed := rng.integers(12) == 0:
        tags[339] = 2
    orientation = int(rng.integers(1, 9))
    tags |= {274: orientation} if orientation > 1 else {}
    endian, deflate = str(rng.choice(["<", ">"])), bool(rng.integers(2))
    profile = draw_profile(rng, channels) if extra is None and photometric else None
    data = icc_profile(*PROFILES[profile]) if profile else b""
    label = f"TIFF of {bits} bits, photometric {photometric}, {tags}, {endian}, deflate {deflate}"
    return Drawn(
        tiff(samples, bits, photometric, endian, tags, data, deflate),
        colors,
        alpha,
        orientation,
        profile,
        tolerance + (bits == 16 and extra == 1),  # which Pillow truncates to 8 bits
        1.0 if bits == 16 and extra == 1 else 0.51,
        is_required=bits in (1, 8) and not is_signed and extra is None,
        label=label,
    )


def draw_pillow(rng: np.random.Generator) -> Drawn:
    """A file that Pillow writes, in a format without a second encoder here."""
    format_name = str(rng.choice(["JPEG", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"]))
    mode = str(rng.choice({"GIF": ["L"], "PPM": ["L", "RGB"]}.get(format_name, ["L", "RGB"])))
    channels = len(mode)
    height, width = (int(side) for side in rng.integers(4, 12, 2))
    flat = rng.integers(0, 256, channels)  # lossy formats keep a plain color
    is_lossless = format_name in ("BMP", "GIF", "PPM")
    samples = np.broadcast_to(flat, (height, width, channels))
    if is_lossless:
        samples = rng.integers(0, 256, (height, width, channels))
    pixels = samples.astype(np.uint8)
    orientation = int(rng.integers(1, 9)) if format_name in ("JPEG", "WEBP", "AVIF") else 1
    options: dict[str, Any] = {}
    if orientation > 1:
        options["exif"] = b"Exif\0\0" + exif(orientation)
    profile = draw_profile(rng, channels) if format_name in ("JPEG", "WEBP") else None
    profile = None if profile == "grey" and format_name == "WEBP" else profile
    if profile:
        options["icc_profile"] = icc_profile(*PROFILES[profile])
    options |= {"quality": 100} if format_name in ("JPEG", "AVIF") else {}
    stream = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    image.save(stream, format_name, **options)
    tolerance = 0.51 if is_lossless else 4.0
    label = f"{format_name} {mode}, orientation {orientation}, profile {profile}"
    colors = samples.astype(float)
    return Drawn(stream.getvalue(), colors, None, orientation, profile, tolerance, label=label)


def check_drawn_file(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = (draw_png, draw_tiff, draw_pillow)[rng.integers(3)](rng)
    try:
        image = read_image(drawn.content, "file")
    except UnreadableFile:
        assert not drawn.is_required, (seed, drawn.label)
        return
    expected = expected_pixels(drawn)
    assert image.pixels.shape == expected.shape, (seed, drawn.label)
    assert read_image_size(drawn.content, "file") == expected.shape[:2], (seed, drawn.label)
    # A profile is applied to 8 bits, and its curves are steep near black.
    tolerance = drawn.tolerance + (5 if drawn.profile else 0)
    error = np.abs(image.pixels - expected)
    assert error.max() <= tolerance, (seed, drawn.label, error.max())
    has_note = any("ICC profile" in note for note in image.notes)
    assert drawn.profile is None or has_note, (seed, drawn.label, image.notes)
    assert drawn.orientation == 1 or any("orientation" in note for note in image.notes), seed
    is_transparent = drawn.alpha is not None and drawn.alpha.min() < 1
    assert is_transparent == (image.alpha is not None), (seed, drawn.label)
    if image.alpha is not None and drawn.alpha is not None:
        alpha = turn_upright(drawn.alpha, drawn.orientation)[..., 0]
        assert np.abs(image.alpha - 255 * alpha).max() <= drawn.alpha_tolerance, (seed, drawn.label)


def test_drawn_files_are_read_rightly_or_refused() -> None:
    for seed in range(NUM_SAMPLES):
        check_drawn_file(seed)


@pytest.mark.slow
def test_many_drawn_files_are_read_rightly_or_refused() -> None:
    for seed in range(NUM_DRAWS):
        check_drawn_file(seed)
