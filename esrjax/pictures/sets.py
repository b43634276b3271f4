"""Sets of (LR, HR) pairs: folders, TFDS datasets, parts of them."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from esrjax.errors import UserError
from esrjax.pictures import records
from esrjax.pictures.files import inside
from esrjax.pictures.pairs import Pair

_LAYOUTS = "a set is HR/ beside LR_bicubic_X4/, or NAME_HR/ beside NAME_LR/, or HR pictures alone"
_HR = re.compile(r"(?:.*_)?HR")
_LR = re.compile(r"(?:.*_)?LR(?:_bicubic)?(?:_X\d+)?")
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_REFERENCE", "data"))  # environment variable, folder in it
_PART = re.compile(r"(?P<set>.+)\[(?:(?P<from>\d*):(?P<to>\d*)|(?P<percent>\d+(?:\.\d+)?)%)\]")
_THOUSAND = re.compile(r"\d{4,}")  # LSDIR's HR/0001000/0000001.png
_SHOWN = 5  # names in an error, before "and N more"


class SetNotFound(UserError):
    """A name behind which there is no set."""


class UnclearSet(UserError):
    """A folder that can be understood in more than one way."""


class UnpairedPictures(UserError):
    """HR pictures without their LR, or the reverse."""


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


def select(name: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """The pairs of a set by name or folder, of a TFDS dataset, or of a part of either.

    `LSDIR[:10000]` are the first ten thousand by name, `LSDIR[20%]` every fifth;
    `tfds:div2k/bicubic_x4:validation` is a split of a dataset.
    """
    said = None if Path(name).exists() else _PART.fullmatch(str(name))
    if said is None:
        return _whole(str(name), scale)
    whole = _whole(said["set"], scale)
    if said["percent"]:
        share = min(1.0, float(said["percent"]) / 100)
        chosen = [whole[int(i / share)] for i in range(round(share * len(whole)))]
    else:
        chosen = whole[int(said["from"] or 0) : int(said["to"] or len(whole))]
    if not chosen:
        raise _not_a_set(name, f"of its {len(whole)} pictures none is in this part")
    return tuple(chosen)


def require(name: str | Path) -> None:
    """Raise where there is no set of that name, whatever is in it."""
    said = None if Path(name).exists() else _PART.fullmatch(str(name))
    whole = said["set"] if said else str(name)
    if whole.startswith(records.PREFIX):
        records.entries(whole, _roots())
    else:
        locate(whole)


def title(name: str | Path) -> str:
    """What a set is called in results: its folder's name, or the name of its dataset or part."""
    try:
        return locate(name).absolute().name
    except SetNotFound:
        return str(name)


def _whole(name: str, scale: int) -> tuple[Pair, ...]:
    if not name.startswith(records.PREFIX):
        return pairs(locate(name), scale)
    found = records.entries(name, _roots())
    return tuple(Pair(name=each.name, hr=each.hr, lr=each.lr, scale=scale) for each in found)


def locate(name: str | Path) -> Path:
    """A path as it is, else a set of that name in $ESRJAX_DATA, else in $ESRJAX_REFERENCE/data."""
    roots = _roots()
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


def _roots() -> list[Path]:
    return [Path(os.environ[key]) / inner for key, inner in _ROOTS if os.environ.get(key)]


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
    """The LR folder that goes with `HR` or `NAME_HR`; the second is DIV2K's, `X4` LSDIR's."""
    stem = hr_folder.name.removesuffix("HR")
    spellings = [f"{stem}LR_bicubic_X{scale}", f"{stem}LR_bicubic/X{scale}", f"{stem}LR"]
    spellings += [] if stem else [f"X{scale}"]  # LSDIR's HR/ and X4/
    found = [path for s in spellings if (path := hr_folder.parent / s).is_dir()]
    if len(found) > 1:
        raise _unclear(hr_folder, f"beside it lie {_some(found)}")
    return found[0] if found else None


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures by name; of LSDIR, those of its folders of a thousand."""
    found: dict[str, Path] = {}
    for inner in [
        folder,
        *(child for child in _folders(folder) if _THOUSAND.fullmatch(child.name)),
    ]:
        for path in inside(inner):
            if path.stem in found:
                twice = " and ".join(
                    str(each.relative_to(folder)) for each in (found[path.stem], path)
                )
                raise _unclear(folder, f"it holds {twice}")
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


def _not_a_set(folder: str | Path, reason: str) -> SetNotFound:
    remedy = "name a folder of pictures, or one that holds an HR folder"
    return SetNotFound(f"'{folder}' is not a set: {reason}", rule=_LAYOUTS, remedy=remedy)


def _unclear(folder: Path, reason: str) -> UnclearSet:
    remedy = "name the folder of the HR pictures, or leave only one to choose"
    return UnclearSet(f"'{folder}' is not clear: {reason}", rule=_LAYOUTS, remedy=remedy)
