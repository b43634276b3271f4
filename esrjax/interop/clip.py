"""CLIP's image encoder, from an ONNX file: image embeddings.

Source: Radford et al., Learning transferable visual models from natural language supervision
(arXiv:2103.00020); preprocessing as in the released code.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.data.image_io import Pixels
from esrjax.errors import InvalidArgument
from esrjax.interop.onnx import sessions
from esrjax.io import open_regular

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_INPUT_SIDE = 224  # of the encoder's input, pixels, if it is not in the file


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
    normalized = (crop - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None], np.float32)


def _bad_encoder(file: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"The file is not an image encoder: {reason}",
        rule="an image encoder is an ONNX model from images (N, 3, side, side) to vectors (N, d)",
        location=str(file),
        remedy="export CLIP's image encoder alone, or use --features thumbnail",
    )
