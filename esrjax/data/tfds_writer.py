"""Datasets of sub-images: their grid, and a writer for TFDS datasets in ArrayRecord format."""

import contextlib
import functools
import io
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from esrjax.data.datasets import Pair, PairImages, Progress
from esrjax.data.image_io import Pixels, prefetch_map
from esrjax.data.tfds_records import NAME_PATTERN
from esrjax.errors import UnwritableFile
from esrjax.io import atomic_write

VERSION = "1.0.0"
_NEW_FOLDER = "choose another --name or --output, free disk space, or delete the folder"


@dataclass(frozen=True, kw_only=True)
class SubImageGrid:
    """The grid of overlapping sub-images (as BasicSR's extract_subimages).

    Attributes:
        crop_size: Side of a sub-image, HR pixels.
        step: Distance from one sub-image to the next, HR pixels.
    """

    crop_size: int = 480
    step: int = 240

    def sub_images(self, pair: Pair, images: PairImages) -> list[tuple[Pixels, Pixels]]:
        """Return LR and HR of the sub-images of a pair that has been read, in row-major order.

        Together they cover the image; the last of a row or column is aligned with the edge. An
        image smaller than `crop_size` is one sub-image.
        """
        lr, hr = images.lr, images.hr
        s, side, step = pair.scale, self.crop_size // pair.scale, self.step // pair.scale
        last_offsets = [max(0, lr_side - side) for lr_side in lr.shape[:2]]
        rows, columns = ([*range(0, last, step), last] for last in last_offsets)
        return [
            (lr[y : y + side, x : x + side], hr[s * y : s * (y + side), s * x : s * (x + side)])
            for y, x in itertools.product(rows, columns)
        ]

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
        notes: Name of an image -> what reading it has changed; none where nothing was.
    """

    folder: Path
    num_images: int
    num_sub_images: int
    num_bytes: int
    notes: dict[str, tuple[str, ...]]


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
    folder = root / name
    with atomic_write(folder, _NEW_FOLDER) as partial:
        builder_root = partial / "root"  # TFDS also leaves an empty folder `downloads` in it
        builder = _Builder(name, builder_root, pairs, grid, progress)
        builder.write()
        (builder_root / name / VERSION).rename(partial / VERSION)
        shutil.rmtree(builder_root)
    return PackedDataset(
        folder=folder,
        num_images=len(pairs),
        num_sub_images=sum(count for *_, count in builder.table),
        num_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        notes=builder.notes,
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
        raise UnwritableFile(
            "the dataset cannot be written: the folder already exists",
            location=str(root / name),
            rule="a dataset is written to a new folder, NAME in $ESRJAX_DATA or in --output",
            remedy=_NEW_FOLDER,
        )


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder class that TFDS needs to write examples.

    Attributes:
        table: Name of an image, height and width of its sub-images (HR pixels), and their number.
        notes: Name of an image -> what reading it has changed.
    """

    VERSION = tfds.core.Version(VERSION)
    url_infos: dict[str, Any] | None = None  # there is nothing to download

    def __init__(
        self, name: str, root: Path, pairs: Sequence[Pair], grid: SubImageGrid, progress: Progress
    ):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] # TFDS declares a ClassVar
        self.table: list[tuple[str, int, int, int]] = []
        self.notes: dict[str, tuple[str, ...]] = {}
        self._pairs, self._grid, self._progress = pairs, grid, progress
        super().__init__(data_dir=root, file_format="array_record")

    def write(self) -> None:
        """Write the dataset to `root/NAME/VERSION`, without output."""
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.download_and_prepare()
        except RuntimeError as error:  # of ArrayRecord's writer
            raise OSError(str(error)) from error

    def _info(self) -> Any:
        image = functools.partial(tfds.features.Image, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="HR sub-images of `crop_size` pixels, one every `step` pixels, the last "
            "one flush with the edge, and their LR sub-images.",
            features=tfds.features.FeaturesDict({"lr": image(), "hr": image()}),
            disable_shuffling=True,  # training shuffles; subsets such as [:100] rely on the order
            # TFDS reads the table when it writes the metadata, after all examples.
            metadata=tfds.core.MetadataDict(images=self.table),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the examples in the order of the pairs, and append a row per pair to the table."""
        index = itertools.count()
        all_images = prefetch_map(Pair.read, self._pairs)
        for pair, images in zip(self._progress(self._pairs), all_images, strict=True):
            crops = self._grid.sub_images(pair, images)
            self.notes |= {pair.name: images.notes} if images.notes else {}
            for lr, hr in crops:
                yield next(index), {"lr": _encode_png(lr), "hr": _encode_png(hr)}
            height, width, _ = crops[0][1].shape
            self.table.append((pair.name, height, width, len(crops)))


def _encode_png(pixels: Pixels) -> io.BytesIO:
    """Encode one image as PNG (compress_level=1) for TFDS's writer without TensorFlow."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    stream.seek(0)
    return stream
