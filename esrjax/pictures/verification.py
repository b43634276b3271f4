"""Whether a set is what it should be: every pair looked at once, before anything is trained."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.known import Known
from esrjax.pictures.pairs import Pair, Progress, picture
from esrjax.pictures.reading import ahead
from esrjax.pictures.resize import downscale

EDGE = 2  # outer LR pixels that other MATLABs, which mirror at the edge, make otherwise
ALIKE = 3  # of the 64 bits of a difference hash


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of one pair. problems: what is wrong. notes: what reading it has changed.

    off: grey levels, at most, between its LR and the bicubic one; None where that was not compared.
    digest: sha256 of size and HR pixels. print: its difference hash, None for a plain picture.
    """

    name: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    off: int | None = None
    digest: str | None = None
    print: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a set, and what is only worth a look; a line each. off: of all pairs."""

    pictures: int
    smallest: tuple[int, int] | None
    off: int | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify(
    pairs: Sequence[Pair],
    *,
    against: Sequence[Pair] = (),
    known: Known | None = None,
    tolerance: int = 1,
    progress: Progress = iter,
) -> Verdict:
    """Look at every pair of a set, two at a time.

    against: pairs that are not to be trained on. known: what the set should hold. tolerance: grey
    levels that an LR picture may be off the bicubic one, apart from its outer pixels.
    """
    looks = list(_looks(pairs, tolerance, progress))
    theirs = list(_looks(against, 255, progress)) if against else []
    problems = [f"{look.name}: {problem}" for look in looks for problem in look.problems]
    twice, alike = duplicates(looks, theirs)
    notes = [f"{look.name}: {note}" for look in looks for note in look.notes]
    sizes, offs = [x.size for x in looks if x.size], [x.off for x in looks if x.off is not None]
    return Verdict(
        pictures=len(pairs),
        smallest=min(sizes, key=min, default=None),
        off=max(offs, default=None),
        problems=(*_against_known(pairs, known), *problems, *twice),
        notes=(*notes, *_within(looks), *alike),
    )


def look(pair: Pair, tolerance: int) -> Look:
    """One pair, whatever is wrong with it."""
    try:
        sides = {"HR": picture(pair.hr), **({} if pair.lr is None else {"LR": picture(pair.lr)})}
        lr, hr = pair.match(sides["HR"].pixels)
    except UserError as error:
        return Look(name=pair.name, problems=(error.problem,))
    said = [(side, note) for side, read in sides.items() for note in read.notes]
    deep = [each for each in said if each[1].startswith("16 bits")]
    off = None if pair.lr is None else distance(lr, downscale(hr, pair.scale))
    problems = [f"{side} is not of 8 bits: {note}" for side, note in deep]
    changed = [each for each in said if each not in deep]
    if off is not None and off > tolerance:
        problems.append(f"LR is up to {off} grey levels off the bicubic one")
    return Look(
        name=pair.name,
        problems=tuple(problems),
        notes=tuple(note if side == "HR" else f"LR: {note}" for side, note in changed),
        size=hr.shape[:2],
        off=off,
        digest=hashlib.sha256(f"{hr.shape}".encode() + hr.tobytes()).hexdigest(),
        print=difference_hash(hr),
    )


def distance(ours: Pixels, theirs: Pixels) -> int:
    """Grey levels, at most, between two LR pictures without their outer pixels."""
    inner = tuple(np.s_[EDGE:-EDGE] if side > 2 * EDGE else np.s_[:] for side in ours.shape[:2])
    return int(np.abs(ours[inner].astype(int) - theirs[inner]).max())


def difference_hash(hr: Pixels) -> int | None:
    """64 bits: whether grey falls from each of 8x9 cells to the next; None where little does."""
    cells = np.asarray(Image.fromarray(hr).convert("L").resize((9, 8), Image.Resampling.BOX), int)
    steps = cells[:, :-1] - cells[:, 1:]
    if (np.abs(steps) > 2).mean() < 0.5:  # sky and the like is alike to everything
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def duplicates(looks: Sequence[Look], theirs: Sequence[Look]) -> tuple[list[str], list[str]]:
    """Pictures of ours that are also among theirs, pixel for pixel; and those that look alike."""
    held = {look.digest: look.name for look in theirs if look.digest}
    twice = [
        f"{look.name}: the same picture as {held[look.digest]} of the validation set"
        for look in looks
        if look.digest in held
    ]
    printed = [look for look in theirs if look.print is not None]
    prints = np.array([look.print for look in printed], np.uint64)
    alike: list[str] = []
    for each in looks:
        near = [] if each.digest in held else _near(each, prints)
        alike += [f"{each.name}: looks like {printed[i].name} of the validation set" for i in near]
    return twice, alike


def _near(each: Look, prints: NDArray[np.uint64]) -> list[int]:
    if each.print is None or not prints.size:
        return []
    apart = np.bitwise_count(prints ^ np.uint64(each.print))
    return np.flatnonzero(apart <= ALIKE).tolist()


def _within(looks: Sequence[Look]) -> list[str]:
    """Pictures that the set has more than once."""
    names: dict[str, list[str]] = defaultdict(list)
    for each in looks:
        if each.digest:
            names[each.digest].append(each.name)
    return [f"{', '.join(same)}: the same picture" for same in names.values() if len(same) > 1]


def _against_known(pairs: Sequence[Pair], known: Known | None) -> list[str]:
    if known is None:
        return []
    missing, strange = known.lacks([pair.name for pair in pairs])
    lines = [f"{known.title} has {known.count} pictures, here are {len(pairs)}"]
    lines = lines if len(pairs) != known.count else []
    lines += [f"missing: {_some(missing)}"] if missing else []
    return lines + ([f"not of {known.title}: {_some(strange)}"] if strange else [])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _looks(pairs: Sequence[Pair], tolerance: int, progress: Progress) -> Iterator[Look]:
    """What is seen of every pair, by two threads; no more than a few pictures are in memory."""
    looks = ahead(lambda pair: look(pair, tolerance), pairs, buffer=4)
    for _, seen in zip(progress(pairs), looks, strict=True):
        yield seen
