"""Drawn trees of image files with runs of `upscale` over them, and what must come of them.

The rules are written here a second time, with Pillow alone, from what the documentation promises.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SCALE = 4
IMAGE_SUFFIXES = (".png", ".PNG", ".jpg", ".jfif", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".jp2")
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
OTHER_SUFFIXES = (".txt", ".cr2", ".mp4", "")
STEMS = ("a", "A", "b", "ax4", "é", "two words", ".hidden", "a.b")
ENTRIES = (*["image"] * 12, "rgba", "rgba", "gray16", "cut", "cut", "empty", "text")
ENTRIES = (*ENTRIES, "folder", "file link", "folder link", "dangling", "fifo", "hard link")
Image.init()  # all formats, whatever was imported before
FORMATS = {".jpg": "JPEG", ".jfif": "JPEG", ".jp2": "JPEG2000", ".tif": "TIFF"}


@dataclass
class Case:
    """One run: the arguments of `upscale`, relative to the folder of the tree."""

    root: Path
    inputs: list[Path]
    output: Path
    options: dict[str, Any] = field(default_factory=dict)


def draw_case(root: Path, rng: random.Random) -> Case:
    """Make a tree below `root` and return a run over it."""
    folders = [root / name for name in ("in", "in/p", "in/p/q", "in2")]
    for folder in folders[: rng.choice((1, 2, 3, 4))]:
        folder.mkdir(parents=True)
        for _ in range(rng.choice((0, 1, 2, 3, 5))):
            _draw_entry(folder, rng)
    files = sorted(path for path in (root / "in").iterdir() if not path.is_dir())
    inputs = rng.choice(
        [[root / "in"]] * 4
        + [[root / "in", root / "in2"] if (root / "in2").is_dir() else [root / "in"]]
        + [[root / "in", *files[:1]], files[:1] or [root / "in"], files[:3] or [root / "in"]]
    )
    options = {
        "recursive": rng.random() < 0.4,
        "skip_existing": rng.random() < 0.4,
        "format": rng.choice((None, None, "png", "jpg", "webp", "tif", "bmp")),
        "suffix": rng.choice((None, None, None, "", "_b")),
    }
    names = ["out"] * 8 + [
        "in",
        "in/p",
        "in/new",
        "out.png",
        "out.webp",
        "out.heic",
        "link",
        "file",
    ]
    case = Case(root, inputs, root / rng.choice(names), options)
    (root / "file").write_bytes(b"a file in the way")
    (root / "link").symlink_to(root / "in", target_is_directory=True)
    if rng.random() < 0.5:
        _draw_outputs(case, rng)
    return case


def _draw_entry(folder: Path, rng: random.Random) -> None:
    suffix = rng.choice(IMAGE_SUFFIXES if rng.random() < 0.8 else OTHER_SUFFIXES)
    path, entry = folder / f"{rng.choice(STEMS)}{suffix}", rng.choice(ENTRIES)
    files = [p for p in sorted(folder.iterdir()) if p.is_file()]
    if os.path.lexists(path):
        return
    match entry:
        case "folder":
            path.mkdir()
        case "file link" if files:
            path.symlink_to(rng.choice(files))
        case "hard link" if files:
            os.link(rng.choice(files), path)
        case "folder link":
            path.symlink_to(folder, target_is_directory=True)
        case "dangling":
            path.symlink_to(folder / "none")
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "text":
            path.write_text("not an image")
        case _:
            _write_image(path, entry, rng)


def _write_image(path: Path, entry: str, rng: random.Random) -> None:
    height, width = rng.randint(1, 4), rng.randint(1, 4)
    levels = np.random.default_rng(rng.randrange(2**32))
    channels = {"rgba": 4, "gray16": 1}.get(entry, 3)
    pixels = levels.integers(0, 256, (height, width, channels), np.uint8)
    suffix = path.suffix.lower()
    format_name = FORMATS.get(suffix, (suffix[1:] or "png").upper())
    if entry == "gray16" and suffix in (".png", ".tif"):
        image = Image.fromarray(levels.integers(0, 65536, (height, width), np.uint16))
    elif entry == "rgba" and suffix in (".png", ".tif", ".webp"):
        image = Image.fromarray(pixels)
    else:
        image = Image.fromarray(pixels[..., :3] if channels > 1 else pixels[..., 0])
    exif = Image.Exif()
    if suffix in (".jpg", ".png", ".webp", ".tif") and rng.random() < 0.3:
        exif[0x0112] = rng.randint(1, 8)
    options = {"exif": exif} if len(exif) else {}
    image.save(path, format_name if format_name in Image.SAVE else "PNG", **options)
    if entry == "cut":
        path.write_bytes(path.read_bytes()[: rng.randint(1, 40)])


def _draw_outputs(case: Case, rng: random.Random) -> None:
    """Put something where outputs will be: old outputs, other images, folders, links to inputs."""
    for source, target in expected_targets(case).items():
        if rng.random() < 0.5 or os.path.lexists(target):
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        match rng.randrange(8):
            case 0:
                target.mkdir()
            case 1:
                os.link(source, target, follow_symlinks=False)
            case 2:
                target.symlink_to(source)
            case 3:
                target.write_bytes(b"no image")
            case 4:
                Image.new("RGB", (3, 5)).save(target, "PNG")
            case _ if (lr := decode(source)) is not None:
                Image.new("RGB", (SCALE * lr.shape[1], SCALE * lr.shape[0])).save(target, "PNG")
            case _:
                pass


# --- what must come of a case ------------------------------------------------------------------


def searched_entries(case: Case) -> Iterator[tuple[Path, Path, bool]]:
    """Yield (path, folder below the output, is it an image?) of all that is in the inputs."""
    for root in case.inputs:
        if not root.is_dir():
            yield root, Path(), True
            continue
        for parent, folders, files in os.walk(root):
            relative = Path(os.path.relpath(parent, root))
            is_deep = case.options["recursive"]
            for name in files:
                path = Path(parent, name)
                is_taken = path.is_file() or path.is_symlink()
                is_image = path.suffix.lower() in IMAGE_SUFFIXES and name[0] != "."
                yield path, relative, is_taken and is_image
            links = [name for name in folders if Path(parent, name).is_symlink()]
            skipped = [n for n in folders if n[0] == "." or n in links] if is_deep else folders
            yield from ((Path(parent, name), relative, False) for name in skipped)
            folders[:] = [name for name in folders if name not in skipped]


def sources(case: Case) -> dict[Path, Path]:
    """Image -> its folder below the output."""
    images: dict[Path, Path] = {}
    for path, folder, is_image in searched_entries(case):
        if is_image:
            images.setdefault(path, folder)
    return images


def is_file_output(case: Case) -> bool:
    single = len(sources(case)) == 1 and not any(path.is_dir() for path in case.inputs)
    return single and case.output.suffix in WRITABLE and not case.output.is_dir()


def expected_targets(case: Case) -> dict[Path, Path]:
    if is_file_output(case):
        return dict.fromkeys(sources(case), case.output)
    ending = case.options["suffix"]
    ending = f"x{SCALE}" if ending is None else ending
    suffix = f".{case.options['format'] or 'png'}"
    return {
        source: case.output / folder / f"{source.stem}{ending}{suffix}"
        for source, folder in sources(case).items()
    }


def refusal_reasons(case: Case) -> set[str]:
    """Return why nothing may be done in a case."""
    targets, reasons = expected_targets(case), set[str]()
    readable = {source for source in targets if header_size(source) is not None}
    folders = [path.resolve() for path in case.inputs if path.is_dir()]
    output = case.output.resolve()
    if not targets or not all(path.exists() for path in case.inputs):
        return {"no images"}
    if any(f == output or (case.options["recursive"] and f in output.parents) for f in folders):
        reasons.add("into itself")
    is_folder = case.output.is_dir()
    if is_file_output(case):
        if case.options["format"] or case.options["suffix"] is not None:
            reasons.add("names for a file")
    elif case.output.suffix and not is_folder:
        reasons.add("suffix")
    real = [target.parent.resolve() / target.name for target in targets.values()]
    if len(set(real)) < len(real):
        reasons.add("collision")
    for source, target in targets.items():
        if target.exists() and any(target.samefile(s) for s in targets if s.exists()):
            reasons.add("input")
        is_skipped = case.options["skip_existing"] and os.path.lexists(target)
        existing = next(p for p in target.parents if os.path.lexists(p))
        if source in readable and not is_skipped and (target.is_dir() or not existing.is_dir()):
            reasons.add("unwritable")
    return reasons


def header_size(path: Path) -> tuple[int, int] | None:
    """Return (h, w), upright, from the header; None for what has none."""
    try:
        if not path.is_file():
            return None
        with Image.open(path) as image:
            if image.format not in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"):
                return None
            width, height = image.size
            if image.format == "TIFF":  # Pillow may have exchanged the sides already
                width, height = image.tag_v2[256], image.tag_v2[257]
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)
    except Exception:
        return None


def decode(path: Path) -> np.ndarray | None:
    """Return an upright image over white, (h, w, 3) uint8; None if it cannot be read."""
    if header_size(path) is None:
        return None
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                gray = np.rint(np.asarray(upright).astype(np.float64) / 257).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    except Exception:
        return None


def snapshot(root: Path) -> dict[Path, tuple[int, int, bytes | str]]:
    """Path -> inode, mode, and content or link target of all that is below a folder."""
    content: dict[Path, tuple[int, int, bytes | str]] = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            data: bytes | str = b""
            if path.is_symlink():
                data = os.readlink(path)
            elif path.is_file():
                data = path.read_bytes()
            content[path] = (status.st_ino, status.st_mode, data)
    return content
