"""Checks of image pairs and of whole datasets: damaged images, wrong LR, duplicates, leaks."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from esrjax.data.datasets import DatasetInfo, Pair, Progress, decode_source
from esrjax.data.image_io import Pixels, prefetch_map
from esrjax.data.layouts import parse_lr_name
from esrjax.data.resize import bicubic_downscale
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import UserError, list_some

# Outer LR pixels that are not compared: newer versions of MATLAB pad symmetrically at the edge
# where older ones replicate it, which changes two pixels by up to 10 levels.
IGNORED_LR_BORDER = 2
MAX_HASH_DISTANCE = 3  # of the 64 bits of a difference hash, for images that look alike


@dataclass(frozen=True, kw_only=True)
class PairCheck:
    """What was found in one pair.

    Attributes:
        name: Of the pair.
        problems: What is wrong with it; a large `lr_error` is judged by `verify_dataset`.
        notes: What decoding has changed, which is not wrong.
        size: (h, w) of HR, cropped to a multiple of the scale; None if it cannot be read.
        lr_error: Largest difference between its LR image and the bicubic one, in levels; None
            without LR, or where LR is of another track.
        digest: SHA-256 of the size and the pixels of HR.
        dhash: Difference hash of HR, 64 bits; None for images with too little structure.
    """

    name: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    lr_error: int | None = None
    digest: str | None = None
    dhash: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The result of verifying a dataset.

    Attributes:
        num_images: How many pairs were checked.
        min_hr_size: (h, w) of the HR image with the shortest side.
        lr_error: Largest difference between an LR image and the bicubic one, in levels; None
            without LR, or where LR is of another track.
        hr_sha256: Hash of the pixels of all HR images; None if one cannot be read.
        problems: What is wrong, a line each.
        notes: What deserves a look but is not wrong, a line each.
    """

    num_images: int
    min_hr_size: tuple[int, int] | None
    lr_error: int | None
    hr_sha256: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify_dataset(
    pairs: Sequence[Pair],
    *,
    against: Sequence[Pair] = (),
    expected: DatasetInfo | None = None,
    tolerance: int = 1,
    progress: Progress = iter,
) -> DatasetReport:
    """Check every pair of a dataset, with two threads.

    The LR images of a track other than `bicubic`, by the name of their folder, are not compared.

    Args:
        pairs: The dataset.
        against: Pairs that must not be trained on, for instance the validation set: images that the
            dataset shares with them are problems.
        expected: What is known about the dataset: number and names of its images.
        tolerance: Levels by which LR may differ from the bicubic LR, outer pixels excepted.
        progress: Wraps the pairs, for instance in a progress bar.
    """
    checks = _check_pairs(pairs, progress)
    problems = _compare_with_info(pairs, expected)
    sha256 = hr_sha256(checks)
    tracks = sorted(set(filter(None, map(_other_track, pairs))))
    notes = [f"LR of the track {track} is not compared with bicubic LR" for track in tracks]
    for check in checks:
        problems += [f"{check.name}: {problem}" for problem in check.problems]
        if check.lr_error is not None and check.lr_error > tolerance:
            error = f"LR differs from the bicubic LR by up to {check.lr_error} levels"
            problems.append(f"{check.name}: {error}")
        notes += [f"{check.name}: {note}" for note in check.notes]
    if expected and sha256 and expected.hr_sha256 and sha256 != expected.hr_sha256:
        notes.append(f"its HR images are not those of `esrjax data list`: {sha256[:16]}")
    leaks, similar = find_overlap(checks, _check_pairs(against, progress) if against else [])
    return DatasetReport(
        num_images=len(pairs),
        min_hr_size=min((check.size for check in checks if check.size), key=min, default=None),
        lr_error=max((c.lr_error for c in checks if c.lr_error is not None), default=None),
        hr_sha256=sha256,
        problems=(*problems, *leaks),
        notes=(*notes, *_duplicates(pairs, checks), *similar),
    )


def hr_sha256(checks: Sequence[PairCheck]) -> str | None:
    """Return the SHA-256 of the sorted hashes of the different HR images, whatever their names."""
    digests = {check.digest for check in checks}
    if None in digests:
        return None
    return hashlib.sha256("".join(sorted(filter(None, digests))).encode()).hexdigest()


def _check_pairs(pairs: Sequence[Pair], progress: Progress) -> list[PairCheck]:
    """Check all pairs with two threads; at most a few images are in memory."""
    checks = prefetch_map(check_pair, pairs, buffer_size=4)
    return [check for _, check in zip(progress(pairs), checks, strict=True)]


def check_pair(pair: Pair) -> PairCheck:
    """Check one pair; errors in reading it are problems of the result."""
    try:
        images = {"HR": decode_source(pair.hr)}
        images |= {} if pair.lr is None else {"LR": decode_source(pair.lr)}
        lr, hr = pair.load_from_hr(images["HR"].pixels)
    except UserError as error:
        return PairCheck(name=pair.name, problems=(error.problem,))
    notes = [(label, note) for label, image in images.items() for note in image.notes]
    deep = [(label, note) for label, note in notes if note.startswith("16 bits")]
    prefixes = {"HR": "", "LR": "LR: "}
    is_bicubic = pair.lr is not None and _other_track(pair) is None
    return PairCheck(
        name=pair.name,
        problems=tuple(f"{label} is not 8-bit: {note}" for label, note in deep),
        notes=tuple(prefixes[note[0]] + note[1] for note in notes if note not in deep),
        size=hr.shape[:2],
        lr_error=max_abs_diff(lr, bicubic_downscale(hr, pair.scale)) if is_bicubic else None,
        digest=hashlib.sha256(f"{hr.shape}".encode() + hr.tobytes()).hexdigest(),
        dhash=difference_hash(hr),
    )


def _other_track(pair: Pair) -> str | None:
    """Return the track of the LR image that its folders name, if it is not `bicubic`."""
    folders = pair.lr.parents if isinstance(pair.lr, Path) else ()
    names = (parse_lr_name(folder.name) for folder in folders)
    tracks = (name.track for name in names if name and name.track)
    track = next(tracks, None)
    return None if track == "bicubic" else track


def max_abs_diff(lr: Pixels, reference: Pixels) -> int:
    """Return the largest absolute difference of two LR images (h, w, 3), in levels.

    The two outer rows and columns are ignored (see `IGNORED_LR_BORDER`).
    """
    b = IGNORED_LR_BORDER
    interior = tuple(np.s_[b:-b] if side > 2 * b else np.s_[:] for side in lr.shape[:2])
    return int(np.abs(lr[interior].astype(int) - reference[interior]).max())


def difference_hash(hr: Pixels) -> int | None:
    """Return the 64-bit difference hash (dHash) of an image, robust to resizing and brightness.

    The image is averaged to 8 x 9 gray cells; a bit is set where gray falls from a cell to its
    right neighbor. None for images in which fewer than half of these steps exceed 2 levels, such as
    sky: their bits are noise, and they would look like everything.
    """
    cells = np.asarray(Image.fromarray(hr).convert("L").resize((9, 8), Image.Resampling.BOX), int)
    steps = cells[:, :-1] - cells[:, 1:]
    if (np.abs(steps) > 2).mean() < 0.5:
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def find_overlap(
    checks: Sequence[PairCheck], against_checks: Sequence[PairCheck]
) -> tuple[list[str], list[str]]:
    """Return the images that two datasets share.

    Returns:
        A line for every image that is equal to one of the other dataset, pixel by pixel; and one
        for every image that only looks like one of it, by difference hash.
    """
    against_names = {check.digest: check.name for check in against_checks if check.digest}
    hashed = [check for check in against_checks if check.dhash is not None]
    hashes = np.array([check.dhash for check in hashed], np.uint64)
    leaks: list[str] = []
    similar: list[str] = []
    for check in checks:
        if check.digest in against_names:
            other = against_names[check.digest]
            leaks.append(f"{check.name}: the same image as {other} of a held-out dataset")
        elif check.dhash is not None:
            distances = np.bitwise_count(hashes ^ np.uint64(check.dhash))  # Hamming distances
            close = [hashed[i].name for i in np.flatnonzero(distances <= MAX_HASH_DISTANCE)]
            similar += [f"{check.name}: looks like {name} of a held-out dataset" for name in close]
    return leaks, similar


def _duplicates(pairs: Sequence[Pair], checks: Sequence[PairCheck]) -> list[str]:
    """Return a line for every image that the dataset contains more than once, in several files."""
    names: dict[str, list[str]] = defaultdict(list)
    first_checks = {pair.hr: check for pair, check in zip(pairs, checks, strict=True)}
    for check in first_checks.values():
        if check.digest:
            names[check.digest].append(check.name)
    return [f"{', '.join(same)}: the same image" for same in names.values() if len(same) > 1]


def _hr_names(pairs: Sequence[Pair]) -> dict[Path | TfdsImage, str]:
    """Return HR image -> its name; in DIV2K's wild track it has several pairs, named by LR."""
    return {p.hr: p.hr.stem if isinstance(p.hr, Path) else p.name for p in pairs}


def _compare_with_info(pairs: Sequence[Pair], info: DatasetInfo | None) -> list[str]:
    """Return a line each for a wrong number of images, missing names and unexpected names."""
    if info is None:
        return []
    names = set(_hr_names(pairs).values())
    known_names = names if info.image_names is None else info.image_names
    lines: list[str] = []
    if (count := len(_hr_names(pairs))) != info.num_images:
        lines.append(f"{info.title} has {info.num_images} images, this dataset {count}")
    if missing := sorted(known_names - names):
        lines.append(f"missing: {list_some(missing)}")
    if unexpected := sorted(names - known_names):
        lines.append(f"not part of {info.title}: {list_some(unexpected)}")
    return lines
