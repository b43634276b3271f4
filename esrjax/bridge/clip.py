"""CLIP's image encoder, from an ONNX file: what a picture shows, as a vector.

Source: Radford et al., Learning transferable visual models from natural language supervision
(arXiv:2103.00020); preprocessing as in the released code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.bridge.onnx import runtime
from esrjax.errors import UserError
from esrjax.pictures.files import Pixels

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
SIDE = 224  # of what an encoder sees, pixels, where the file does not say


class NoEncoder(UserError):
    """A file that is no image encoder."""


def encoder(file: Path) -> Callable[[Pixels], NDArray[np.float32]]:
    """Pictures to vectors `(d,)`, not normalised.

    The model has one input `(N, 3, side, side)` and an output `(N, d)`: `image_embeds`, or else
    the first of that shape.
    """
    runtime.require("onnxruntime", "clip")
    session = _tried(file, lambda: runtime.session(str(file)))
    (name, side), output = _input(session, file), _output(session, file)

    def encode(pixels: Pixels) -> NDArray[np.float32]:
        (vector,) = session.run([output], {name: prepared(pixels, side)})
        return np.asarray(vector, np.float32)[0]

    _tried(file, lambda: encode(np.full((side, side, 3), 128, np.uint8)))
    return encode


def _tried(file: Path, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except Exception as error:  # of ONNX Runtime, whose errors have no common class
        raise _no_encoder(file, " ".join(str(error).split())) from error


def prepared(pixels: Pixels, side: int) -> NDArray[np.float32]:
    """`(1, 3, side, side)`: the shorter side made `side` long, the middle cut out, normalised."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    size = max(side, int(width * scale)), max(side, int(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    middle = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    normal = (middle - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)


def _input(session: Any, file: Path) -> tuple[str, int]:
    inputs = [each for each in session.get_inputs() if len(each.shape) == 4]
    if len(session.get_inputs()) != 1 or not inputs:
        raise _no_encoder(file, "its one input is no picture (N, 3, side, side)")
    side = inputs[0].shape[-1]
    return inputs[0].name, side if isinstance(side, int) else SIDE


def _output(session: Any, file: Path) -> str:
    names = [each.name for each in session.get_outputs() if len(each.shape) == 2]
    if not names:
        raise _no_encoder(file, "none of its outputs is a vector for each picture")
    return "image_embeds" if "image_embeds" in names else names[0]


def _no_encoder(file: Path, why: str) -> NoEncoder:
    return NoEncoder(
        f"this is no image encoder: {why}",
        rule="CLIP's image side is an ONNX model: pictures (N, 3, side, side) to vectors (N, d)",
        place=str(file),
        remedy="export the image encoder alone, or take --features thumbnail",
    )
