"""Sets that everyone means the same by: how many pictures they have, under which names."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, kw_only=True)
class Known:
    """One set. called: what its folder or dataset may be called. names: those of its pictures,
    where they are the same everywhere."""

    title: str
    called: str
    count: int
    names: frozenset[str] | None = None

    def lacks(self, found: Collection[str]) -> tuple[list[str], list[str]]:
        """The names that are missing, and those that do not belong to it."""
        if self.names is None:
            return [], []
        return sorted(self.names - set(found)), sorted(set(found) - self.names)


def _numbered(form: str, first: int, last: int) -> frozenset[str]:
    return frozenset(form.format(number) for number in range(first, last + 1))


SET5 = frozenset("baby bird butterfly head woman".split())

SETS = (
    Known(
        title="DIV2K, training",
        called=r"div2k([_-]?train)?(_hr)?",
        count=800,
        names=_numbered("{:04}", 1, 800),
    ),
    Known(
        title="DIV2K, validation",
        called=r"div2k[_-]?val(id)?(ation)?(_hr)?",
        count=100,
        names=_numbered("{:04}", 801, 900),
    ),
    Known(
        title="Flickr2K",
        called=r"flickr2k(_hr)?",
        count=2650,
        names=_numbered("{:06}", 1, 2650),
    ),
    Known(
        title="LSDIR, training",
        called=r"lsdir([_-]?train)?(_hr)?",
        count=84991,
        names=_numbered("{:07}", 1, 84991),
    ),
    Known(
        title="NTIRE's DIV2K and LSDIR, validation",
        called=r"div2k_lsdir_valid(_hr)?",
        count=200,
        names=_numbered("{:07}", 1, 100) | _numbered("{:04}", 801, 900),
    ),
    Known(
        title="NTIRE's DIV2K and LSDIR, test",
        called=r"div2k_lsdir_test(_hr)?",
        count=200,
        names=_numbered("{:07}", 1, 100) | _numbered("{:04}", 901, 1000),
    ),
    Known(title="Set5", called=r"set5", count=5, names=SET5),
    Known(title="Set14", called=r"set14", count=14),
    Known(title="B100", called=r"b(sd)?s?(ds)?100", count=100),
    Known(title="Urban100", called=r"urban100", count=100),
    Known(title="Manga109", called=r"manga109", count=109),
    Known(title="T91", called=r"t91", count=91),
    Known(title="BSD200", called=r"bsd(s)?200", count=200),
)


def known(name: str) -> Known | None:
    """What is known of a set by its name or path, or by that of its HR folder; else None."""
    parts = [part.lower() for part in PurePath(name).parts if part not in ("HR", "train")]
    called = parts[-1] if parts else ""
    return next((each for each in SETS if re.fullmatch(each.called, called)), None)
