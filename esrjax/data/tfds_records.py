"""Images in TFDS datasets (ArrayRecord format), read without TensorFlow: listing, decoding."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from esrjax.data.image_io import DecodedImage, read_image, read_image_size
from esrjax.errors import NotFound
from esrjax.io import data_dirs

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
    feature: Literal["hr", "lr"]
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
        """Read and decode the image, (h, w, 3) uint8, its levels as stored."""
        return read_image(self.read_bytes(), self, apply_profile=False)

    def image_size(self) -> tuple[int, int]:
        """Return (h, w): `size_hint`, or else what the header of the image says."""
        return self.size_hint or read_image_size(self.read_bytes(), self)


def list_tfds_pairs(name: str) -> list[tuple[str, TfdsImage, TfdsImage | None]]:
    """Return name, HR and LR of all examples of a split, unread, in the order of the dataset.

    LR is None where the dataset has no such feature.

    Args:
        name: `tfds:NAME[/CONFIG][:SPLIT]`. Without a split it is `train`, or else the first one.
            The newest version is used that the first folder of these has: those of
            `esrjax.io.data_dirs`, then TFDS's own ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Raises:
        NotFound: If it does not exist, has no such split, no feature `hr`, or is not stored as
            ArrayRecord.
    """
    match = _REFERENCE.fullmatch(name)
    if match is None:
        raise _not_found(f"{name!r} is not the name of a TFDS dataset")
    folder = str(_newest_version(match["name"]))
    info = _builder(folder).info
    split = match["split"] or ("train" if "train" in info.splits else next(iter(info.splits), ""))
    if split not in info.splits:
        raise _unusable(folder, f"its splits are {', '.join(info.splits)}, not {split!r}")
    if "hr" not in info.features:
        raise _unusable(folder, f"it has {', '.join(info.features)}, but no `hr`")
    _data_source(folder, split)  # open it now, so that errors are raised here
    image = partial(TfdsImage, folder=folder, split=split)
    names_and_sizes = _sub_images(info.metadata if split == "train" else None)
    pairs: list[tuple[str, TfdsImage, TfdsImage | None]] = []
    for index in range(info.splits[split].num_examples):
        name, hr_size = next(names_and_sizes, (f"{index:07}", None))
        lr = image(index=index, feature="lr") if "lr" in info.features else None
        pairs.append((name, image(index=index, feature="hr", size_hint=hr_size), lr))
    return pairs


def _sub_images(metadata: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and HR size of every sub-image, as `tfds_writer` stores them in the metadata.

    Datasets of other builders have no such metadata; their examples are numbered.
    """
    for name, height, width, count in (metadata or {}).get("images", ()):
        yield from ((f"{name}_{index:03}", (height, width)) for index in range(count))


def _newest_version(name: str) -> Path:
    """Return the folder of the newest complete version of a dataset."""
    for root in _search_path():
        infos = (root / name).glob("*.*.*/dataset_info.json")
        if versions := [path.parent for path in infos if _VERSION.fullmatch(path.parent.name)]:
            # Compared as numbers: 10.0.0 is newer than 2.0.0.
            return max(versions, key=lambda path: [int(field) for field in path.name.split(".")])
    raise _not_found(f"No such dataset: '{name}'")


def _search_path() -> list[Path]:
    """Return our folders, then the one in which TFDS itself stores datasets."""
    own = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [*data_dirs(), Path(os.path.expanduser(own))]  # without a home, "~" stays


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


def _not_found(problem: str) -> NotFound:
    return NotFound(
        problem,
        rule=_RULE,
        location="; ".join(f"'{root}'" for root in _search_path()),
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
