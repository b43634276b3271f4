"""Sub-images of a set, written as a TFDS dataset in ArrayRecord form."""

import contextlib
import functools
import io
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.pairs import Pair, Progress
from esrjax.pictures.reading import ahead
from esrjax.pictures.records import NAME

VERSION = "1.0.0"
_CUT = (
    "HR sub-images of `side` pixels, one every `step`, the last flush with the edge; and their LR."
)

Piece = tuple[Pixels, Pixels]  # LR and HR


class Unpackable(UserError):
    """A dataset that cannot be made or put where it should go."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How pictures are cut: HR pixels of a side, and from one sub-image to the next."""

    side: int = 480
    step: int = 240

    def pieces(self, pair: Pair) -> list[Piece]:
        """The sub-images of a pair, row by row; of a small picture, all of it."""
        lr, hr = pair.load()
        s = pair.scale
        side, rows, columns = self.side // s, *(self._starts(n, s) for n in lr.shape[:2])
        return [
            (
                lr[top : top + side, left : left + side],
                hr[s * top : s * (top + side), s * left : s * (left + side)],
            )
            for top in rows
            for left in columns
        ]

    def _starts(self, length: int, scale: int) -> list[int]:
        """In LR pixels, along a picture so long."""
        last = max(0, length - self.side // scale)
        return [*range(0, last, self.step // scale), last]

    def require(self, scale: int) -> None:
        """Raise where LR and HR would not be cut alike, or pixels be left out."""
        if self.side % scale or self.step % scale or not 0 < self.step <= self.side:
            raise Unpackable(
                f"sub-images of {self.side} pixels every {self.step} cannot be cut",
                rule=f"side and step are multiples of {scale}, the scale, the step no longer "
                "than the side",
                remedy="change --side or --step",
            )


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A dataset that was written. bytes: of all its files."""

    folder: Path
    pictures: int
    pieces: int
    bytes: int


def pack(
    pairs: Sequence[Pair], name: str, root: Path, cut: Cut, progress: Progress = iter
) -> Packed:
    """Cut the pairs and write them as `root/NAME/VERSION`, whole or not at all."""
    cut.require(pairs[0].scale)
    require_place(root, name)
    partial = root / f".esrjax-{secrets.token_hex(6)}.partial"
    try:
        partial.mkdir(parents=True)
        count = _write(partial, name, pairs, cut, progress)
        os.replace(partial / name, root / name)
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises RuntimeError
        raise _unwritable(root / name, getattr(error, "strerror", None) or str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = [path for path in (root / name).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Packed(folder=root / name, pictures=len(pairs), pieces=count, bytes=size)


def require_place(root: Path, name: str) -> None:
    """Raise where no dataset of that name can be put."""
    if not NAME.fullmatch(name):
        raise Unpackable(
            f"{name!r} cannot be the name of a dataset",
            rule="it is made of letters, digits and underscores, and begins with a letter",
            remedy="choose another --name",
        )
    if (root / name).exists():
        raise _unwritable(root / name, "it is there already")


def _write(root: Path, name: str, pairs: Sequence[Pair], cut: Cut, progress: Progress) -> int:
    """How many sub-images were written."""
    table: list[tuple[str, int, int, int]] = []  # name, height, width, and how many of them
    builder = _Builder(
        name, root, _examples(progress(pairs), ahead(cut.pieces, pairs), table), table
    )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return sum(count for *_, count in table)


def _examples(
    pairs: Iterable[Pair], pieces: Iterable[list[Piece]], table: list[tuple[str, int, int, int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records in the order of the pairs; of every pair a line of the table."""
    index = itertools.count()
    for pair, each in zip(pairs, pieces, strict=True):
        for lr, hr in each:
            yield next(index), {"lr": _png(lr), "hr": _png(hr)}
        height, width, _ = each[0][1].shape
        table.append((pair.name, height, width, len(each)))


def _png(pixels: Pixels) -> io.BytesIO:
    """As TFDS takes a picture without TensorFlow: a file, compressed lightly."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    stream.seek(0)
    return stream


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What TFDS asks for to write examples that are at hand."""

    VERSION = tfds.core.Version(VERSION)
    url_infos: dict[str, Any] | None = None  # there is nothing to download

    def __init__(self, name: str, root: Path, examples: Iterable[Any], table: Sequence[Any]):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] # TFDS says ClassVar
        self._examples, self._table = examples, table
        super().__init__(data_dir=root, file_format="array_record")

    def _info(self) -> Any:
        kind = functools.partial(tfds.features.Image, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_CUT,
            features=tfds.features.FeaturesDict({"lr": kind(), "hr": kind()}),
            disable_shuffling=True,  # training shuffles; parts of a set go by order
            metadata=tfds.core.MetadataDict(pictures=self._table),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._examples}

    def _generate_examples(self) -> Any:
        return self._examples


def _unwritable(place: Path, reason: str) -> Unpackable:
    return Unpackable(
        f"the dataset cannot be written: {reason}",
        place=str(place),
        rule="a dataset goes into a folder of its own, NAME in $ESRJAX_DATA or in --output",
        remedy="choose another --name or --output, make room, or remove what is there",
    )
