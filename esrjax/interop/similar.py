"""Similarity search: features, the images most similar to others, a dataset of links.

Features are thumbnails, or the embeddings of CLIP's image encoder from an ONNX file. Source:
Radford et al., Learning transferable visual models from natural language supervision
(arXiv:2103.00020); preprocessing as in the released code.
"""

import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.data.datasets import Pair, Progress, decode_source
from esrjax.data.image_io import Pixels
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import InvalidArgument, list_some
from esrjax.interop.onnx import sessions
from esrjax.io import atomic_write, open_regular

FeatureVector = NDArray[np.float32]  # (d,)
FeatureExtractor = Callable[[Pixels], FeatureVector]  # of an HR image; need not be normalized
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_INPUT_SIDE = 224  # of the encoder's input, pixels, if it is not in the file


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


# --- CLIP ---


def load_image_encoder(file: Path) -> Callable[[Pixels], NDArray[np.float32]]:
    """Load an image encoder.

    Args:
        file: ONNX file with one input `(N, 3, side, side)` and an output `(N, d)`: `image_embeds`,
            or else the first of that shape.

    Returns:
        A function from uint8 images `(h, w, 3)` to embeddings `(d,)`, float32, not normalized.

    Raises:
        InvalidArgument: If the file is not such a model.
        MissingExtra: If onnxruntime is not installed.
    """
    sessions.import_library("onnxruntime", "clip")
    with _wrap_onnxruntime_errors(file):
        open_regular(file).close()
        session = sessions.make_session(str(file))
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise _bad_encoder(file, "it has no single input (N, 3, side, side)")
    outputs = [node.name for node in session.get_outputs() if len(node.shape) == 2]
    if not outputs:
        raise _bad_encoder(file, "it has no output (N, d)")
    output = "image_embeds" if "image_embeds" in outputs else outputs[0]
    input_side = inputs[0].shape[-1]
    side = input_side if isinstance(input_side, int) else DEFAULT_INPUT_SIDE

    def encode(pixels: Pixels) -> NDArray[np.float32]:
        (vector,) = session.run([output], {inputs[0].name: preprocess(pixels, side)})
        return np.asarray(vector, np.float32)[0]

    with _wrap_onnxruntime_errors(file):
        encode(np.full((side, side, 3), 128, np.uint8))
    return encode


@contextmanager
def _wrap_onnxruntime_errors(file: Path) -> Generator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise _bad_encoder(file, " ".join(str(error).split())) from error


def preprocess(pixels: Pixels, side: int) -> NDArray[np.float32]:
    """Resize, center-crop and normalize an image as CLIP's released code does.

    Args:
        pixels: uint8 image `(h, w, 3)`.
        side: Side of the result; the image's shorter side is resized to it (bicubic).

    Returns:
        `(1, 3, side, side)`, float32.
    """
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = max(side, int(width * scale)), max(side, int(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    crop = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    normalized = (crop - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None], np.float32)


def _bad_encoder(file: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"The file is not an image encoder: {reason}",
        rule="an image encoder is an ONNX model from images (N, 3, side, side) to vectors (N, d)",
        location=str(file),
        remedy="export CLIP's image encoder alone, or use --features thumbnail",
    )
