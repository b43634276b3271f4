"""The images that a run is trained and validated on: their fingerprints, kept in its folder."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from esrjax.data.datasets import Pair, header_size, list_pairs, lr_source
from esrjax.errors import CheckpointError, UserError, list_some
from esrjax.training.recipe import Recipe

FILE_NAME = "data.json"


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a dataset consists of, in a few words.

    Attributes:
        num_images: Number of pairs.
        lr_source: Where the LR images come from, see `datasets.lr_source`.
        sha256: SHA-256 of the sorted names and sizes of all images, see `summarize`.
    """

    num_images: int
    lr_source: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.num_images:,} images, LR: {self.lr_source}, sha256 {self.sha256[:16]}"


DataSummaries = Mapping[str, DatasetSummary]  # by the name of a dataset in the recipe


def dataset_scales(recipe: Recipe) -> dict[str, int]:
    """Return the datasets that a recipe trains and validates on, with their scale, by name."""
    scales: dict[str, int] = {}
    for run in recipe.runs:
        stage, scale = run.stage, recipe.scale_at(run)
        scales |= dict.fromkeys(stage.data.dataset_weights, scale)
        scales |= {stage.validation.dataset: scale} if stage.validation else {}
    return dict(sorted(scales.items()))


def summarize_data(recipe: Recipe, *, missing_ok: bool = False) -> dict[str, DatasetSummary]:
    """Return the summaries of all datasets of a recipe, read from the headers of their images.

    Copies of downscaled images (`hr_downscales`), whose LR images are computed, are included.

    Args:
        recipe: The recipe.
        missing_ok: Whether datasets that do not exist, or form no pairs, are left out.

    Raises:
        UserError: A dataset does not exist, or a header cannot be read.
    """
    scales, factors = dataset_scales(recipe), defaultdict[str, set[float]](set)
    for stage in recipe.stage:
        for name in stage.data.dataset_weights:
            factors[name].update(stage.data.hr_downscales)
    summaries: dict[str, DatasetSummary] = {}
    for name, scale in scales.items():
        try:
            pairs = list_pairs(name, scale)
        except UserError:
            if missing_ok:
                continue
            raise
        summaries[name] = summarize(with_downscales(pairs, sorted(factors[name])))
    return summaries


def summarize(pairs: Sequence[Pair]) -> DatasetSummary:
    """Return number, LR source and fingerprint of the pairs of a dataset.

    The fingerprint is the SHA-256 of a sorted list with a line for every pair: its name, the sizes
    of HR and LR in their headers, the path of LR relative to HR, and the factor of HR. Pixels are
    not read. It does not depend on where the dataset is stored.

    Raises:
        UnreadableFile: If the header of an image cannot be read.
    """
    lines = sorted(json.dumps(_identity(pair)) for pair in pairs)
    return DatasetSummary(
        num_images=len(pairs),
        lr_source=lr_source(pairs),
        sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )


def _identity(pair: Pair) -> list[Any]:
    lr_path = lr_size = None
    if isinstance(pair.lr, Path) and isinstance(pair.hr, Path):
        lr_path = PurePath(os.path.relpath(pair.lr, pair.hr.parent)).as_posix()
        lr_size = header_size(pair.lr)
    elif pair.lr is not None:
        lr_path = "lr"  # of the same example; its size is the HR size / scale
    return [pair.name, header_size(pair.hr), lr_path, lr_size, pair.scale, pair.hr_scale]


def with_downscales(pairs: Sequence[Pair], factors: Sequence[float]) -> tuple[Pair, ...]:
    """Return the pairs, followed by a downscaled copy of each for every factor."""
    return (*pairs, *(pair.downscaled(factor) for factor in factors for pair in pairs))


def overlap_notes(recipe: Recipe) -> list[str]:
    """Return a note for every two datasets of a stage, by their files, that share images.

    Those of training are drawn more often than others, those of validation have been learned.
    Datasets that do not exist are passed over.
    """
    notes: dict[str, None] = {}
    for run in recipe.runs:
        stage, scale = run.stage, recipe.scale_at(run)
        names = [(name, "they are drawn more often") for name in stage.data.dataset_weights]
        if stage.validation:
            names.append((stage.validation.dataset, "the validation has training images"))
        earlier: dict[str, set[Any]] = {}
        for name, consequence in names:
            images = _hr_images(name, scale)
            for other, others in earlier.items():
                if num_shared := len(images & others):
                    text = f"{num_shared:,} of {len(images):,} images of {name!r} are also in"
                    notes[f"note: stage {stage.name!r}: {text} {other!r}; {consequence}"] = None
            earlier[name] = images
    return [*notes]


def _hr_images(name: str, scale: int) -> set[Any]:
    """Return where the HR images of a dataset are stored, symlinks resolved."""
    try:
        images = [pair.hr for pair in list_pairs(name, scale)]
    except UserError:
        return set()
    return {os.path.realpath(image) if isinstance(image, Path) else image for image in images}


def to_json(summaries: DataSummaries) -> str:
    """Return the content of `data.json`."""
    return json.dumps({name: asdict(s) for name, s in summaries.items()}, indent=2) + "\n"


def check_unchanged(run_dir: Path, summaries: DataSummaries) -> None:
    """Compare the data of a run that is resumed with that in its folder.

    The folders may have moved; number, names and sizes of images and the origin of LR must be
    equal. A run without `data.json`, or with a damaged one, is not compared.

    Raises:
        CheckpointError: A dataset has changed.
    """
    try:
        stored = json.loads((run_dir / FILE_NAME).read_text("utf-8"))
        old = {name: DatasetSummary(**values) for name, values in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return
    changes = [
        f"{name}: {_difference(old[name], new)}"
        for name, new in summaries.items()
        if name in old and old[name].sha256 != new.sha256
    ]
    if changes:
        raise CheckpointError(
            f"the images of the run have changed: {list_some(changes, 5, '; ')}",
            rule="a run is resumed with the images that it began with: their number, names, sizes "
            "and LR images; they may be in another folder",
            location=str(run_dir / FILE_NAME),
            remedy=f"restore the images; or delete {FILE_NAME} to continue with those of now",
        )


def _difference(old: DatasetSummary, new: DatasetSummary) -> str:
    if old.num_images != new.num_images:
        return f"{old.num_images:,} images in the run, {new.num_images:,} now"
    if old.lr_source != new.lr_source:
        return f"LR was {old.lr_source}, now {new.lr_source}"
    return f"other names or sizes among its {new.num_images:,} images"
