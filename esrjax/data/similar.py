"""Similarity search: thumbnail features, the images most similar to others, a dataset of links."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.data.datasets import Pair, Progress, decode_source
from esrjax.data.image_io import Pixels
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import InvalidArgument, list_some
from esrjax.io import atomic_write

FeatureVector = NDArray[np.float32]  # (d,)
FeatureExtractor = Callable[[Pixels], FeatureVector]  # of an HR image; need not be normalized


@dataclass(frozen=True, kw_only=True)
class SimilarImage:
    """A selected image.

    Attributes:
        pair: The image.
        similarity: Cosine similarity to the most similar reference image, in [-1, 1].
    """

    pair: Pair
    similarity: float


def thumbnail(pixels: Pixels) -> FeatureVector:
    """Return coarse colors as features: the means of 8 x 8 blocks, in [-0.5, 0.5], (192,)."""
    blocks = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BOX)
    return (np.asarray(blocks, np.float32).ravel() / 255 - 0.5).astype(np.float32)


def select_similar(
    pairs: Sequence[Pair],
    reference_pairs: Sequence[Pair],
    num_images: int,
    extract_features: FeatureExtractor,
    progress: Progress = iter,
) -> tuple[SimilarImage, ...]:
    """Return the pairs whose HR images are most similar to any reference image.

    Args:
        pairs: The candidates.
        reference_pairs: What they are compared with.
        num_images: How many are selected.
        extract_features: HR image, (h, w, 3) uint8 -> feature vector.
        progress: Wraps the candidates, for instance in a progress bar.

    Returns:
        The most similar first; ties are ordered by name.

    Raises:
        InvalidArgument: If there are fewer candidates than `num_images`.
    """
    if num_images > len(pairs):
        raise InvalidArgument(
            f"Cannot select {num_images} of {len(pairs)} images",
            rule="images are selected from the given datasets, each at most once",
            remedy="request fewer images, or give more datasets",
        )
    references = np.stack([_unit_vector(pair, extract_features) for pair in reference_pairs])
    images: list[SimilarImage] = []
    for pair in progress(pairs):
        similarity = float((references @ _unit_vector(pair, extract_features)).max())
        images.append(SimilarImage(pair=pair, similarity=similarity))
    images.sort(key=lambda image: (-image.similarity, image.pair.name))
    return tuple(images[:num_images])


def _unit_vector(pair: Pair, extract_features: FeatureExtractor) -> FeatureVector:
    """Return the features of the HR image, normalized to length 1."""
    vector = np.asarray(extract_features(decode_source(pair.hr).pixels), np.float32)
    norm = float(np.linalg.norm(vector))
    return (vector / norm).astype(np.float32) if norm else vector


def with_unique_names(datasets: Sequence[tuple[str, Sequence[Pair]]]) -> tuple[Pair, ...]:
    """Return the pairs of all datasets; a name that occurs twice is prefixed with its dataset.

    Args:
        datasets: Title and pairs of each.
    """
    counts = Counter(pair.name for _, pairs in datasets for pair in pairs)
    return tuple(
        replace(pair, name=f"{PurePath(title).name}_{pair.name}") if counts[pair.name] > 1 else pair
        for title, pairs in datasets
        for pair in pairs
    )


def check_linkable(pairs: Sequence[Pair], folder: Path) -> None:
    """Raise `InvalidArgument` unless links to the pairs can be created in a new `folder`.

    Names must be unique and images must be files, because each becomes a symbolic link.
    """
    if folder.exists():
        raise _unlinkable(f"'{folder}' already exists", "give a new folder with -o")
    counts = Counter(pair.name for pair in pairs)
    if duplicates := [name for name, count in counts.items() if count > 1]:
        problem = f"several images would be named {duplicates[0]!r}"
        raise _unlinkable(problem, "rename the datasets, or select from one at a time")
    files = Counter(_files(pair) for pair in pairs)
    if repeated := [hr for (hr, _), count in files.items() if count > 1]:
        problem = f"{len(repeated)} images are in the datasets several times: {list_some(repeated)}"
        raise _unlinkable(problem, "give each dataset, and each part of it, once")
    images = [image for pair in pairs for image in (pair.hr, pair.lr)]
    if any(isinstance(image, TfdsImage) for image in images):
        problem = "images of a TFDS dataset cannot be selected"
        raise _unlinkable(problem, "select from folders, and pack the selected images")


def _files(pair: Pair) -> tuple[str, str]:
    """Return the files of a pair, symlinks resolved."""
    hr, lr = (os.path.realpath(f) if isinstance(f, Path) else str(f) for f in (pair.hr, pair.lr))
    return hr, lr


def _unlinkable(problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(
        problem,
        rule="a selected image becomes a link to its file in a new folder, named by its file, and "
        "by its dataset where file names collide",
        remedy=remedy,
    )


def link_images(images: Sequence[SimilarImage], folder: Path) -> None:
    """Create a dataset of symbolic links to selected images, atomically.

    It contains LR images only where every pair has one.

    Raises:
        InvalidArgument: If a name occurs twice, an image is not a file, or `folder` exists.
        UnwritableFile: If the links cannot be created.
    """
    pairs = [image.pair for image in images]
    check_linkable(pairs, folder)
    has_lr = all(pair.lr for pair in pairs)
    with atomic_write(folder, "give another folder with -o") as partial:
        for pair in pairs:
            _link(pair.hr, partial / "HR", pair.name)
            if has_lr:
                _link(pair.lr, partial / f"LR_X{pair.scale}", f"{pair.name}x{pair.scale}")


def _link(file: Path | TfdsImage | None, folder: Path, name: str) -> None:
    assert isinstance(file, Path)  # checked by `check_linkable`
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}{file.suffix}").symlink_to(file.resolve())
