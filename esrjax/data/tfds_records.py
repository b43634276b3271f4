"""Reader for images in TFDS datasets (ArrayRecord format), without TensorFlow."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from esrjax.data.image_io import DecodedImage, decode_image, decode_image_size
from esrjax.errors import NotFound

TFDS_PREFIX = "tfds:"
NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_REFERENCE = re.compile(
    rf"{TFDS_PREFIX}(?P<name>{NAME_PATTERN.pattern}(/[\w.-]+)?)(:(?P<split>[A-Za-z_]\w*))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RULE = (
    "a TFDS dataset is tfds:NAME or tfds:NAME/CONFIG, optionally with :SPLIT; it has the feature "
    "`hr`, and may have `lr`"
)

Feature = Literal["hr", "lr"]


@dataclass(frozen=True, kw_only=True)
class TfdsImage:
    """One image of a TFDS dataset, not yet read.

    Attributes:
        folder: Of the dataset version, with `dataset_info.json`.
        split: Name of the split.
        index: Of the example within the split.
        feature: Which image of the example.
        size_hint: (h, w) where the metadata of the dataset has it, else None.
    """

    folder: str
    split: str
    index: int
    feature: Feature
    size_hint: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.folder}, {self.split}[{self.index}].{self.feature}"

    def read_bytes(self) -> bytes:
        """Return the image as it is stored, the content of a PNG or JPEG file.

        Raises:
            NotFound: If the example cannot be read.
        """
        try:
            return _data_source(self.folder, self.split)[self.index][self.feature]
        except Exception as error:  # the readers of TFDS raise RuntimeError, ValueError and others
            raise _unusable(str(self), " ".join(str(error).split())) from error

    def decode(self) -> DecodedImage:
        """Read and decode the image, (h, w, 3) uint8."""
        return decode_image(self.read_bytes(), self)

    def image_size(self) -> tuple[int, int]:
        """Return (h, w): `size_hint`, or else what the header of the image says."""
        return self.size_hint or decode_image_size(self.read_bytes(), self)


@dataclass(frozen=True, kw_only=True)
class TfdsPair:
    """The images of one example; `lr` is None where the dataset has no such feature."""

    name: str
    hr: TfdsImage
    lr: TfdsImage | None


def list_tfds_pairs(name: str, roots: Sequence[Path]) -> tuple[TfdsPair, ...]:
    """Return all examples of a split, unread, in the order of the dataset.

    Args:
        name: `tfds:NAME[/CONFIG][:SPLIT]`. Without a split it is `train`, or else the first one.
        roots: Folders that are searched, before those of TFDS itself ($TFDS_DATA_DIR or
            ~/tensorflow_datasets). The newest version in the first of them is used.

    Raises:
        NotFound: If it does not exist, has no such split, no feature `hr`, or is not
            stored as ArrayRecord.
    """
    match = _REFERENCE.fullmatch(name)
    if match is None:
        raise _not_found(f"{name!r} is not the name of a TFDS dataset", roots)
    folder = _newest_version(match["name"], roots)
    info = _builder(str(folder)).info
    split = match["split"] or ("train" if "train" in info.splits else next(iter(info.splits), ""))
    if split not in info.splits:
        raise _unusable(str(folder), f"its splits are {', '.join(info.splits)}, not {split!r}")
    if "hr" not in info.features:
        raise _unusable(str(folder), f"it has {', '.join(info.features)}, but no `hr`")
    _data_source(str(folder), split)  # open it now, so that errors are raised here
    names_and_sizes = _sub_images(info.metadata) if split == "train" else iter(())
    return tuple(
        _tfds_pair(
            str(folder), split, index, "lr" in info.features, *next(names_and_sizes, (None, None))
        )
        for index in range(info.splits[split].num_examples)
    )


def _tfds_pair(
    folder: str, split: str, index: int, has_lr: bool, name: str | None, hr_size: Any
) -> TfdsPair:
    hr = TfdsImage(folder=folder, split=split, index=index, feature="hr", size_hint=hr_size)
    lr = TfdsImage(folder=folder, split=split, index=index, feature="lr") if has_lr else None
    return TfdsPair(name=name or f"{index:07}", hr=hr, lr=lr)


def _sub_images(metadata: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and HR size of every sub-image, as `packing` stores them in the metadata.

    Datasets of other builders have no such metadata; their examples are numbered.
    """
    for name, height, width, count in (metadata or {}).get("images", ()):
        yield from ((f"{name}_{index:03}", (height, width)) for index in range(count))


def _newest_version(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder of the newest complete version of a dataset."""
    for root in _search_path(roots):
        versions = [path for path in (root / name).glob("*.*.*") if _VERSION.fullmatch(path.name)]
        if complete := [path for path in versions if (path / "dataset_info.json").is_file()]:
            # Compared as numbers: 10.0.0 is newer than 2.0.0.
            return max(complete, key=lambda path: [int(field) for field in path.name.split(".")])
    raise _not_found(f"No such dataset: '{name}'", roots)


def _search_path(roots: Sequence[Path]) -> list[Path]:
    """Return our folders, then the one in which TFDS itself stores datasets."""
    return [*roots, Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()]


def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # on damaged files any exception
        raise _unusable(folder, " ".join(str(error).split())) from error


@lru_cache(maxsize=32)
def _data_source(folder: str, split: str) -> Any:
    """Return random access to the examples, with images left encoded; safe to share by threads."""
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    decoders = {key: tfds.decode.SkipDecoding() for key in builder.info.features}
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise _unusable(folder, f"it is stored as {builder.info.file_format}") from error


def _not_found(problem: str, roots: Sequence[Path]) -> NotFound:
    return NotFound(
        problem,
        rule=_RULE,
        location="; ".join(f"'{root}'" for root in _search_path(roots)),
        remedy="create it with `esrjax data pack DIR --name NAME`, or prepare it with TFDS in "
        'ArrayRecord format (file_format="array_record"); esrjax downloads no datasets',
    )


def _unusable(location: str, reason: str) -> NotFound:
    return NotFound(
        f"the dataset cannot be read: {reason}",
        rule=f"{_RULE}; its file format is array_record",
        location=location,
        remedy="choose another split, or prepare or pack the dataset again",
    )
