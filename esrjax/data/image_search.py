"""Search of folders for image files: those that are taken, and what else is there and why not."""

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from esrjax.data.image_decode import FORMATS
from esrjax.errors import NotFound, UnreadableFile, UserError, list_some

NOT_AN_IMAGE = "without the suffix of an image"
HIDDEN = "hidden"
FOLDER = "folders, which --recursive searches"
FOLDER_LINK = "links to folders"
SPECIAL = "neither files nor folders"
NO_IMAGES = "folders without images"


@dataclass(frozen=True, kw_only=True)
class ImageSearch:
    """The images among files and in folders.

    Attributes:
        images: Path of an image, sorted -> its folder relative to the folder that was searched.
        not_taken: What else these folders contain -> why it is not taken, a key of the notes.
        failures: Folders that cannot be read -> the error.
    """

    images: Mapping[Path, Path]
    not_taken: Mapping[Path, str]
    failures: Mapping[Path, UserError]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not taken: for each reason the number and the first names."""
        paths_of: dict[str, list[Path]] = defaultdict(list)
        for path, reason in self.not_taken.items():
            paths_of[reason].append(path)
        return tuple(
            f"{len(paths)} not taken ({reason}): {list_some(path.name or path for path in paths)}"
            for reason, paths in paths_of.items()
        )


def search_images(inputs: Iterable[str | Path], *, recursive: bool = False) -> ImageSearch:
    """Search for images: the files that are given, and those in the folders that are given.

    A file that is given is taken whatever its suffix; in folders images are recognized by the
    suffixes of all formats that are read, without hidden ones. A file that is reached twice is
    taken once; one file under two names is two images.

    Args:
        inputs: Files and folders.
        recursive: Whether folders in folders are searched as well; links to folders are not.

    Raises:
        NotFound: If a path does not exist, or there is no image at all.
    """
    paths = [Path(path) for path in inputs]
    if missing := [path for path in paths if not os.path.exists(path)]:
        raise _not_found("No such file or folder:", missing)
    images: dict[tuple[str, str], tuple[Path, Path]] = {}
    not_taken, failures = dict[Path, str](), dict[Path, UserError]()
    for root in paths:
        is_folder = os.path.isdir(root)
        outcomes = dict(_search(root, recursive)) if is_folder else {root: None}
        for path, outcome in outcomes.items():
            if outcome is None:
                folder = path.parent.relative_to(root) if is_folder else Path()
                images.setdefault(_entry(path), (path, folder))
            elif isinstance(outcome, str):
                not_taken[path] = outcome
            else:
                failures[path] = outcome
        if None not in outcomes.values() and root not in failures:
            not_taken[root] = NO_IMAGES
    search = ImageSearch(
        images=dict(sorted(images.values())),
        not_taken={path: why for path, why in not_taken.items() if _entry(path) not in images},
        failures=failures,
    )
    if not images and not failures:
        raise _not_found("No images in", paths, search.notes)
    return search


def _entry(path: Path) -> tuple[str, str]:
    """Return what identifies an entry of a folder: a link is another one than its target."""
    return os.path.realpath(path.parent), path.name


def _search(root: Path, recursive: bool) -> Iterator[tuple[Path, str | UserError | None]]:
    """Yield what a folder contains: why it is not taken, the error of a folder, None for images."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            yield folder, _unreadable(folder, error)
            continue
        for path in entries:
            reason = _reason(path, recursive)
            if reason is None and path.is_dir():
                folders.append(path)
            else:
                yield path, reason


def _reason(path: Path, recursive: bool) -> str | None:
    """Return why an entry of a folder is not taken; None for images, and folders to search."""
    if path.name.startswith("."):
        return HIDDEN
    if os.path.isdir(path):
        return (FOLDER_LINK if path.is_symlink() else None) if recursive else FOLDER
    if path.suffix.lower() not in read_suffixes():
        return NOT_AN_IMAGE
    # A link that leads nowhere is taken: reading it says so.
    return None if os.path.isfile(path) or path.is_symlink() else SPECIAL


@functools.cache
def read_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of all formats that are read."""
    extensions = Image.registered_extensions().items()
    return frozenset(suffix for suffix, format_name in extensions if format_name in FORMATS)


def _unreadable(folder: Path, error: OSError) -> UnreadableFile:
    return UnreadableFile(
        f"Cannot search '{folder}': {error.strerror or error}",
        rule="a folder that is searched has permission to be listed",
        remedy="change its permissions, or give other folders",
    )


def _not_found(problem: str, paths: list[Path], notes: Iterable[str] = ()) -> NotFound:
    names = ", ".join(f"'{path}'" for path in paths) or "an empty list of paths"
    suffixes = ", ".join(sorted(read_suffixes()))
    return NotFound(
        "; ".join([f"{problem} {names}", *notes]),
        rule=f"give images, or folders that contain images ({suffixes})",
        remedy="check the paths",
    )
