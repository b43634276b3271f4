"""Datasets of LR and HR image pairs: folders, TFDS datasets and subsets of either.

First the names, sizes and image names of the common training and benchmark datasets, then pairs,
then the lookup of datasets."""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from esrjax.data import tfds_records
from esrjax.data.image_io import DecodedImage, Pixels, list_images, read_image, read_image_size
from esrjax.data.resize import bicubic_downscale, bicubic_resize, mod_crop, resized_side
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import DatasetError, DatasetNotFound


@dataclass(frozen=True, kw_only=True)
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

    def compare_names(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the image names that are missing from `names`, and those that are unexpected."""
        if self.image_names is None:
            return [], []
        return sorted(self.image_names - set(names)), sorted(set(names) - self.image_names)


def _numbered_names(template: str, first: int, last: int) -> frozenset[str]:
    return frozenset(template.format(number) for number in range(first, last + 1))


SET5 = frozenset("baby bird butterfly head woman".split())

DATASETS = (
    DatasetInfo(
        title="DIV2K, training",
        name_pattern=r"div2k([_-]?train)?(_hr)?",
        num_images=800,
        image_names=_numbered_names("{:04}", 1, 800),
    ),
    DatasetInfo(
        title="DIV2K, validation",
        name_pattern=r"div2k[_-]?val(id)?(ation)?(_hr)?",
        num_images=100,
        image_names=_numbered_names("{:04}", 801, 900),
    ),
    DatasetInfo(
        title="Flickr2K",
        name_pattern=r"flickr2k(_hr)?",
        num_images=2650,
        image_names=_numbered_names("{:06}", 1, 2650),
    ),
    DatasetInfo(
        title="LSDIR, training",
        name_pattern=r"lsdir([_-]?train)?(_hr)?",
        num_images=84991,
        image_names=_numbered_names("{:07}", 1, 84991),
    ),
    # The NTIRE efficient SR challenge concatenates 100 images of LSDIR and 100 of DIV2K.
    DatasetInfo(
        title="NTIRE DIV2K and LSDIR, validation",
        name_pattern=r"div2k_lsdir_valid(_hr)?",
        num_images=200,
        image_names=_numbered_names("{:07}", 1, 100) | _numbered_names("{:04}", 801, 900),
    ),
    DatasetInfo(
        title="NTIRE DIV2K and LSDIR, test",
        name_pattern=r"div2k_lsdir_test(_hr)?",
        num_images=200,
        image_names=_numbered_names("{:07}", 1, 100) | _numbered_names("{:04}", 901, 1000),
    ),
    DatasetInfo(title="Set5", name_pattern=r"set5", num_images=5, image_names=SET5),
    DatasetInfo(title="Set14", name_pattern=r"set14", num_images=14),
    DatasetInfo(title="B100", name_pattern=r"b(sd)?s?(ds)?100", num_images=100),
    DatasetInfo(title="Urban100", name_pattern=r"urban100", num_images=100),
    DatasetInfo(title="Manga109", name_pattern=r"manga109", num_images=109),
    DatasetInfo(title="T91", name_pattern=r"t91", num_images=91),
    DatasetInfo(title="BSD200", name_pattern=r"bsd(s)?200", num_images=200),
)


def dataset_info(name: str) -> DatasetInfo | None:
    """Return what is known about a dataset, None if it is not a known one.

    Args:
        name: Its name or path, or the path of its HR folder. A subset such as `LSDIR[:100]` is not
            a known dataset.
    """
    parents = [part.lower() for part in PurePath(name).parts if part not in ("HR", "train")]
    dataset_name = parents[-1] if parents else ""
    return next((info for info in DATASETS if re.fullmatch(info.name_pattern, dataset_name)), None)


# --------------------------------------------------------------------------------------------------
# Pairs of an HR and an LR image, in files or in TFDS datasets.
# --------------------------------------------------------------------------------------------------


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
        if hr.shape[:2] != tuple(self.scale * side for side in lr.shape[:2]) or not hr.size:
            raise self._size_mismatch(lr, hr)
        return lr, hr

    def lr_size(self) -> tuple[int, int]:
        """Return (h, w) of the LR image, computed from the header of the HR file alone."""
        height, width = (
            read_image_size(self.hr) if isinstance(self.hr, Path) else self.hr.image_size()
        )
        height, width = (resized_side(side, self.hr_scale) for side in (height, width))
        return height // self.scale, width // self.scale

    def _size_mismatch(self, lr: Pixels, hr: Pixels) -> DatasetError:
        lr_size, hr_size = (f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (lr, hr))
        return DatasetError(
            f"the LR image is {lr_size}, the cropped HR image {hr_size} (height x width)",
            location=f"'{self.hr}'" + (f" and '{self.lr}'" if self.lr else ""),
            rule=f"the HR size, cropped to multiples of {self.scale}, is {self.scale} x the LR "
            "size, and not 0",
            remedy="create the LR image again, or set the scale that it was created for",
        )


def decode_source(source: Path | TfdsImage) -> DecodedImage:
    """Read an image from a file or from a TFDS dataset."""
    return read_image(source) if isinstance(source, Path) else source.decode()


# --------------------------------------------------------------------------------------------------
# Datasets of LR and HR image pairs: folders, TFDS datasets and subsets of either.
# --------------------------------------------------------------------------------------------------


_LAYOUTS = (
    "a dataset is HR/ next to LR_bicubic_X4/, NAME_HR/ next to NAME_LR/, or HR images without LR"
)
_HR = re.compile(r"(?:.*_)?HR")
_LR = re.compile(r"(?:.*_)?LR(?:_bicubic)?(?:_X\d+)?")
# Environment variable, and the folder in it that contains datasets; in this order.
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_REFERENCE", "data"))
_SUBSET = re.compile(
    r"(?P<dataset>.+)\[(?:(?P<start>\d*):(?P<stop>\d*)|(?P<percent>\d+(?:\.\d+)?)%)\]"
)
_LSDIR_FOLDER = re.compile(r"\d{4,}")  # LSDIR has a thousand images a folder: 0001000/0000001.png
_MAX_NAMES = 5  # in an error, before "and N more"


def list_folder_pairs(folder: str | Path, scale: int = 4) -> tuple[Pair, ...]:
    """Return the pairs of a dataset folder, unread, sorted by name.

    Args:
        folder: The folder of the dataset, or its HR folder.
        scale: Selects the LR folder, and computes LR where there is none.

    Raises:
        DatasetNotFound: If there are no images.
        DatasetError: If there are several HR or LR folders, or two images of one name.
        DatasetError: If an image has no partner.
    """
    folder = Path(folder)
    hr_folder, lr_folder = _hr_and_lr_folder(folder, scale)
    hr, lr = _files_by_stem(hr_folder), _files_by_stem(lr_folder) if lr_folder else {}
    if lr_folder:
        _check_partners(folder, hr, lr, f"x{scale}")
    if not hr:
        raise _not_a_dataset(folder, "it contains no images")
    return tuple(
        Pair(name=name, hr=path, lr=lr.get(f"{name}x{scale}"), scale=scale)
        for name, path in sorted(hr.items())
    )


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
        DatasetError: If the layout of the folder is not clear.
        DatasetError: If an image has no partner.
    """
    subset = None if Path(name).exists() else _SUBSET.fullmatch(str(name))
    if subset is None:
        return _list_all_pairs(str(name), scale)
    all_pairs = _list_all_pairs(subset["dataset"], scale)
    if subset["percent"]:
        fraction = min(1.0, float(subset["percent"]) / 100)
        pairs = [all_pairs[int(i / fraction)] for i in range(round(fraction * len(all_pairs)))]
    else:
        pairs = all_pairs[int(subset["start"] or 0) : int(subset["stop"] or len(all_pairs))]
    if not pairs:
        raise _not_a_dataset(name, f"the subset selects none of its {len(all_pairs)} images")
    return tuple(pairs)


def check_exists(name: str | Path) -> None:
    """Raise `DatasetNotFound` if there is no dataset of that name; its content is not looked at."""
    subset = None if Path(name).exists() else _SUBSET.fullmatch(str(name))
    dataset = subset["dataset"] if subset else str(name)
    if dataset.startswith(tfds_records.TFDS_PREFIX):
        tfds_records.list_tfds_pairs(dataset, _roots())
    else:
        locate_dataset(dataset)


def dataset_title(name: str | Path) -> str:
    """Return what results call a dataset: the name of its folder, or else `name` itself."""
    try:
        return locate_dataset(name).absolute().name
    except DatasetNotFound:
        return str(name)


def _list_all_pairs(name: str, scale: int) -> tuple[Pair, ...]:
    if not name.startswith(tfds_records.TFDS_PREFIX):
        return list_folder_pairs(locate_dataset(name), scale)
    tfds_pairs = tfds_records.list_tfds_pairs(name, _roots())
    return tuple(Pair(name=pair.name, hr=pair.hr, lr=pair.lr, scale=scale) for pair in tfds_pairs)


def locate_dataset(name: str | Path) -> Path:
    """Return the folder of a dataset.

    Args:
        name: A path is returned as it is; else the name of a folder in $ESRJAX_DATA or, after that,
            in $ESRJAX_REFERENCE/data.

    Raises:
        DatasetNotFound: If there is none.
    """
    roots = _roots()
    for path in (Path(name), *(root / name for root in roots)):
        if path.exists():
            return path
    folders = {root: _subfolders(root) for root in roots}
    names = [folder.name for subfolders in folders.values() for folder in subfolders]
    raise DatasetNotFound(
        f"No such dataset or folder: '{name}'",
        location="; ".join(f"'{root}' contains {_some_names(folders[root])}" for root in folders)
        or None,
        rule="a dataset is a path, or a folder in $ESRJAX_DATA or $ESRJAX_REFERENCE/data",
        remedy=_suggestion(str(name), names) or "give a path, or set ESRJAX_DATA",
    )


def _roots() -> list[Path]:
    return [Path(os.environ[key]) / folder for key, folder in _ROOTS if os.environ.get(key)]


def _hr_and_lr_folder(folder: Path, scale: int) -> tuple[Path, Path | None]:
    """Return the folder of the HR images, and that of the LR images if there is one."""
    if not folder.is_dir():
        raise _not_a_dataset(folder, "it is not a folder")
    if _LR.fullmatch(folder.absolute().name):
        raise _ambiguous(folder, "it is the LR folder of a dataset")
    if _HR.fullmatch(folder.absolute().name):
        return folder, _lr_folder_of(folder.absolute(), scale)
    hr_folders = [child for child in _subfolders(folder) if _HR.fullmatch(child.name)]
    has_images = bool(list_images(folder))
    if len(hr_folders) + has_images > 1:
        raise _ambiguous(
            folder, f"it contains {_some_names(hr_folders)}" + " and images" * has_images
        )
    if hr_folders:
        return hr_folders[0], _lr_folder_of(hr_folders[0], scale)
    if lr_folders := [child for child in _subfolders(folder) if _LR.fullmatch(child.name)]:
        raise _ambiguous(folder, f"it contains {_some_names(lr_folders)} but no HR folder")
    return folder, None


def _lr_folder_of(hr_folder: Path, scale: int) -> Path | None:
    """Return the LR folder that belongs to `HR` or `NAME_HR`.

    `NAME_LR_bicubic/X4` is the layout of DIV2K, `X4` that of LSDIR.
    """
    stem = hr_folder.name.removesuffix("HR")
    spellings = [f"{stem}LR_bicubic_X{scale}", f"{stem}LR_bicubic/X{scale}", f"{stem}LR"]
    spellings += [] if stem else [f"X{scale}"]  # LSDIR's HR/ and X4/
    folders = [path for s in spellings if (path := hr_folder.parent / s).is_dir()]
    if len(folders) > 1:
        raise _ambiguous(hr_folder, f"there are several LR folders: {_some_names(folders)}")
    return folders[0] if folders else None


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images by stem, including those in LSDIR's folders of a thousand images."""
    files: dict[str, Path] = {}
    for subfolder in [
        folder,
        *(child for child in _subfolders(folder) if _LSDIR_FOLDER.fullmatch(child.name)),
    ]:
        for path in list_images(subfolder):
            if path.stem in files:
                duplicates = " and ".join(
                    str(file.relative_to(folder)) for file in (files[path.stem], path)
                )
                raise _ambiguous(folder, f"it contains {duplicates}")
            files[path.stem] = path
    return files


def _check_partners(folder: Path, hr: dict[str, Path], lr: dict[str, Path], suffix: str) -> None:
    expected = {name + suffix: path for name, path in hr.items()}
    no_lr = [path for name, path in expected.items() if name not in lr]
    no_hr = [path for name, path in lr.items() if name not in expected]
    unpaired = [f"{len(no_lr)} HR without LR: {_some_names(no_lr)}"] if no_lr else []
    unpaired += [f"{len(no_hr)} LR without HR: {_some_names(no_hr)}"] if no_hr else []
    if unpaired:
        raise DatasetError(
            f"Unpaired images in '{folder}': {'; '.join(unpaired)}",
            rule=f"the LR image of NAME is NAME{suffix}",
            remedy="add the missing images, or remove their partners",
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _some_names(paths: Sequence[Path]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(paths) - _MAX_NAMES} more" if len(paths) > _MAX_NAMES else ""
    return (", ".join(path.name for path in paths[:_MAX_NAMES]) or "nothing") + more


def _suggestion(name: str, names: Sequence[str]) -> str | None:
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    close_names = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"did you mean '{by_lower_case[close_names[0]]}'?" if close_names else None


def _not_a_dataset(folder: str | Path, reason: str) -> DatasetNotFound:
    remedy = "give a folder of images, or one that contains an HR folder"
    return DatasetNotFound(f"'{folder}' is not a dataset: {reason}", rule=_LAYOUTS, remedy=remedy)


def _ambiguous(folder: Path, reason: str) -> DatasetError:
    remedy = "give the folder of the HR images, or leave only one candidate"
    return DatasetError(f"'{folder}' is ambiguous: {reason}", rule=_LAYOUTS, remedy=remedy)
