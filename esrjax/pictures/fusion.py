"""Pictures of the same names in several folders -> one folder of what they are fused to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esrjax.errors import UserError
from esrjax.pictures.files import SUFFIXES, Pixels, find, read, size, write

Rule = Callable[[Sequence[Pixels]], Pixels]

SHOWN = 5  # names in an error


class Unfusable(UserError):
    """Pictures that do not go together, or weights that do not fit them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to fuse into one."""

    sources: tuple[Path, ...]
    target: Path


def plan(places: Sequence[Path], output: Path) -> tuple[Job, ...]:
    """A job for every name that all folders have, or one for single pictures."""
    jobs = _planned(places, output)
    kept = {source.resolve() for job in jobs for source in job.sources}
    if replaced := [job.target for job in jobs if job.target.resolve() in kept]:
        problem = f"'{replaced[0]}' is a picture to fuse, and would be replaced"
        raise _unfusable(problem, "", "name another place with -o")
    return jobs


def _planned(places: Sequence[Path], output: Path) -> tuple[Job, ...]:
    if len(places) < 2:
        raise _unfusable("there is one picture or folder", "", "name two or more of them")
    if not any(place.is_dir() for place in places):
        sources = tuple(find([place])[0] for place in places)
        single = output.suffix.lower() in SUFFIXES
        target = output if single else output / f"{sources[0].stem}.png"
        return (Job(sources=sources, target=target),)
    folders = [_by_stem(place) for place in places]
    _require_equal_names(places, folders)
    if output.suffix.lower() in SUFFIXES:
        raise _unfusable(f"'{output}' is the name of a picture", "", "name a folder with -o")
    return tuple(
        Job(sources=tuple(folder[name] for folder in folders), target=output / f"{name}.png")
        for name in sorted(folders[0])
    )


def run(job: Job, rule: Rule) -> None:
    """Fuse the pictures of a job."""
    write(job.target, rule([read(source).pixels for source in job.sources]))


def require_sizes(jobs: Sequence[Job]) -> None:
    """Raise `Unfusable` unless the pictures of every job have one size, by their headers."""
    for job in jobs:
        sizes = [f"{height}x{width}" for height, width in map(size, job.sources)]
        if len(set(sizes)) > 1:
            raise _unfusable(
                f"the pictures are {', '.join(sizes)} (height x width)",
                ", ".join(map(str, job.sources)),
                "fuse pictures of one size, made of the same LR picture",
            )


def require_weights(weights: Sequence[float], places: Sequence[Path]) -> None:
    """Raise `Unfusable` unless there is a weight for each, none negative and not all 0."""
    said = ", ".join(f"{weight:g}" for weight in weights)
    fit = len(weights) == len(places) and all(math.isfinite(w) and w >= 0 for w in weights)
    if not fit or not sum(weights):
        raise _unfusable(
            f"the weights are {said}, of {len(places)} pictures or folders",
            "",
            "give as many weights as there are, none negative and one of them larger than 0",
        )


def _by_stem(place: Path) -> dict[str, Path]:
    """The pictures of a folder by name; `aX.png` and `aX.jpg` are one name too many."""
    found: dict[str, Path] = {}
    for path in find([place]):
        if path.stem in found:
            raise _unfusable(f"'{place}' holds two pictures {path.stem!r}", str(path), "remove one")
        found[path.stem] = path
    return found


def _require_equal_names(places: Sequence[Path], folders: Sequence[dict[str, Path]]) -> None:
    every = set[str]().union(*folders)
    lacking = [
        f"'{place}' lacks {', '.join(missing[:SHOWN])}"
        + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        for place, folder in zip(places, folders, strict=True)
        if (missing := sorted(every - set(folder)))
    ]
    if lacking:
        remedy = "add what is missing, or remove its partners"
        raise _unfusable("; ".join(lacking), ", ".join(map(str, places)), remedy)


def _unfusable(problem: str, place: str, remedy: str) -> Unfusable:
    return Unfusable(
        problem,
        place=place or None,
        rule="pictures are fused by name: folders hold the same names and sizes",
        remedy=remedy,
    )
