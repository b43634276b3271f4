"""Known public datasets, pairs of HR and LR images, and the lookup of datasets.

A dataset is a folder, a TFDS dataset or a subset of either; it is listed as pairs, unread.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath

from esrjax.data.image_io import DecodedImage, Pixels, list_images, read_image, read_image_size
from esrjax.data.resize import bicubic_downscale, bicubic_resize, mod_crop, resized_side
from esrjax.data.tfds_records import TFDS_PREFIX, TfdsImage, list_tfds_pairs
from esrjax.errors import DatasetError, DatasetNotFound, list_some, suggest
from esrjax.io import data_dirs

# --- known datasets ---


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about one public dataset.

    Attributes:
        title: Its name in messages.
        name_pattern: Regular expression for the lower-case names of its folder or TFDS dataset.
        num_images: How many HR images it has.
        image_names: The stems of their files where every copy uses the same ones, else None.
    """

    title: str
    name_pattern: str
    num_images: int
    image_names: frozenset[str] | None = None


def _numbers(num_digits: int, first: int, last: int) -> frozenset[str]:
    """Return the image names `0001` to `0800`, for four digits."""
    return frozenset(f"{number:0{num_digits}}" for number in range(first, last + 1))


DATASETS = (
    DatasetInfo("DIV2K, training", r"div2k([_-]?train)?(_hr)?", 800, _numbers(4, 1, 800)),
    DatasetInfo(
        "DIV2K, validation", r"div2k[_-]?val(id)?(ation)?(_hr)?", 100, _numbers(4, 801, 900)
    ),
    DatasetInfo("Flickr2K", r"flickr2k(_hr)?", 2650, _numbers(6, 1, 2650)),
    DatasetInfo("LSDIR, training", r"lsdir([_-]?train)?(_hr)?", 84991, _numbers(7, 1, 84991)),
    # The NTIRE efficient SR challenge concatenates 100 images of LSDIR and 100 of DIV2K.
    DatasetInfo(
        "NTIRE DIV2K and LSDIR, validation",
        r"div2k_lsdir_valid(_hr)?",
        200,
        _numbers(7, 1, 100) | _numbers(4, 801, 900),
    ),
    DatasetInfo(
        "NTIRE DIV2K and LSDIR, test",
        r"div2k_lsdir_test(_hr)?",
        200,
        _numbers(7, 1, 100) | _numbers(4, 901, 1000),
    ),
    DatasetInfo("Set5", r"set5", 5, frozenset(("baby", "bird", "butterfly", "head", "woman"))),
    DatasetInfo("Set14", r"set14", 14),
    DatasetInfo("B100", r"b(sd)?s?(ds)?100", 100),
    DatasetInfo("Urban100", r"urban100", 100),
    DatasetInfo("Manga109", r"manga109", 109),
    DatasetInfo("T91", r"t91", 91),
    DatasetInfo("BSD200", r"bsd(s)?200", 200),
)


def dataset_info(name: str) -> DatasetInfo | None:
    """Return what is known about a dataset, None if it is not a known one.

    Args:
        name: Its name or path, or the path of its HR folder. A subset such as `LSDIR[:100]` is not
            a known dataset.
    """
    parts = [part.lower() for part in PurePath(name).parts if part not in ("HR", "train")]
    folder = parts[-1] if parts else ""
    return next((info for info in DATASETS if re.fullmatch(info.name_pattern, folder)), None)


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
        return self.load_from_hr(decode_source(self.hr).pixels)

    def load_from_hr(self, hr: Pixels) -> tuple[Pixels, Pixels]:
        """Return LR and HR as `load` does, for an HR image (H, W, 3) that is already in memory."""
        hr = hr if self.hr_scale == 1 else bicubic_resize(hr, self.hr_scale)
        hr = mod_crop(hr, self.scale)
        lr = bicubic_downscale(hr, self.scale) if self.lr is None else decode_source(self.lr).pixels
        (h, w, _), (height, width, _) = lr.shape, hr.shape
        if (height, width) != (self.scale * h, self.scale * w) or not hr.size:
            raise DatasetError(
                f"the LR image is {h}x{w}, the cropped HR image {height}x{width} (height x width)",
                location=f"'{self.hr}'" + (f" and '{self.lr}'" if self.lr else ""),
                rule=f"the HR size, cropped to multiples of {self.scale}, is {self.scale} x the LR "
                "size, and not 0",
                remedy="create the LR image again, or set the scale that it was created for",
            )
        return lr, hr

    def lr_size(self) -> tuple[int, int]:
        """Return (h, w) of the LR image, computed from the header of the HR file alone."""
        size = read_image_size(self.hr) if isinstance(self.hr, Path) else self.hr.image_size()
        height, width = (resized_side(side, self.hr_scale) // self.scale for side in size)
        return height, width


def decode_source(source: Path | TfdsImage) -> DecodedImage:
    """Read an image from a file or from a TFDS dataset."""
    return read_image(source) if isinstance(source, Path) else source.decode()


# --- lookup of datasets, and their pairs ---


_LAYOUTS = (
    "a dataset is HR/ next to LR_bicubic_X4/, NAME_HR/ next to NAME_LR/, or HR images without LR"
)
_HR = re.compile(r"(?:.*_)?HR")
_LR = re.compile(r"(?:.*_)?LR(?:_bicubic)?(?:_X\d+)?")
_SUBSET = re.compile(r"(?P<dataset>.+)\[((?P<start>\d*):(?P<stop>\d*)|(?P<percent>\d+(\.\d+)?)%)\]")
_LSDIR_FOLDER = re.compile(r"\d{4,}")  # LSDIR has a thousand images a folder: 0001000/0000001.png


def list_pairs(name: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """Return the pairs of a dataset or of a subset of it, unread.

    Args:
        name: A path, the name of a folder in $ESRJAX_DATA or $ESRJAX_REFERENCE/data, or a TFDS
            dataset such as `tfds:div2k/bicubic_x4:validation`. With a subset in brackets:
            `LSDIR[:10000]` are the first ten thousand by name, `LSDIR[20%]` every fifth.
        scale: HR size / LR size.

    Raises:
        DatasetNotFound: If there is no such dataset, or the subset is empty.
        NotFound: If there is no such TFDS dataset.
        DatasetError: If the layout of the folder is not clear, or an image has no partner.
    """
    dataset, subset = _split_subset(name)
    if dataset.startswith(TFDS_PREFIX):
        tfds_pairs = list_tfds_pairs(dataset)
        pairs = tuple(Pair(name=name, hr=hr, lr=lr, scale=scale) for name, hr, lr in tfds_pairs)
    else:
        pairs = list_folder_pairs(locate_dataset(dataset), scale)
    if subset is None:
        return pairs
    if subset["percent"]:
        fraction = min(1.0, float(subset["percent"]) / 100)
        selected = tuple(pairs[int(i / fraction)] for i in range(round(fraction * len(pairs))))
    else:
        selected = pairs[int(subset["start"] or 0) : int(subset["stop"] or len(pairs))]
    if not selected:
        raise _not_a_dataset(name, f"the subset selects none of its {len(pairs)} images")
    return selected


def check_exists(name: str | Path) -> None:
    """Raise `DatasetNotFound` if there is no dataset of that name; its content is not looked at."""
    dataset, _ = _split_subset(name)
    if dataset.startswith(TFDS_PREFIX):
        list_tfds_pairs(dataset)
    else:
        locate_dataset(dataset)


def _split_subset(name: str | Path) -> tuple[str, re.Match[str] | None]:
    """Return the dataset, and the match of a subset in brackets; a path that exists has none."""
    subset = None if Path(name).exists() else _SUBSET.fullmatch(str(name))
    return subset["dataset"] if subset else str(name), subset


def dataset_title(name: str | Path) -> str:
    """Return what results call a dataset: the name of its folder, or else `name` itself."""
    try:
        return locate_dataset(name).absolute().name
    except DatasetNotFound:
        return str(name)


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
    names = {root: [folder.name for folder in _subfolders(root)] for root in data_dirs()}
    contents = [f"'{root}' contains {list_some(names[root]) or 'nothing'}" for root in names]
    raise DatasetNotFound(
        f"No such dataset or folder: '{name}'",
        location="; ".join(contents) or None,
        rule="a dataset is a path, or a folder in $ESRJAX_DATA or $ESRJAX_REFERENCE/data",
        remedy=suggest(str(name), chain(*names.values()), "give a path, or set ESRJAX_DATA"),
    )


def list_folder_pairs(folder: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """Return the pairs of a dataset folder, unread, sorted by name.

    Args:
        folder: The folder of the dataset, or its HR folder.
        scale: Selects the LR folder, and computes LR where there is none.

    Raises:
        DatasetNotFound: If there are no images.
        DatasetError: If there are several HR or LR folders, two images of one name, or an image
            without a partner.
    """
    folder = Path(folder)
    hr_folder = _find_hr_folder(folder)
    lr_folder = _find_lr_folder(hr_folder, scale)
    hr, lr = _files_by_stem(hr_folder), _files_by_stem(lr_folder) if lr_folder else {}
    if lr_folder:
        _check_partners(folder, hr, lr, f"x{scale}")
    if not hr:
        raise _not_a_dataset(folder, "it contains no images")
    return tuple(
        Pair(name=name, hr=path, lr=lr.get(f"{name}x{scale}"), scale=scale)
        for name, path in sorted(hr.items())
    )


def _find_hr_folder(folder: Path) -> Path:
    """Return the folder of the HR images: `HR` or `NAME_HR`, or else the dataset's own."""
    if not folder.is_dir():
        raise _not_a_dataset(folder, "it is not a folder")
    if _HR.fullmatch(folder.absolute().name):
        return folder.absolute()
    if _LR.fullmatch(folder.absolute().name):
        raise _ambiguous(folder, "it is the LR folder of a dataset")
    names = [child.name for child in _subfolders(folder)]
    hr_names, lr_names = (list(filter(pattern.fullmatch, names)) for pattern in (_HR, _LR))
    has_images = bool(list_images(folder))
    if len(hr_names) + has_images > 1:
        raise _ambiguous(folder, f"it contains {list_some(hr_names)}" + " and images" * has_images)
    if lr_names and not hr_names:
        raise _ambiguous(folder, f"it contains {list_some(lr_names)} but no HR folder")
    return folder / hr_names[0] if hr_names else folder


def _find_lr_folder(hr_folder: Path, scale: int) -> Path | None:
    """Return the LR folder that belongs to `HR` or `NAME_HR`, if there is one.

    `NAME_LR_bicubic/X4` is the layout of DIV2K, `X4` that of LSDIR.
    """
    if not _HR.fullmatch(hr_folder.name):
        return None
    stem = hr_folder.name.removesuffix("HR")
    spellings = [f"{stem}LR_bicubic_X{scale}", f"{stem}LR_bicubic/X{scale}", f"{stem}LR"]
    spellings += [] if stem else [f"X{scale}"]  # LSDIR's HR/ and X4/
    folders = [path for s in spellings if (path := hr_folder.parent / s).is_dir()]
    if len(folders) > 1:
        names = list_some(path.name for path in folders)
        raise _ambiguous(hr_folder, f"there are several LR folders: {names}")
    return folders[0] if folders else None


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images by stem, including those in LSDIR's folders of a thousand images."""
    thousands = [child for child in _subfolders(folder) if _LSDIR_FOLDER.fullmatch(child.name)]
    files: dict[str, Path] = {}
    for path in chain.from_iterable(map(list_images, (folder, *thousands))):
        if (other := files.setdefault(path.stem, path)) != path:
            names = f"{other.relative_to(folder)} and {path.relative_to(folder)}"
            raise _ambiguous(folder, f"it contains {names}")
    return files


def _check_partners(folder: Path, hr: dict[str, Path], lr: dict[str, Path], suffix: str) -> None:
    expected = {name + suffix: path for name, path in hr.items()}
    unpaired = {
        "HR without LR": [path.name for name, path in expected.items() if name not in lr],
        "LR without HR": [path.name for name, path in lr.items() if name not in expected],
    }
    if any(unpaired.values()):
        counts = [f"{len(names)} {k}: {list_some(names)}" for k, names in unpaired.items() if names]
        raise DatasetError(
            f"Unpaired images in '{folder}': {'; '.join(counts)}",
            rule=f"the LR image of NAME is NAME{suffix}",
            remedy="add the missing images, or remove their partners",
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _not_a_dataset(folder: str | Path, reason: str) -> DatasetNotFound:
    remedy = "give a folder of images, or one that contains an HR folder"
    return DatasetNotFound(f"'{folder}' is not a dataset: {reason}", rule=_LAYOUTS, remedy=remedy)


def _ambiguous(folder: Path, reason: str) -> DatasetError:
    remedy = "give the folder of the HR images, or leave only one candidate"
    return DatasetError(f"'{folder}' is ambiguous: {reason}", rule=_LAYOUTS, remedy=remedy)
