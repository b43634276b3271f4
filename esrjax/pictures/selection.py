"""The pictures of sets that are most like those of another: a set for fine-tuning."""

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.pairs import Pair, Progress, picture
from esrjax.pictures.records import Record

Vector = NDArray[np.float32]
Features = Callable[[Pixels], Vector]  # of an HR picture, any length but 0

SIDE = 8  # of a thumbnail, pixels


class Unselectable(UserError):
    """Pictures that cannot be chosen among, or put where they should go."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A picture, and the cosine between it and the nearest of those it should be like."""

    pair: Pair
    similarity: float


def thumbnail(pixels: Pixels) -> Vector:
    """Its colours, coarsely: the mean of each of 8 x 8 parts, as distance from grey."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
    return (np.asarray(small, np.float32).ravel() / 255 - 0.5).astype(np.float32)


def select(
    pairs: Sequence[Pair],
    like: Sequence[Pair],
    count: int,
    features: Features,
    progress: Progress = iter,
) -> tuple[Choice, ...]:
    """The `count` pairs nearest to one of `like`, nearest first; of equals the first by name."""
    if count > len(pairs):
        raise Unselectable(
            f"{count} pictures are asked for, of {len(pairs)}",
            rule="pictures are chosen among those of the sets, each once",
            remedy="ask for fewer, or name more sets",
        )
    wanted = np.stack([_direction(pair, features) for pair in like])
    found = [
        Choice(pair=pair, similarity=float((wanted @ _direction(pair, features)).max()))
        for pair in progress(pairs)
    ]
    return tuple(sorted(found, key=lambda choice: (-choice.similarity, choice.pair.name))[:count])


def named(sets: Sequence[tuple[str, Sequence[Pair]]]) -> tuple[Pair, ...]:
    """The pairs of all sets; a name that occurs twice gets its set's in front."""
    times = Counter(pair.name for _, pairs in sets for pair in pairs)
    return tuple(
        replace(pair, name=f"{PurePath(title).name}_{pair.name}") if times[pair.name] > 1 else pair
        for title, pairs in sets
        for pair in pairs
    )


def require_links(pairs: Sequence[Pair], folder: Path) -> None:
    """Raise `Unselectable` unless links to the pairs can be put into a new `folder`."""
    if folder.exists():
        raise Unselectable(
            f"'{folder}' already exists",
            rule="chosen pictures go into a folder of their own",
            remedy="name a new folder with -o",
        )
    twice = [name for name, times in Counter(pair.name for pair in pairs).items() if times > 1]
    if twice:
        raise Unselectable(
            f"several of the pictures would be called {twice[0]!r}",
            rule="a picture is named by its file, and by its set where others have its name",
            remedy="name the sets differently, or choose among one after the other",
        )
    if not all(isinstance(side, Path) for pair in pairs for side in (pair.hr, pair.lr or pair.hr)):
        raise Unselectable(
            "pictures of a TFDS dataset are among those to choose from",
            rule="a chosen picture is a link to its file",
            remedy="choose among folders, and pack what was chosen",
        )


def link(choices: Sequence[Choice], folder: Path) -> None:
    """A set of links to the chosen pictures, whole or not at all; LR where all have theirs."""
    pairs = [choice.pair for choice in choices]
    require_links(pairs, folder)
    partial = folder.with_name(f".esrjax-{secrets.token_hex(6)}.partial")
    try:
        for pair in pairs:
            _link(pair.hr, partial / "HR", pair.name)
            if all(each.lr for each in pairs):
                _link(pair.lr, partial / f"LR_bicubic_X{pair.scale}", f"{pair.name}x{pair.scale}")
        os.replace(partial, folder)
    except OSError as error:
        raise Unselectable(
            f"'{folder}' cannot be written: {error.strerror}",
            rule="chosen pictures go into a folder of their own, as links",
            remedy="name another folder with -o",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _direction(pair: Pair, features: Features) -> Vector:
    """The features of the HR picture, of length 1."""
    vector = np.asarray(features(picture(pair.hr).pixels), np.float32)
    length = float(np.linalg.norm(vector))
    return (vector / length).astype(np.float32) if length else vector


def _link(file: Path | Record | None, folder: Path, name: str) -> None:
    assert isinstance(file, Path)  # `require_links` has asked
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}{file.suffix}").symlink_to(file.resolve())
