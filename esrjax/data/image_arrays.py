"""Images as Python objects: what models and metrics accept, and the type that models return.

The contract, which `check_image` applies for every model:

- **levels**: `uint8`, 0 to 255; or floating point in [0, 1], which the network receives as float32,
  without rounding to 8 bits. Other dtypes have no agreed range and are refused.
- **layout**: `(h, w, 3)`, RGB, or a batch `(n, h, w, 3)`.
- **container**: NumPy and JAX arrays, PIL images of mode RGB, and everything with DLPack on the
  CPU, such as PyTorch tensors without gradient.

A model returns uint8: for a PIL image a PIL image, for a JAX array a JAX array, else a NumPy array.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esrjax.errors import InvalidArgument, error_summary

LRArray = NDArray[np.uint8 | np.float32]  # (h, w, 3) or (n, h, w, 3)

_RULE = (
    "an image is (h, w, 3), RGB, a batch (n, h, w, 3), as uint8 or as floats in [0, 1]; it is a "
    "NumPy or JAX array, a PIL image of mode RGB, or a PyTorch tensor on the CPU"
)
_DTYPE_REMEDIES = {  # kind of a dtype, and its bytes -> remedy
    "b1": "convert it to black and white: image * np.uint8(255)",
    "u2": "divide it by its white level: image / 65535 where that is 16 bits",
    "i2": "divide it by its white level, for instance image / 32767",
}
_INTEGER_REMEDY = "convert levels of 0 to 255 with image.astype(np.uint8), or divide by white"
_CHANNEL_REMEDIES = {
    1: "repeat grey in three channels: np.repeat(image, 3, axis=-1)",
    2: "drop the alpha channel and repeat grey: np.repeat(image[..., :1], 3, axis=-1)",
    4: "drop the alpha channel, image[..., :3], or composite the colours over a background",
}


def check_image(image: Any) -> LRArray:
    """Return an image or a batch as a NumPy array, (h, w, 3) or (n, h, w, 3), uint8 or float32.

    Args:
        image: As the contract of this module says.

    Raises:
        InvalidArgument: For anything else, with the offending value and a remedy.
    """
    array = as_array(image)
    is_float = "float" in array.dtype.name  # bfloat16 included
    if array.dtype != np.uint8 and not is_float:
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        default = _INTEGER_REMEDY if array.dtype.kind in "iu" else "convert it to uint8"
        raise _invalid(_describe(array), _DTYPE_REMEDIES.get(code, default))
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or not array.size:
        raise _invalid(_describe(array), _layout_remedy(array.shape))
    if array.dtype == np.uint8:
        return array
    _check_range(array)
    return array.astype(np.float32)


def as_array(image: Any) -> NDArray[Any]:
    """Return an image as a NumPy array of its own shape and dtype, whatever they are.

    Raises:
        InvalidArgument: If it is no array, PIL image of mode RGB, or tensor on the CPU.
    """
    if isinstance(image, np.ma.MaskedArray):
        raise _invalid("the image is a masked array", "fill it: image.filled(0)")
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, Image.Image):
        _check_pil_mode(image)
    elif _is_traced(image):
        remedy = (
            "call the network itself in jitted functions: model.net(x), NHWC in [0, data_range]"
        )
        raise _invalid("the image is traced by a transformation of JAX", remedy)
    elif not _is_jax_array(image) and not hasattr(image, "__dlpack__"):
        remedy = (
            "read a file with PIL.Image.open, or esrjax.data.image_io.read_image"
            if isinstance(image, str | bytes) or hasattr(image, "__fspath__")
            else "convert it: np.asarray(image, np.uint8) for levels of 0 to 255"
        )
        raise _invalid(f"the image is of type {type(image).__name__}", remedy)
    try:
        if isinstance(image, Image.Image) or _is_jax_array(image):
            return np.asarray(image)
        return np.from_dlpack(image)
    except Exception as error:  # PIL on damaged files, PyTorch on devices: any exception
        remedy = "PyTorch: image.detach().cpu(), .float() for bfloat16; PIL: save the file again"
        problem = f"the {type(image).__name__} cannot be read: {error_summary(error)}"
        raise _invalid(problem, remedy) from error


def convert_like(pixels: NDArray[np.uint8], image: Any) -> Any:
    """Return `pixels`, (h, w, 3) uint8 or a batch, as the type of array that `image` is.

    A PIL image has the `info` of `image` (its colour profile, EXIF data, dpi), as with Pillow's own
    operations.
    """
    if isinstance(image, Image.Image):
        result = Image.fromarray(pixels)
        result.info = dict(image.info)
        return result
    return sys.modules["jax"].numpy.asarray(pixels) if _is_jax_array(image) else pixels


def _is_jax_array(image: Any) -> bool:
    """Return whether an object is an array of JAX, which need not be imported for others."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(image, jax.Array)


def _is_traced(image: Any) -> bool:
    core = sys.modules.get("jax.core")
    return core is not None and isinstance(image, core.Tracer)


def _check_pil_mode(image: Image.Image) -> None:
    has_key_color = "transparency" in image.info
    if image.mode == "RGB" and not has_key_color:
        return
    remedy = (
        'composite it: rgba = image.convert("RGBA"); rgb = PIL.Image.new("RGB", image.size, '
        '"white"); rgb.paste(rgba, mask=rgba.getchannel("A"))'
        if has_key_color or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
        else 'convert it with image.convert("RGB"); 16 bits with read_image of esrjax.data.image_io'
    )
    mode = image.mode + " with a transparent colour" * has_key_color
    raise _invalid(f"the PIL image has the mode {mode}", remedy)


def _layout_remedy(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "give an image with pixels"
    if len(shape) == 3 and shape[0] == 3 and shape[-1] != 3:
        return "move the channels to the end: image.transpose(1, 2, 0), in PyTorch permute(1, 2, 0)"
    if len(shape) == 4 and shape[1] == 3 and shape[-1] != 3:
        return "move the channels to the end: image.transpose(0, 2, 3, 1), in PyTorch permute"
    if len(shape) == 2:
        return "repeat grey in three channels: np.repeat(image[..., None], 3, axis=-1)"
    if len(shape) in (3, 4) and shape[-1] in _CHANNEL_REMEDIES:
        return _CHANNEL_REMEDIES[shape[-1]]
    return "give an array of 3 axes, or of 4 for a batch, the last of which are the three channels"


def _check_range(array: NDArray[Any]) -> None:
    """Raise for the value that is farthest from [0, 1], or not finite."""
    low, high = float(array.min()), float(array.max())  # NaN if there is one
    if low >= 0 and high <= 1:
        return
    distances = np.abs(array.astype(np.float64) - 0.5)
    is_finite = bool(np.isfinite(distances).all())
    worst = distances.argmax() if is_finite else (~np.isfinite(distances)).argmax()
    index = tuple(map(int, np.unravel_index(worst, array.shape)))
    raise _invalid(
        f"{_describe(array)}, with the value {float(array[index]):.7g} at {index}",
        _range_remedy(low, high) if is_finite else "replace values that are not finite",
    )


def _range_remedy(low: float, high: float) -> str:
    if low >= 0 and high > 1.5:
        white = next((white for white in (255, 65535) if high <= white), None)
        return f"divide levels by white: image / {white or 'white'}"
    if low >= -1 and high <= 1 and low < -0.5:
        return "undo the normalization to [-1, 1]: (image + 1) / 2"
    return "clip values just outside with np.clip(image, 0, 1), or undo a normalization"


def _describe(array: NDArray[Any]) -> str:
    return f"the image is {array.dtype} {array.shape}"


def _invalid(problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(problem, rule=_RULE, remedy=remedy)
