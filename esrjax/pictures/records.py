"""Pictures in TFDS datasets of ArrayRecord form, read without TensorFlow."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from esrjax.errors import UserError
from esrjax.pictures.files import Picture, decode, measure

PREFIX = "tfds:"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_SAID = re.compile(rf"{PREFIX}(?P<name>{NAME.pattern}(/[\w.-]+)?)(:(?P<split>[A-Za-z_]\w*))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RULE = "tfds:NAME, tfds:NAME/CONFIG or either with :SPLIT names a dataset with `hr`, maybe `lr`"

Side = Literal["hr", "lr"]


class DatasetNotFound(UserError):
    """A name behind which there is no TFDS dataset that can be read."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture of a dataset. index: within the split. known: its (h, w), if that is told."""

    folder: str
    split: str
    index: int
    side: Side
    known: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.folder}, {self.split}[{self.index}].{self.side}"

    def read_bytes(self) -> bytes:
        """The picture as it is stored, a PNG or JPEG file."""
        try:
            return _source(self.folder, self.split)[self.index][self.side]
        except Exception as error:  # the readers below raise RuntimeError, ValueError and others
            raise _unusable(str(self), " ".join(str(error).split())) from error

    def picture(self) -> Picture:
        """What is in it."""
        return decode(self.read_bytes(), self)

    def size(self) -> tuple[int, int]:
        """(h, w), from the header if it is not told."""
        return self.known or measure(self.read_bytes(), self)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The pictures of one record, by name; lr is None where the dataset has none."""

    name: str
    hr: Record
    lr: Record | None


def entries(said: str, roots: Sequence[Path]) -> tuple[Entry, ...]:
    """All records of `tfds:NAME[/CONFIG][:SPLIT]`, the newest version in the first of `roots`.

    The split is `train`, or the only one, where none is named.
    """
    asked = _SAID.fullmatch(said)
    if asked is None:
        raise _unknown(f"{said!r} is no name of a dataset", roots)
    folder = _folder(asked["name"], roots)
    info = _builder(str(folder)).info
    split = asked["split"] or ("train" if "train" in info.splits else next(iter(info.splits), ""))
    if split not in info.splits:
        raise _unusable(str(folder), f"its splits are {', '.join(info.splits)}, not {split!r}")
    if "hr" not in info.features:
        raise _unusable(str(folder), f"it has {', '.join(info.features)}, but no `hr`")
    _source(str(folder), split)  # what cannot be opened is told now
    told = _told(info.metadata) if split == "train" else iter(())
    return tuple(
        _entry(str(folder), split, index, "lr" in info.features, *next(told, (None, None)))
        for index in range(info.splits[split].num_examples)
    )


def _entry(folder: str, split: str, index: int, has_lr: bool, name: str | None, size: Any) -> Entry:
    hr = Record(folder=folder, split=split, index=index, side="hr", known=size)
    lr = Record(folder=folder, split=split, index=index, side="lr") if has_lr else None
    return Entry(name=name or f"{index:07}", hr=hr, lr=lr)


def _told(metadata: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and size of every sub-image, as `packing` has noted them."""
    for name, height, width, count in (metadata or {}).get("pictures", ()):
        yield from ((f"{name}_{index:03}", (height, width)) for index in range(count))


def _folder(name: str, roots: Sequence[Path]) -> Path:
    """Where the newest version of a dataset lies."""
    for root in _roots(roots):
        found = [path for path in (root / name).glob("*.*.*") if _VERSION.fullmatch(path.name)]
        if whole := [path for path in found if (path / "dataset_info.json").is_file()]:
            return max(whole, key=lambda path: [int(part) for part in path.name.split(".")])
    raise _unknown(f"there is no dataset '{name}'", roots)


def _roots(roots: Sequence[Path]) -> list[Path]:
    """Ours, then where TFDS itself keeps datasets."""
    return [*roots, Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()]


def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of damaged files, whatever their readers raise
        raise _unusable(folder, " ".join(str(error).split())) from error


@lru_cache(maxsize=32)
def _source(folder: str, split: str) -> Any:
    """Records by index, their pictures left encoded; threads may share it."""
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    encoded = {key: tfds.decode.SkipDecoding() for key in builder.info.features}
    try:
        return builder.as_data_source(split, decoders=encoded)
    except NotImplementedError as error:
        raise _unusable(folder, f"it is stored as {builder.info.file_format}") from error


def _unknown(problem: str, roots: Sequence[Path]) -> DatasetNotFound:
    return DatasetNotFound(
        problem,
        rule=_RULE,
        place="; ".join(f"'{root}'" for root in _roots(roots)),
        remedy="make it with `esrjax data pack DIR --name NAME`, or prepare it with TFDS in "
        'ArrayRecord form (file_format="array_record"); nothing is downloaded here',
    )


def _unusable(place: str, reason: str) -> DatasetNotFound:
    return DatasetNotFound(
        f"the dataset cannot be read: {reason}",
        rule=f"{_RULE}; it is stored as array_record",
        place=place,
        remedy="name another split, or prepare or pack the dataset again",
    )
