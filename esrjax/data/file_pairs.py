"""Pairs of HR and LR files by their names, and files that look like LR."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from esrjax.data.image_io import list_images
from esrjax.errors import DatasetError, list_some

FilePair = tuple[str, Path, Path | None]  # name, HR file, LR file; without one LR is computed
Files = Mapping[str, Path]  # by stem

# Degradation of the LR images -> how the names of folders spell it. `DIV2K:unknown` chooses one.
TRACKS = {
    "bicubic": "bicubic|bic|BI",
    "unknown": "unknown",
    "mild": "mild",
    "difficult": "difficult",
    "wild": "wild",
}
ANY_TRACK = "|".join(TRACKS.values())
# Endings of the stems of an HR file and its LR file; one row holds for all files of a dataset. {s}
# is the scale; where an ending has digits of its own, an HR image has several LR images.
ENDINGS = (
    ("", "x{s}"),  # 0001, 0001x4
    ("", ""),  # BasicSR
    ("", "x{s}m"),  # DIV2K, mild
    ("", "x{s}d"),  # DIV2K, difficult
    ("", r"x{s}w\d?"),  # DIV2K, wild
    ("", "_x{s}"),
    ("", "_LR"),
    ("_HR", "_LR"),  # SelfExSR
    ("_HR", "_LR_x{s}"),
    ("_HR", "_LRx{s}"),
    ("_HR", ""),
    ("_HR_x{s}", "_LR_x{s}"),
    ("_HR_x{s}", "_LRBI_x{s}"),
    ("_GT", "_LQ"),
)
_HR_FILE = re.compile(r".+_(HR|GT)(_?x\d)?", re.IGNORECASE)
LR_FILE = re.compile(rf".+_(LR|LQ)(_?({ANY_TRACK}|BD|DN))?(_?x\d)?", re.IGNORECASE)
_NUMBER_X_FILE = re.compile(r".*[\d_-]x\d(m|d|w\d?)?", re.IGNORECASE)  # 0001x4, never of HR
X_FILE = re.compile(r"(?P<name>.+)x\d", re.IGNORECASE)  # babyx4, but also matrix4

_THOUSANDS = re.compile(r"\d{4,}")  # LSDIR: a thousand images a folder, 0001000/0000001.png

LAYOUTS = (
    "a dataset is HR/ next to LR_bicubic_X4/, NAME_HR/ next to NAME_LR/, or HR images without LR; "
    "docs/data.md lists all layouts"
)


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; none if it is not a folder."""
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images by stem, including those in LSDIR's folders of a thousand images."""
    thousands = [child for child in list_subfolders(folder) if _THOUSANDS.fullmatch(child.name)]
    files: dict[str, Path] = {}
    for path in chain.from_iterable(map(list_images, (folder, *thousands))):
        if (other := files.setdefault(path.stem, path)) != path:
            names = f"{other.relative_to(folder)} and {path.relative_to(folder)}"
            raise ambiguous(folder, f"it contains {names}")
    return files


def split_pair_folder(folder: Path, files: Files) -> tuple[Files, Files]:
    """Return the HR and the LR files of a folder: LR if their names and others' say so."""
    hr = {stem: path for stem, path in files.items() if _HR_FILE.fullmatch(stem)}
    lr = {stem: path for stem, path in files.items() if LR_FILE.fullmatch(stem)}
    if not (hr and lr):
        return files, {}
    if others := files.keys() - hr.keys() - lr.keys():
        names = list_some(sorted(others))
        raise ambiguous(folder, f"it contains HR, LR and images that are neither by name: {names}")
    return hr, lr


def check_not_lr(folder: Path, hr: Files) -> None:
    """Raise `DatasetError` if images without LR have names of LR images."""
    lr = [s for s in hr if LR_FILE.fullmatch(s) or _NUMBER_X_FILE.fullmatch(s)]
    names = {stem: match["name"] for stem in hr if (match := X_FILE.fullmatch(stem))}
    if len(names) == len(hr) or any(name in hr for name in names.values()):
        lr = lr or list(names)
    if lr:
        raise DatasetError(
            f"{len(lr)} of {len(hr)} images in '{folder}' are LR by their names: {list_some(lr)}",
            rule=LAYOUTS,
            remedy="move HR and LR images to folders HR and LR; if all are HR, rename them or "
            "choose bicubic LR with DATASET:bicubic",
        )


@dataclass(frozen=True, kw_only=True)
class PairMatch:
    """The pairs of HR and LR files under one row of `ENDINGS`, and the names of other files.

    Attributes:
        endings: The row.
        pairs: The pairs.
        hr_without_lr: File names of HR images that lack an LR image.
        lr_without_hr: File names of LR images of no HR image.
    """

    endings: tuple[str, str]
    pairs: Sequence[FilePair]
    hr_without_lr: Sequence[str]
    lr_without_hr: Sequence[str]


def pair_files(folder: Path, hr: Files, lr: Files, scale: int) -> list[FilePair]:
    """Return the pairs under the one row of `ENDINGS` that holds for all files."""
    matches: list[PairMatch] = []
    for endings in ENDINGS:
        match = match_files(hr, lr, endings, scale)
        if not (match.hr_without_lr or match.lr_without_hr):
            return sorted(match.pairs)
        matches.append(match)
    raise _unpaired(folder, max(matches, key=lambda match: len(match.pairs)), scale)


def match_files(hr: Files, lr: Files, endings: tuple[str, str], scale: int) -> PairMatch:
    """Return the pairs of HR and LR files under one row of `ENDINGS`."""
    hr_by_name, lr_by_name = (
        _by_name(files, ending, scale) for files, ending in zip((hr, lr), endings, strict=True)
    )
    lr_endings = {ending for by_ending in lr_by_name.values() for ending in by_ending}
    pairs: list[FilePair] = []
    complete: set[Path] = set()
    for name, by_ending in hr_by_name.items():
        (hr_file,), lr_files = by_ending.values(), lr_by_name.get(name, {})
        for lr_file in lr_files.values():
            stem = lr_file.stem if len(lr_endings) > 1 else hr_file.stem
            pairs.append((stem, hr_file, lr_file))
        if lr_files and lr_files.keys() == lr_endings:
            complete.add(hr_file)
    paired_lr = {lr_file for _, _, lr_file in pairs}
    return PairMatch(
        endings=endings,
        pairs=pairs,
        hr_without_lr=[path.name for path in hr.values() if path not in complete],
        lr_without_hr=[path.name for path in lr.values() if path not in paired_lr],
    )


def _by_name(files: Files, ending: str, scale: int) -> dict[str, dict[str, Path]]:
    """Return name -> ending, lower-case -> file, of the files with an ending of `ENDINGS`."""
    pattern = re.compile(rf"(.+)({ending.replace('{s}', str(scale))})", re.IGNORECASE)
    by_name: dict[str, dict[str, Path]] = {}
    for stem, path in files.items():
        if match := pattern.fullmatch(stem):
            by_name.setdefault(match[1], {})[match[2].lower()] = path
    return by_name


def without_endings(lr: Files, scale: int) -> list[tuple[str, Path]]:
    """Return the LR files by the names of their HR images, where all have the same ending."""
    for _, ending in ENDINGS:
        files = _by_name(lr, ending, scale)
        if ending and sum(map(len, files.values())) == len(lr) == len(files):
            return sorted((name, path) for name, by in files.items() for path in by.values())
    return sorted(lr.items())


def _unpaired(folder: Path, match: PairMatch, scale: int) -> DatasetError:
    unpaired = {"HR without LR": match.hr_without_lr, "LR without HR": match.lr_without_hr}
    counts = [f"{len(names)} {k}: {list_some(names)}" for k, names in unpaired.items() if names]
    hr, lr = (e.replace("{s}", str(scale)).replace(r"\d?", "1") for e in match.endings)
    return DatasetError(
        f"Unpaired images in '{folder}': {'; '.join(counts)}",
        rule=f"the LR image of NAME{hr} is NAME{lr}, or all images of a dataset follow another "
        "convention of docs/data.md",
        remedy="add the missing images, or remove their partners",
    )


def ambiguous(folder: Path, reason: str) -> DatasetError:
    """Return the error of a folder that is not one dataset."""
    remedy = "give the folder of the HR images, or leave only one candidate"
    return DatasetError(f"'{folder}' is ambiguous: {reason}", rule=LAYOUTS, remedy=remedy)
