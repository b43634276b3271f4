"""Known public datasets, pairs of HR and LR images, and the lookup of datasets.

A dataset is a folder, a TFDS dataset or a subset of either; it is listed as pairs, unread.
"""

import functools
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, TypeGuard, TypeVar

from esrjax.data import layouts
from esrjax.data.file_pairs import list_subfolders
from esrjax.data.image_io import DecodedImage, Pixels, read_image, read_image_size
from esrjax.data.resize import bicubic_downscale, bicubic_resize, mod_crop, resized_side
from esrjax.data.tfds_records import TFDS_PREFIX, TfdsImage, list_tfds_pairs
from esrjax.errors import DatasetError, DatasetNotFound, UserError, list_some, suggest
from esrjax.io import data_dirs

# --- known datasets ---


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about one public dataset.

    Attributes:
        title: Its name in messages.
        pattern: Regular expression for the lower-case names of its folder or TFDS dataset.
        num_images: How many HR images it has.
        source: Where it can be had.
        terms: Under which terms.
        image_names: The stems of their files where every copy uses the same ones, else None.
        hr_sha256: Hash of the pixels of all HR images (`verify.hr_sha256`), if it is known.
    """

    title: str
    pattern: str
    num_images: int
    source: str
    terms: str
    image_names: frozenset[str] | None = None
    hr_sha256: str | None = None


@functools.cache
def known_datasets() -> tuple[DatasetInfo, ...]:
    """Return the datasets of `configs/datasets.toml`."""
    text = (resources.files("esrjax_configs") / "datasets.toml").read_text("utf-8")
    return tuple(_parse_info(table) for table in tomllib.loads(text)["dataset"])


def _parse_info(table: dict[str, Any]) -> DatasetInfo:
    """Return a table of the file; `numbers = [[4, 1, 800]]` are the names `0001` to `0800`."""
    ranges = table.pop("numbers", [])
    names = table.pop("names", [])
    names += [f"{n:0{digits}}" for digits, first, last in ranges for n in range(first, last + 1)]
    return DatasetInfo(**table, image_names=frozenset(names) or None)


def dataset_info(name: str) -> DatasetInfo | None:
    """Return what is known about a dataset, None if it is not a known one.

    Args:
        name: Its name or path, or the path of its HR folder. A subset such as `LSDIR[:100]` is not
            a known dataset.
    """
    name_parts = parse_name(name)
    folders = PurePath(name if name_parts.subset else name_parts.dataset).parts
    parts = [part.lower() for part in folders if part not in ("HR", "train")]
    folder = parts[-1] if parts else ""
    if folder in ("val", "valid", "validation", "test"):
        folder = "_".join(parts[-2:])  # DIV2K/valid
    return next((info for info in known_datasets() if re.fullmatch(info.pattern, folder)), None)


# --- pairs ---


# Yields the pairs unchanged, for instance while showing a progress bar.
Progress = Callable[[Sequence["Pair"]], Iterable["Pair"]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An HR image and its LR image, not yet read.

    Attributes:
        name: Unique within a dataset, for files the stem of the HR file.
        hr: Where the HR image is stored.
        lr: Where the LR image is stored; None to compute it from HR by MATLAB's bicubic.
        scale: HR size / LR size.
        hr_scale: HR is resized by this factor after reading, at most 1.
    """

    name: str
    hr: Path | TfdsImage
    lr: Path | TfdsImage | None = None
    scale: int = 4
    hr_scale: float = 1.0

    def downscaled(self, factor: float) -> "Pair":
        """Return the pair with HR resized by `factor` (at most 1), and LR computed from that."""
        return replace(self, lr=None, hr_scale=factor)

    def load(self) -> tuple[Pixels, Pixels]:
        """Read both images.

        Returns:
            LR, (h, w, 3) uint8, and HR, (scale·h, scale·w, 3) uint8, cropped at the bottom and
            right to a multiple of the scale.

        Raises:
            UnreadableFile: If a file is missing or damaged.
            DatasetError: If the sizes do not match, or HR is smaller than the scale.
        """
        images = self.read()
        return images.lr, images.hr

    def read(self) -> "PairImages":
        """Read both images, as `load` does, with notes on what reading has changed."""
        sources = {"": self.hr} | ({} if self.lr is None else {"LR: ": self.lr})
        images = {label: decode_source(source) for label, source in sources.items()}
        lr, hr = self._match(images[""].pixels, images["LR: "].pixels if self.lr else None)
        notes = tuple(label + note for label, image in images.items() for note in image.notes)
        return PairImages(lr=lr, hr=hr, notes=notes)

    def load_from_hr(self, hr: Pixels) -> tuple[Pixels, Pixels]:
        """Return LR and HR as `load` does, for an HR image (H, W, 3) that is already in memory."""
        return self._match(hr, None if self.lr is None else decode_source(self.lr).pixels)

    def _match(self, hr: Pixels, lr: Pixels | None) -> tuple[Pixels, Pixels]:
        """Return LR, computed if it is None, and HR resized and cropped to its size."""
        hr = hr if self.hr_scale == 1 else bicubic_resize(hr, self.hr_scale)
        hr = mod_crop(hr, self.scale)
        lr = bicubic_downscale(hr, self.scale) if lr is None else lr
        self._check_sizes(lr.shape[:2], hr.shape[:2])
        return lr, hr

    def load_lr(self) -> Pixels:
        """Return the LR image (h, w, 3) uint8, as `load` does."""
        return self.load()[0]

    def lr_size(self) -> tuple[int, int]:
        """Return (h, w) of the LR image, computed from the header of HR (`header_size`).

        Raises:
            UnreadableFile: If a header cannot be read.
            DatasetError: If HR is smaller than the scale, or the header of an LR file has another
                size: what `load` would raise.
        """
        sides = (resized_side(side, self.hr_scale) for side in header_size(self.hr))
        height, width = (side // self.scale for side in sides)
        if not isinstance(self.lr, Path):
            return height, width
        lr_size = header_size(self.lr)
        self._check_sizes(lr_size, (self.scale * height, self.scale * width))
        return lr_size

    def _check_sizes(self, lr_size: tuple[int, ...], hr_size: tuple[int, ...]) -> None:
        (h, w), (height, width) = lr_size, hr_size
        if (height, width) != (self.scale * h, self.scale * w) or not height * width:
            raise DatasetError(
                f"the LR image is {h}x{w}, the cropped HR image {height}x{width} (height x width)",
                location=f"'{self.hr}'" + (f" and '{self.lr}'" if self.lr else ""),
                rule=f"the HR size, cropped to multiples of {self.scale}, is {self.scale} x the LR "
                "size, and not 0",
                remedy="create the LR image again, or set the scale that it was created for",
            )


@dataclass(frozen=True, kw_only=True)
class LrImage:
    """An LR image without HR, not yet read: it can be upscaled and timed, but not scored.

    Attributes:
        name: Unique within a dataset: the stem of the file, without an ending of LR images.
        lr: The file.
    """

    name: str
    lr: Path

    def load_lr(self) -> Pixels:
        """Return the image (h, w, 3) uint8.

        Raises:
            UnreadableFile: If the file is missing or damaged.
        """
        return decode_source(self.lr).pixels

    def lr_size(self) -> tuple[int, int]:
        """Return (h, w) of the image, from its header.

        Raises:
            UnreadableFile: If the header cannot be read.
        """
        return header_size(self.lr)


Image = TypeVar("Image", Pair, LrImage)
Images = Sequence[Pair] | Sequence[LrImage]  # of a dataset; without HR they cannot be scored


def header_size(source: Path | TfdsImage) -> tuple[int, int]:
    """Return (h, w) of an image from its header, which is read once per process.

    A training needs the sizes several times: in its checks, its fingerprint and every stage.

    Raises:
        UnreadableFile: If the header cannot be read.
    """
    if not isinstance(source, Path):
        return source.image_size()
    try:
        status = source.stat()
    except OSError:
        return read_image_size(source)  # raises the error
    return _file_size(source, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2**18)  # 85,000 pairs of LSDIR
def _file_size(path: Path, mtime_ns: int, num_bytes: int) -> tuple[int, int]:
    """Return (h, w) of an image file; a file that changes has other arguments."""
    return read_image_size(path)


@dataclass(frozen=True, kw_only=True)
class PairImages:
    """The images of a pair.

    Attributes:
        lr: (h, w, 3) uint8.
        hr: (scale·h, scale·w, 3) uint8, cropped to a multiple of the scale.
        notes: What reading has changed, as of `DecodedImage`; those on LR begin with "LR: ".
    """

    lr: Pixels
    hr: Pixels
    notes: tuple[str, ...] = ()


def has_hr(images: Sequence[Pair] | Sequence[LrImage]) -> TypeGuard[Sequence[Pair]]:
    """Return whether the images are pairs, so that they can be scored and trained on."""
    return all(isinstance(image, Pair) for image in images)


def decode_source(source: Path | TfdsImage) -> DecodedImage:
    """Read an image from a file or from a TFDS dataset, its levels as stored: no ICC profile.

    The programs with which results are compared ignore profiles, and LR files often have none.
    """
    is_file = isinstance(source, Path)
    return read_image(source, apply_profile=False) if is_file else source.decode()


def sample_notes(pairs: Sequence[Pair], max_images: int = 16) -> dict[str, tuple[str, ...]]:
    """Return name -> notes on reading, of evenly spaced images of a dataset that have any.

    Args:
        pairs: The dataset; those that cannot be read are passed over.
        max_images: How many are read; a dataset that training reads later is not read in full.
    """
    step = max(1, math.ceil(len(pairs) / max_images))
    notes: dict[str, tuple[str, ...]] = {}
    for pair in pairs[::step]:
        try:
            notes[pair.name] = pair.read().notes
        except UserError:
            continue
    return {name: texts for name, texts in notes.items() if texts}


# --- lookup of datasets, and their pairs ---


_SUBSET = re.compile(r"(?P<dataset>.+)\[((?P<start>\d*):(?P<stop>\d*)|(?P<percent>\d+(\.\d+)?)%)\]")
_LR_CHOICE = re.compile(r"(?P<dataset>.+):(?P<lr>[^:]+)")


@dataclass(frozen=True, kw_only=True)
class DatasetName:
    """The parts of `DATASET:LR[SUBSET]`.

    Attributes:
        dataset: A name, a path, or `tfds:NAME` with everything that belongs to it.
        lr_choice: The LR folder or the track (see `layouts.TRACKS`), None if it is not chosen.
        subset: The match of the brackets, None if there are none.
    """

    dataset: str
    lr_choice: str | None = None
    subset: re.Match[str] | None = None


def parse_name(name: str | Path) -> DatasetName:
    """Return the parts of the name of a dataset; a path that exists is the dataset itself."""
    dataset = str(name)
    if Path(name).exists():
        return DatasetName(dataset=dataset)
    subset = _SUBSET.fullmatch(dataset)
    dataset = subset["dataset"] if subset else dataset
    is_complete = dataset.startswith(TFDS_PREFIX) or Path(dataset).exists()
    choice = None if is_complete else _LR_CHOICE.fullmatch(dataset)
    return DatasetName(
        dataset=choice["dataset"] if choice else dataset,
        lr_choice=choice["lr"] if choice else None,
        subset=subset,
    )


def list_pairs(name: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """Return the pairs of a dataset or of a subset of it, unread.

    Args:
        name: A path, the name of a folder in $ESRJAX_DATA or $ESRJAX_REFERENCE/data, or a TFDS
            dataset such as `tfds:div2k/bicubic_x4:validation`. After a colon, `DIV2K:unknown` or
            `DIV2K:DIV2K_train_LR_unknown` choose the LR folder by its track or its name. With a
            subset in brackets: `LSDIR[:10000]` are the first ten thousand by name, `LSDIR[20%]`
            every fifth.
        scale: HR size / LR size.

    Raises:
        DatasetNotFound: If there is no such dataset, or the subset is empty.
        NotFound: If there is no such TFDS dataset.
        DatasetError: If the layout of the folder is not clear, it has no HR images, or an image has
            no partner.
    """
    parts = parse_name(name)
    if parts.dataset.startswith(TFDS_PREFIX):
        tfds_pairs = list_tfds_pairs(parts.dataset)
        pairs = tuple(Pair(name=name, hr=hr, lr=lr, scale=scale) for name, hr, lr in tfds_pairs)
    else:
        pairs = list_folder_pairs(locate_dataset(parts.dataset), scale, parts.lr_choice)
    return _select(name, pairs, parts.subset)


def list_lr_images(name: str | Path, scale: int = 4) -> tuple[Pair, ...] | tuple[LrImage, ...]:
    """Return the images of a dataset that need not have HR; pairs if it has.

    Args:
        name: As of `list_pairs`; it may also be a folder of LR images.
        scale: Selects the LR folder.

    Raises:
        UserError: As of `list_pairs`.
    """
    parts = parse_name(name)
    if parts.dataset.startswith(TFDS_PREFIX) or parts.lr_choice:
        return list_pairs(name, scale)
    files = layouts.list_lr_files(locate_dataset(parts.dataset), scale)
    if files is None:
        return list_pairs(name, scale)
    images = tuple(LrImage(name=name, lr=path) for name, path in files)
    return _select(name, images, parts.subset)


def _select(
    name: str | Path, images: tuple[Image, ...], subset: re.Match[str] | None
) -> tuple[Image, ...]:
    if subset is None:
        return images
    if subset["percent"]:
        fraction = min(1.0, float(subset["percent"]) / 100)
        selected = tuple(images[int(i / fraction)] for i in range(round(fraction * len(images))))
    else:
        selected = images[int(subset["start"] or 0) : int(subset["stop"] or len(images))]
    if not selected:
        raise DatasetNotFound(
            f"'{name}' is not a dataset: the subset selects none of its {len(images)} images",
            rule="a subset is [START:STOP], counted from 0, or [PERCENT%]",
            remedy="select other images",
        )
    return selected


def check_exists(name: str | Path) -> None:
    """Raise `DatasetNotFound` if there is no dataset of that name; its content is not looked at."""
    dataset = parse_name(name).dataset
    if dataset.startswith(TFDS_PREFIX):
        list_tfds_pairs(dataset)
    else:
        locate_dataset(dataset)


def dataset_title(name: str | Path) -> str:
    """Return what results call a dataset: the name of its folder, or else `name` itself.

    A chosen LR folder is part of it (`DIV2K:unknown`): it is another dataset.
    """
    parts = parse_name(name)
    if parts.subset or parts.dataset.startswith(TFDS_PREFIX):
        return str(name)
    try:
        title = locate_dataset(parts.dataset).absolute().name
    except DatasetNotFound:
        return str(name)
    return f"{title}:{parts.lr_choice}" if parts.lr_choice else title


def locate_dataset(name: str | Path) -> Path:
    """Return the folder of a dataset.

    Args:
        name: A path is returned as it is; else the name of a folder in $ESRJAX_DATA or, after that,
            in $ESRJAX_REFERENCE/data.

    Raises:
        DatasetNotFound: If there is none.
    """
    for path in (Path(name), *(root / name for root in data_dirs())):
        if path.exists():
            return path
    names = {root: [child.name for child in list_subfolders(root)] for root in data_dirs()}
    contents = [f"'{root}' contains {list_some(names[root]) or 'nothing'}" for root in names]
    remedy, info = "give a path, or set ESRJAX_DATA", dataset_info(str(name))
    if info:
        remedy += f"; {info.title} is from {info.source}; see `esrjax data list`"
    raise DatasetNotFound(
        f"No such dataset or folder: '{name}'",
        location="; ".join(contents) or None,
        rule="a dataset is a path, or a folder in $ESRJAX_DATA or $ESRJAX_REFERENCE/data",
        remedy=suggest(str(name), chain(*names.values()), remedy),
    )


def list_folder_pairs(
    folder: str | Path, scale: int = 4, lr_choice: str | None = None
) -> tuple[Pair, ...]:
    """Return the pairs of a dataset folder, unread, sorted by name.

    Args:
        folder: The folder of the dataset, or its HR folder.
        scale: Selects the LR folder, and computes LR where there is none.
        lr_choice: The LR folder or its track, as of `layouts.list_file_pairs`.

    Raises:
        DatasetNotFound: If there are no images.
        DatasetError: If the layout is not clear, two images have one name, or an image has no
            partner.
    """
    files = layouts.list_file_pairs(Path(folder), scale, lr_choice)
    return tuple(Pair(name=name, hr=hr, lr=lr, scale=scale) for name, hr, lr in files)


# --- the origin of LR ---


def lr_source(pairs: Sequence[Pair] | Sequence[LrImage]) -> str:
    """Return where the LR images come from: `read from FOLDER`, or `bicubic from HR`.

    It is read off the pairs themselves; both parts are returned for copies of downscaled HR images.
    """
    sources = [pair.lr for pair in pairs]
    factors = sorted({p.hr_scale for p in pairs if isinstance(p, Pair) and p.hr_scale != 1})
    texts = [f"read from {_common_folder(filter(None, sources))}"] if any(sources) else []
    has_computed = any(isinstance(p, Pair) and p.lr is None and p.hr_scale == 1 for p in pairs)
    texts += ["bicubic from HR"] * has_computed
    if factors:
        texts.append(f"bicubic from HR resized by {list_some(f'{f:g}' for f in factors)}")
    return ", ".join(texts)


def _common_folder(sources: Iterable[Path | TfdsImage]) -> str:
    folders = {str(s.parent) if isinstance(s, Path) else s.folder for s in sources}
    return os.path.commonpath([os.path.abspath(folder) for folder in folders])
