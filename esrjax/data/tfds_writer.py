"""Writer for datasets of sub-images: TFDS datasets in ArrayRecord format."""

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

from esrjax.data.datasets import Pair, Progress
from esrjax.data.image_io import Pixels, prefetch_map
from esrjax.data.tfds_records import NAME_PATTERN
from esrjax.errors import UnwritableFile

VERSION = "1.0.0"
_DESCRIPTION = (
    "HR sub-images of `crop_size` pixels, one every `step` pixels, the last one flush with the "
    "edge, and their LR sub-images."
)

SubImagePair = tuple[Pixels, Pixels]  # LR and HR


@dataclass(frozen=True, kw_only=True)
class SubImageGrid:
    """The grid of overlapping sub-images (as BasicSR's extract_subimages).

    Attributes:
        crop_size: Side of a sub-image, HR pixels.
        step: Distance from one sub-image to the next, HR pixels.
    """

    crop_size: int = 480
    step: int = 240

    def sub_images(self, pair: Pair) -> list[SubImagePair]:
        """Return the sub-images of a pair in row-major order.

        Together they cover the image; the last of a row or column is aligned with the edge. An
        image smaller than `crop_size` is one sub-image.
        """
        lr, hr = pair.load()
        s = pair.scale
        side, rows, columns = self.crop_size // s, *(self._offsets(n, s) for n in lr.shape[:2])
        return [
            (
                lr[top : top + side, left : left + side],
                hr[s * top : s * (top + side), s * left : s * (left + side)],
            )
            for top in rows
            for left in columns
        ]

    def _offsets(self, lr_side: int, scale: int) -> list[int]:
        """Return where the sub-images start along one side of the LR image, LR pixels."""
        last = max(0, lr_side - self.crop_size // scale)
        return [*range(0, last, self.step // scale), last]

    def check_scale(self, scale: int) -> None:
        """Raise `UnwritableFile` if LR and HR would be cropped differently, or not covered."""
        if self.crop_size % scale or self.step % scale or not 0 < self.step <= self.crop_size:
            raise UnwritableFile(
                f"Invalid grid of sub-images: crop size {self.crop_size}, step {self.step}",
                rule=f"crop size and step are multiples of {scale}, the scale, and the step is not "
                "larger than the crop size",
                remedy="change --crop-size or --step",
            )


@dataclass(frozen=True, kw_only=True)
class PackedDataset:
    """A dataset that has been written.

    Attributes:
        folder: Its folder, which contains that of its version.
        num_images: How many HR images were cropped.
        num_sub_images: How many sub-images it has.
        num_bytes: Size of all its files.
    """

    folder: Path
    num_images: int
    num_sub_images: int
    num_bytes: int


def pack(
    pairs: Sequence[Pair], name: str, root: Path, grid: SubImageGrid, progress: Progress = iter
) -> PackedDataset:
    """Crop image pairs to sub-images and write them as a TFDS dataset, atomically.

    Args:
        pairs: At least one.
        name: Of the dataset; it is then `tfds:NAME`.
        root: The dataset is written to `root/NAME/VERSION`.
        grid: How the images are cropped.
        progress: Wraps the pairs, for instance in a progress bar.

    Raises:
        UnwritableFile: If grid, name or folder do not allow it.
        UnreadableFile: If an image cannot be read; nothing is written then.
    """
    grid.check_scale(pairs[0].scale)
    check_destination(root, name)
    partial = root / f".esrjax-{secrets.token_hex(6)}.partial"
    try:
        partial.mkdir(parents=True)
        num_sub_images = _write(partial, name, pairs, grid, progress)
        os.replace(partial / name, root / name)
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer raises RuntimeError
        raise _unwritable(root / name, getattr(error, "strerror", None) or str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = [path for path in (root / name).rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    return PackedDataset(
        folder=root / name,
        num_images=len(pairs),
        num_sub_images=num_sub_images,
        num_bytes=num_bytes,
    )


def check_destination(root: Path, name: str) -> None:
    """Raise `UnwritableFile` if the name is invalid or `root/NAME` exists."""
    if not NAME_PATTERN.fullmatch(name):
        raise UnwritableFile(
            f"Invalid dataset name {name!r}",
            rule="a name consists of letters, digits and underscores, and begins with a letter",
            remedy="choose another --name",
        )
    if (root / name).exists():
        raise _unwritable(root / name, "the folder already exists")


def _write(
    root: Path, name: str, pairs: Sequence[Pair], grid: SubImageGrid, progress: Progress
) -> int:
    """Write the dataset and return the number of sub-images."""
    # Per image: name, height and width of its sub-images (HR pixels), and their number.
    table: list[tuple[str, int, int, int]] = []
    builder = _Builder(
        name, root, _examples(progress(pairs), prefetch_map(grid.sub_images, pairs), table), table
    )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return sum(count for *_, count in table)


def _examples(
    pairs: Iterable[Pair],
    sub_images: Iterable[list[SubImagePair]],
    table: list[tuple[str, int, int, int]],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the examples in the order of the pairs, and append a row per pair to the table."""
    index = itertools.count()
    for pair, crops in zip(pairs, sub_images, strict=True):
        for lr, hr in crops:
            yield next(index), {"lr": _encode_png(lr), "hr": _encode_png(hr)}
        height, width, _ = crops[0][1].shape
        table.append((pair.name, height, width, len(crops)))


def _encode_png(pixels: Pixels) -> io.BytesIO:
    """Encode one image as PNG (compress_level=1) for TFDS's writer without TensorFlow."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    stream.seek(0)
    return stream


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder class that TFDS needs to write examples that are already in memory."""

    VERSION = tfds.core.Version(VERSION)
    url_infos: dict[str, Any] | None = None  # there is nothing to download

    def __init__(self, name: str, root: Path, examples: Iterable[Any], table: Sequence[Any]):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] # TFDS declares a ClassVar
        self._examples, self._table = examples, table
        super().__init__(data_dir=root, file_format="array_record")

    def _info(self) -> Any:
        image = functools.partial(tfds.features.Image, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({"lr": image(), "hr": image()}),
            disable_shuffling=True,  # training shuffles; subsets such as [:100] rely on the order
            # TFDS reads the table when it writes the metadata, after all examples.
            metadata=tfds.core.MetadataDict(images=self._table),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._examples}

    def _generate_examples(self) -> Any:
        return self._examples


def _unwritable(path: Path, reason: str) -> UnwritableFile:
    return UnwritableFile(
        f"the dataset cannot be written: {reason}",
        location=str(path),
        rule="a dataset is written to a new folder, NAME in $ESRJAX_DATA or in --output",
        remedy="choose another --name or --output, free disk space, or delete the folder",
    )
