"""Layouts of dataset folders: which folder is HR, and which is its LR folder.

Names decide, by the tables below. A folder whose name looks like LR but is in none of them is an
error, never ignored: bicubic LR images would take the place of its own.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from esrjax.data.file_pairs import (
    ANY_TRACK,
    ENDINGS,
    LAYOUTS,
    LR_FILE,
    TRACKS,
    X_FILE,
    FilePair,
    Files,
    ambiguous,
    check_not_lr,
    files_by_stem,
    list_subfolders,
    match_files,
    pair_files,
    split_pair_folder,
    without_endings,
)
from esrjax.data.image_io import list_images, read_image_size
from esrjax.errors import DatasetError, DatasetNotFound, UnreadableFile, list_some, log_note

# --- tables of names; their case does not matter ---

# Of processed copies: BasicSR cuts DIV2K_train_HR into DIV2K_train_HR_sub, and X4 into X4_sub.
_PARTS = r"_?(sub|crop|patch|multiscale)\w*"
# HR, DIV2K_train_HR; BasicSR: GTmod12. The rest `_x4` makes its LR folder unclear.
_HR_FOLDER = re.compile(
    rf"(?P<prefix>|.*[_-])(HR|GT(mod\d+)?|original)(?P<rest>|{_PARTS}|_?x\d\w*)",
    re.IGNORECASE,
)
# LR, LQ, NAME_LR, LR_bicubic_X4, LR_x4, LRx4, NAME_LR_unknown; BasicSR: LRbicx4; LSDIR: X4.
_LR_FOLDER = re.compile(
    rf"((?P<prefix>|.*[_-])(LR|LQ)(_?(?P<track>{ANY_TRACK}))?(_?X(?P<scale>\d+))?|X(?P<x>\d+))"
    rf"(?P<rest>|{_PARTS})",
    re.IGNORECASE,
)
_SCALE_FOLDER = re.compile(  # within an LR folder: DIV2K_train_LR_unknown/X4
    rf"X(?P<x>\d+)(?P<rest>|{_PARTS})", re.IGNORECASE
)
_PAIR_FOLDER = "image_SRF_{s}"  # SelfExSR: HR and LR in one folder
# A folder looks like LR if its name contains one of these.
_LR_LIKE = re.compile(
    r"(?<![A-Z])(L[RQ]|X\d(?!\d))|(?i:(?<![a-z])(l[rq]|x\d(?!\d))|(?<![a-z\d])\dx(?![a-z\d])|"
    r"low.?(res|qual)|bicubic|down.?(scal|sampl)|degrad)"
)


@dataclass(frozen=True, kw_only=True)
class FolderName:
    """What the name of a folder of images says.

    Attributes:
        prefix: What precedes HR or LR, lower-case: `div2k_train`.
        track: Of LR, one of `TRACKS`; None if it is not part of the name.
        scale: Of LR; None if it is not part of the name.
        rest: What follows, lower-case, without separator: `sub`.
    """

    prefix: str
    track: str | None = None
    scale: int | None = None
    rest: str = ""


def parse_hr_name(name: str) -> FolderName | None:
    """Return what the name of an HR folder says; None if it is not the name of one."""
    match = _HR_FOLDER.fullmatch(name)
    return match and FolderName(prefix=_normalize(match["prefix"]), rest=_rest(match))


def parse_lr_name(name: str) -> FolderName | None:
    """Return what the name of an LR folder says; None if it is not one of the known names."""
    match = _LR_FOLDER.fullmatch(name)
    if match is None:
        return None
    track, scale = match["track"] or "", match["scale"] or match["x"]
    tracks = [key for key, p in TRACKS.items() if re.fullmatch(p, track, re.IGNORECASE)]
    return FolderName(
        prefix=_normalize(match["prefix"] or ""),
        track=tracks[0] if tracks else None,
        scale=int(scale) if scale else None,
        rest=_rest(match),
    )


def _rest(match: re.Match[str]) -> str:
    return match["rest"].lower().lstrip("_")


def _normalize(prefix: str) -> str:
    return prefix.lower().rstrip("_- .")


def _is_hr_folder(name: str) -> bool:
    folder_name = parse_hr_name(name)
    return folder_name is not None and not folder_name.rest


# --- datasets ---


def list_file_pairs(folder: Path, scale: int, lr_choice: str | None = None) -> list[FilePair]:
    """Return name, HR file and LR file of the images of a dataset folder, sorted by name.

    Args:
        folder: The folder of the dataset, or its HR folder.
        scale: HR size / LR size.
        lr_choice: One of `TRACKS`, or an LR folder, relative to the folder that has the HR folder.
            With `bicubic`, LR is computed where no LR folder is named so.

    Raises:
        DatasetNotFound: If there are no images.
        DatasetError: If the layout is not clear, or an image has no partner.
    """
    folder = Path(os.path.abspath(folder))
    hr_folder = _find_hr_folder(folder, scale, lr_choice)
    files = files_by_stem(hr_folder)
    if not files:
        raise _not_a_dataset(folder, "it contains no images")
    hr, lr = split_pair_folder(hr_folder, files)
    lr_folder = _find_lr_folder(hr_folder, hr, scale, lr_choice)
    if lr_folder:
        if lr and lr_choice is None:
            names = [_relative(lr_folder, hr_folder), f"{len(lr)} files such as {next(iter(lr))}"]
            raise _several_lr_folders(hr_folder, names)
        return pair_files(folder, hr, files_by_stem(lr_folder), scale)
    if lr and lr_choice is None:
        return pair_files(folder, hr, lr, scale)
    if lr_choice is None:
        check_not_lr(hr_folder, hr)
    return sorted((name, path, None) for name, path in hr.items())


def list_lr_files(folder: Path, scale: int) -> list[tuple[str, Path]] | None:
    """Return name and LR file of the images of a dataset without HR; None if it is not one.

    Without HR are an LR folder, a folder that contains an LR folder but neither HR nor images, and
    images whose names all end like those of LR images.

    Raises:
        DatasetNotFound: If it is not a folder.
        DatasetError: If there are several LR folders, or two images of one name.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise _not_a_dataset(folder, "it is not a folder")
    children, stems = [child.name for child in list_subfolders(folder)], list(files_by_stem(folder))
    own_name = parse_lr_name(folder.name)
    if own_name or (stems and all(LR_FILE.fullmatch(s) or X_FILE.fullmatch(s) for s in stems)):
        paths = [_scale_folder(folder, own_name, scale)]
    elif stems or any(map(_is_hr_folder, children)):
        return None
    else:
        names = {child: name for child in children if (name := parse_lr_name(child))}
        paths = [_scale_folder(folder / child, name, scale) for child, name in names.items()]
    lr_folders = [path for path in paths if path and files_by_stem(path)]
    if len(lr_folders) > 1:
        raise _several_lr_folders(folder, [str(path.relative_to(folder)) for path in lr_folders])
    return without_endings(files_by_stem(lr_folders[0]), scale) if lr_folders else None


# --- folders ---


def _find_hr_folder(folder: Path, scale: int, lr_choice: str | None) -> Path:
    """Return the folder of the HR images: one that is named so, or else the dataset's own."""
    if not folder.is_dir():
        raise _not_a_dataset(folder, "it is not a folder")
    children, has_images = (
        [child.name for child in list_subfolders(folder)],
        bool(list_images(folder)),
    )
    pair_folder = _PAIR_FOLDER.format(s=scale).lower()
    hr_names = [name for name in children if _is_hr_folder(name) or name.lower() == pair_folder]
    if not (hr_names or has_images):
        hr_names = [name for name in children if parse_hr_name(name)]
    lr_names = [name for name in children if _lr_prefix(name) is not None]
    if any(name.lower().startswith("gtmod") for name in hr_names):  # cropped from `original`
        hr_names = [name for name in hr_names if name.lower() != "original"]
    if parse_hr_name(folder.name) and not hr_names:
        return folder
    if len(hr_names) + has_images > 1:
        raise ambiguous(folder, f"it contains {list_some(hr_names)}" + " and images" * has_images)
    if hr_names:
        return folder / hr_names[0]
    if lr_names and not has_images:
        raise ambiguous(folder, f"it contains {list_some(lr_names)} but no HR folder")
    if lr_choice is None and _ends_like_lr(folder.name):
        raise ambiguous(folder, "by its name it is the LR folder of a dataset")
    return folder


def _ends_like_lr(name: str) -> bool:
    return bool(parse_lr_name(name)) or any(m.end() == len(name) for m in _LR_LIKE.finditer(name))


@dataclass(frozen=True, kw_only=True)
class _LrFolder:
    """A folder that is, or looks like, the LR side of an HR folder.

    Attributes:
        path: The folder of its images of the scale; None if it has other scales only.
        track: Degradation that its name says, one of `TRACKS`.
        problem: Why it is not used, None if it is clear what it contains.
        scales: The other scales that it has, where `path` is None.
    """

    path: Path | None
    track: str | None
    problem: str | None
    scales: tuple[int, ...] = ()


def _find_lr_folder(hr_folder: Path, hr: Files, scale: int, lr_choice: str | None) -> Path | None:
    """Return the LR folder of an HR folder; None where LR is to be computed."""
    lr_folders = _find_lr_folders(hr_folder, hr, scale)
    if lr_choice is not None:
        return _choose_lr_folder(hr_folder, lr_folders, scale, lr_choice)
    if problems := [folder.problem for folder in lr_folders if folder.problem]:
        raise _unclear_lr_folder(hr_folder, problems)
    paths = [folder.path for folder in lr_folders if folder.path]
    if len(paths) > 1:
        raise _several_lr_folders(hr_folder, [_relative(path, hr_folder) for path in paths])
    # Bicubic LR is the same at any time; that of another degradation cannot be computed.
    tracks = {folder.track for folder in lr_folders} - {None, "bicubic"}
    if tracks and not paths:
        problem = f"its LR images ({list_some(sorted(tracks, key=str))}) are not of scale {scale}"
        raise _unclear_lr_folder(hr_folder, [problem])
    if not paths and (scales := sorted({s for folder in lr_folders for s in folder.scales})):
        texts = f"LR folders of scale {list_some(scales)} not used"
        log_note(f"{hr_folder}: {texts}; LR of scale {scale} is bicubic from HR")
    return paths[0] if paths else None


def _choose_lr_folder(
    hr_folder: Path, lr_folders: Sequence[_LrFolder], scale: int, lr_choice: str
) -> Path | None:
    """Return the LR folder of a track or a path; None where `bicubic` is to be computed."""
    paths = [folder.path for folder in lr_folders if folder.path and folder.track == lr_choice]
    if len(paths) > 1:
        raise _several_lr_folders(hr_folder, [_relative(path, hr_folder) for path in paths])
    if paths:
        return paths[0]
    for parent in (hr_folder.parent, hr_folder, hr_folder.parent.parent):
        path = Path(os.path.abspath(parent / lr_choice))
        if path.is_dir() and path != hr_folder:
            lr_folder = _scale_folder(path, parse_lr_name(path.name), scale)
            if lr_folder and files_by_stem(lr_folder):
                return lr_folder
            raise _no_lr_folder(hr_folder, f"'{path}' has no LR images of scale {scale}")
    if lr_choice == "bicubic":
        return None
    names = [_relative(folder.path, hr_folder) for folder in lr_folders if folder.path]
    contents = f"it has {list_some(names) or 'none'}"
    raise _no_lr_folder(hr_folder, f"'{hr_folder}' has no LR folder '{lr_choice}': {contents}")


def _find_lr_folders(hr_folder: Path, hr: Files, scale: int) -> list[_LrFolder]:
    """Return the folders next to an HR folder, or in it, that are LR or look like it."""
    roots = [hr_folder, *[hr_folder.parent] * bool(parse_hr_name(hr_folder.parent.name))]
    return [
        _LrFolder(path=None, track=None, problem=f"'{child.name}' is in the folder of HR images")
        for child in list_subfolders(hr_folder)
        if _lr_prefix(child.name) is not None
    ] + [
        _lr_folder(child, root, hr_folder, scale)
        for root in roots  # LSDIR/HR for LSDIR/HR/train: its LR images are in LSDIR/X4/train
        for child in _find_lr_siblings(root, hr, scale)
    ]


def _lr_folder(folder: Path, root: Path, hr_folder: Path, scale: int) -> _LrFolder:
    hr_name = parse_hr_name(root.name) or FolderName(prefix=_normalize(root.name))
    name, path, problem = parse_lr_name(folder.name), None, None
    is_own = name is not None and name.prefix in ("", hr_name.prefix)
    if name is None or not is_own or hr_name.rest not in _rests(folder, name):
        problem = f"'{folder.name}' is not the name of its LR folder"
    elif path := _scale_folder(folder, name, scale, hr_name.rest):
        path = path / hr_folder.relative_to(root)
        if not (path.is_dir() and files_by_stem(path)):
            problem = f"'{_relative(path, root)}' contains no images"
    track = name.track if name else None
    scales = () if path or problem or name is None else _scales(folder, name, hr_name.rest)
    return _LrFolder(path=path, track=track, problem=problem, scales=tuple(scales))


def _find_lr_siblings(root: Path, hr: Files, scale: int) -> list[Path]:
    """Return the folders next to `root` that are, or look like, LR of it and of no other folder."""
    siblings = [child for child in list_subfolders(root.parent) if child != root]
    others = {name.prefix for child in siblings if (name := parse_hr_name(child.name))}
    hr_name, own = parse_hr_name(root.name), _normalize(root.name)
    lr_siblings: list[Path] = []
    for child in siblings:
        prefix, is_known = _lr_prefix(child.name), bool(parse_lr_name(child.name))
        if prefix is None or parse_hr_name(child.name):
            continue
        if hr_name:
            is_foreign = prefix != hr_name.prefix and prefix in others and (is_known or prefix)
            is_own = prefix.startswith(hr_name.prefix) or hr_name.prefix.startswith(prefix)
        else:  # of any name, such as T91, next to which other datasets may be
            is_foreign = prefix in others
            # Next to images of any name, a folder X2 without images is no LR folder of them.
            is_own = prefix == own or (is_known and not prefix and _has_images(child))
        if not is_foreign and (is_own or _has_partners(child, hr, scale)):
            lr_siblings.append(child)
    return _of_same_processing(lr_siblings, hr_name.rest if hr_name else "", siblings)


def _of_same_processing(folders: list[Path], rest: str, siblings: list[Path]) -> list[Path]:
    """Return the LR folders without those of another HR folder: X4_sub is that of HR_sub alone."""
    hr_rests = {name.rest for child in siblings if (name := parse_hr_name(child.name))}
    others = {
        folder: hr_rests.isdisjoint(rests)
        for folder in folders
        if (name := parse_lr_name(folder.name)) and rest not in (rests := _rests(folder, name))
    }
    has_own = any(parse_lr_name(folder.name) and folder not in others for folder in folders)
    return [folder for folder in folders if others.get(folder, True) or (rest and not has_own)]


def _lr_prefix(name: str) -> str | None:
    """Return what precedes LR in the name of a folder; None if it does not look like LR."""
    lr_name, match = parse_lr_name(name), _LR_LIKE.search(name)
    if lr_name is not None:
        return lr_name.prefix
    return _normalize(name[: match.start()]) if match else None


def _has_images(folder: Path) -> bool:
    """Return whether a folder contains images, itself or its subfolders."""
    return any(map(list_images, (folder, *list_subfolders(folder))))


def _has_partners(folder: Path, hr: Files, scale: int) -> bool:
    """Return whether a folder has LR of one of the HR files, by its name and its size."""
    is_known, children = parse_lr_name(folder.name), list_subfolders(folder)
    subfolders = [child for child in children if is_known or _SCALE_FOLDER.fullmatch(child.name)]
    lr = {p.stem: p for p in chain.from_iterable(map(list_images, (folder, *subfolders)))}
    pairs = (pair for e in ENDINGS for pair in match_files(hr, lr, e, scale).pairs)
    for _, hr_file, lr_file in pairs:
        try:
            sizes = zip(read_image_size(hr_file), read_image_size(lr_file or hr_file), strict=True)
            return all(side // scale == lr_side for side, lr_side in sizes)
        except UnreadableFile:
            continue
    return False


def _scale_folder(folder: Path, name: FolderName | None, scale: int, rest: str = "") -> Path | None:
    """Return the folder of the LR images of a scale: this one, or `X4` or `X4_sub` in it.

    None if it has other scales only.
    """
    if name is not None and name.scale is not None:
        return folder if name.scale == scale else None
    scales = [(x, child) for x, child_rest, child in _scale_children(folder) if child_rest == rest]
    children = [child for x, child in scales if x == scale]
    if len(children) + bool(scales and list_images(folder)) > 1:
        raise ambiguous(folder, f"it contains {list_some(c.name for c in children)} and images")
    return (children[0] if children else None) if scales else folder


def _scale_children(folder: Path) -> list[tuple[int, str, Path]]:
    """Return scale, rest of the name and path of the folders `X4`, `X4_sub` in a folder."""
    matches = [(_SCALE_FOLDER.fullmatch(child.name), child) for child in list_subfolders(folder)]
    return [(int(match["x"]), _rest(match), child) for match, child in matches if match]


def _scales(folder: Path, name: FolderName, rest: str) -> list[int]:
    """Return the scales that an LR folder has, by its name or the folders in it."""
    if name.scale is not None:
        return [name.scale]
    return [x for x, child_rest, _ in _scale_children(folder) if child_rest == rest]


def _rests(folder: Path, name: FolderName) -> set[str]:
    """Return what follows HR in the names of the HR folders that an LR folder belongs to."""
    children = {rest for _, rest, _ in _scale_children(folder)} if name.scale is None else set()
    return {name.rest} | (children if not name.rest else set())


def _relative(path: Path, hr_folder: Path) -> str:
    return os.path.relpath(path, hr_folder.parent)


# --- errors ---


def _not_a_dataset(folder: Path, reason: str) -> DatasetNotFound:
    remedy = "give a folder of images, or one that contains an HR folder"
    return DatasetNotFound(f"'{folder}' is not a dataset: {reason}", rule=LAYOUTS, remedy=remedy)


def _several_lr_folders(folder: Path, names: Iterable[str]) -> DatasetError:
    return DatasetError(
        f"'{folder}' is ambiguous: there are several LR folders: {list_some(names)}",
        rule=LAYOUTS,
        remedy="choose one of them after a colon: DATASET:unknown or DATASET:FOLDER",
    )


def _unclear_lr_folder(folder: Path, problems: Iterable[str]) -> DatasetError:
    return DatasetError(
        f"'{folder}' may have LR images that are not understood: {list_some(problems)}",
        rule=LAYOUTS,
        remedy="choose it with DATASET:FOLDER, or compute LR with DATASET:bicubic; or rename or "
        "move the folder",
    )


def _no_lr_folder(folder: Path, problem: str) -> DatasetError:
    rule = f"after the colon stands an LR folder next to '{folder.name}', or {list_some(TRACKS)}"
    return DatasetError(problem, rule=rule, remedy="check the name of the LR folder")
