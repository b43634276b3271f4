"""Folders of (LR, HR) pairs."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels, inside, read
from esrjax.pictures.resize import crop, downscale

_LAYOUTS = "a set is HR/ beside LR_bicubic_X4/, or NAME_HR/ beside NAME_LR/, or HR pictures alone"
_HR = re.compile(r"(?:.*_)?HR")
_LR = re.compile(r"(?:.*_)?LR(?:_bicubic)?(?:_X\d+)?")
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_REFERENCE", "data"))  # environment variable, folder in it
_PART = re.compile(r"(?P<set>.+)\[(?:(?P<from>\d*):(?P<to>\d*)|(?P<percent>\d+(?:\.\d+)?)%)\]")
_SHOWN = 5  # names in an error, before "and N more"


class SetNotFound(UserError):
    """A name behind which there is no set."""


class UnclearSet(UserError):
    """A folder that can be understood in more than one way."""


class UnpairedPictures(UserError):
    """HR pictures without their LR, or the reverse."""


class PairMismatch(UserError):
    """An LR and an HR picture whose sizes do not go together."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An HR picture and its LR; where `lr` is None it is made from the HR."""

    name: str
    hr: Path
    lr: Path | None = None
    scale: int = 4

    def load(self) -> tuple[Pixels, Pixels]:
        """(h, w, 3) LR and (scale·h, scale·w, 3) HR, cropped at its bottom and right."""
        hr = crop(read(self.hr).pixels, self.scale)
        lr = downscale(hr, self.scale) if self.lr is None else read(self.lr).pixels
        if hr.shape[:2] != tuple(self.scale * side for side in lr.shape[:2]) or not hr.size:
            raise self._mismatch(lr, hr)
        return lr, hr

    def _mismatch(self, lr: Pixels, hr: Pixels) -> PairMismatch:
        small, large = (f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (lr, hr))
        return PairMismatch(
            f"the LR picture is {small}, the cropped HR picture {large} (height x width)",
            place=f"'{self.hr}'" + (f" and '{self.lr}'" if self.lr else ""),
            rule=f"the HR sides, cropped to multiples of {self.scale}, are {self.scale} x the LR's",
            remedy="make the LR picture again, or name the scale it was made for",
        )


def pairs(folder: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """The pairs of a set, unread, sorted by name; `folder` is the set or its HR folder."""
    folder = Path(folder)
    hr_folder, lr_folder = _sides(folder, scale)
    hr, lr = _by_stem(hr_folder), _by_stem(lr_folder) if lr_folder else {}
    if lr_folder:
        _check_partners(folder, hr, lr, f"x{scale}")
    if not hr:
        raise _not_a_set(folder, "it holds no pictures")
    return tuple(
        Pair(name=name, hr=path, lr=lr.get(f"{name}x{scale}"), scale=scale)
        for name, path in sorted(hr.items())
    )


def select(name: str, scale: int = 4) -> tuple[Pair, ...]:
    """The pairs of a set by name or folder, or of a part of it.

    `LSDIR[:10000]` are the first ten thousand by name, `LSDIR[20%]` every fifth.
    """
    said = None if Path(name).exists() else _PART.fullmatch(name)
    if said is None:
        return pairs(locate(name), scale)
    whole = pairs(locate(said["set"]), scale)
    if said["percent"]:
        share = min(1.0, float(said["percent"]) / 100)
        chosen = [whole[int(i / share)] for i in range(round(share * len(whole)))]
    else:
        chosen = whole[int(said["from"] or 0) : int(said["to"] or len(whole))]
    if not chosen:
        raise _not_a_set(Path(name), f"of its {len(whole)} pictures none is in this part")
    return tuple(chosen)


def locate(name: str | Path) -> Path:
    """A path as it is, else a set of that name in $ESRJAX_DATA, else in $ESRJAX_REFERENCE/data."""
    roots = [Path(os.environ[key]) / inner for key, inner in _ROOTS if os.environ.get(key)]
    for path in (Path(name), *(root / name for root in roots)):
        if path.exists():
            return path
    known = {root: _folders(root) for root in roots}
    names = [folder.name for folders in known.values() for folder in folders]
    raise SetNotFound(
        f"there is no set or folder '{name}'",
        place="; ".join(f"'{root}' holds {_some(known[root])}" for root in known) or None,
        rule="a set is a path, or a folder of $ESRJAX_DATA or of $ESRJAX_REFERENCE/data",
        remedy=_suggestion(str(name), names) or "give a path, or set ESRJAX_DATA",
    )


def _sides(folder: Path, scale: int) -> tuple[Path, Path | None]:
    """The folder of the HR pictures, and that of the LR ones if there is one."""
    if not folder.is_dir():
        raise _not_a_set(folder, "it is no folder")
    if _LR.fullmatch(folder.absolute().name):
        raise _unclear(folder, "it is the LR side of a set")
    if _HR.fullmatch(folder.absolute().name):
        return folder, _lr_beside(folder.absolute(), scale)
    sides = [child for child in _folders(folder) if _HR.fullmatch(child.name)]
    loose = bool(inside(folder))
    if len(sides) + loose > 1:
        raise _unclear(folder, f"it holds {_some(sides)}" + " and loose pictures" * loose)
    if sides:
        return sides[0], _lr_beside(sides[0], scale)
    if lonely := [child for child in _folders(folder) if _LR.fullmatch(child.name)]:
        raise _unclear(folder, f"it holds {_some(lonely)} but no HR folder")
    return folder, None


def _lr_beside(hr_folder: Path, scale: int) -> Path | None:
    """The LR folder that goes with `HR` or `NAME_HR`; the second spelling is DIV2K's own."""
    stem = hr_folder.name.removesuffix("HR")
    spellings = (f"{stem}LR_bicubic_X{scale}", f"{stem}LR_bicubic/X{scale}", f"{stem}LR")
    found = [path for s in spellings if (path := hr_folder.parent / s).is_dir()]
    if len(found) > 1:
        raise _unclear(hr_folder, f"beside it lie {_some(found)}")
    return found[0] if found else None


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in inside(folder):
        if path.stem in found:
            raise _unclear(folder, f"it holds {found[path.stem].name} and {path.name}")
        found[path.stem] = path
    return found


def _check_partners(folder: Path, hr: dict[str, Path], lr: dict[str, Path], suffix: str) -> None:
    expected = {name + suffix: path for name, path in hr.items()}
    no_lr = [path for name, path in expected.items() if name not in lr]
    no_hr = [path for name, path in lr.items() if name not in expected]
    lone = [f"{len(no_lr)} HR without LR: {_some(no_lr)}"] if no_lr else []
    lone += [f"{len(no_hr)} LR without HR: {_some(no_hr)}"] if no_hr else []
    if lone:
        raise UnpairedPictures(
            f"pictures of '{folder}' have no partner: {'; '.join(lone)}",
            rule=f"the LR picture of NAME is NAME{suffix}",
            remedy="add the missing pictures, or remove their partners",
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _some(paths: Sequence[Path]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return (", ".join(path.name for path in paths[:_SHOWN]) or "nothing") + more


def _suggestion(name: str, names: Sequence[str]) -> str | None:
    lowered = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"did you mean '{lowered[near[0]]}'?" if near else None


def _not_a_set(folder: Path, reason: str) -> SetNotFound:
    remedy = "name a folder of pictures, or one that holds an HR folder"
    return SetNotFound(f"'{folder}' is not a set: {reason}", rule=_LAYOUTS, remedy=remedy)


def _unclear(folder: Path, reason: str) -> UnclearSet:
    remedy = "name the folder of the HR pictures, or leave only one to choose"
    return UnclearSet(f"'{folder}' is not clear: {reason}", rule=_LAYOUTS, remedy=remedy)
