"""Images in Python: what models accept, with the result of an independent path, or refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from optional import torch
from PIL import Image

from esrjax import registry
from esrjax.data.image_arrays import check_image, convert_like
from esrjax.errors import ImageTooSmall, InvalidArgument
from esrjax.inference import EnsembleModel, Model
from esrjax.interop.engines import OnnxModel
from esrjax.method import Ensemble, Member

SCALE = 4
NUM_SAMPLES, NUM_DRAWS = 150, 10_000  # in the fast suite, and in the campaign of the slow one
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), np.uint8)
PIXELS[0, 0], PIXELS[-1, -1] = 0, 255
FLOATS = PIXELS / 255
IS_LEVEL = np.equal(PIXELS, PIXELS[2, 3, 1])


def nearest(lr: Any, mask: Any = None) -> NDArray[np.float32]:
    """(n, h, w, 3) -> (n, 4·h, 4·w, 3), in place of a network."""
    return np.asarray(lr, np.float32).repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def nearest_model(name: str = "spanv2") -> Model:
    model = Model(name=name, method=registry.get_method(name), net=None, checkpoint=None)  # type: ignore[arg-type]
    model.__dict__["forward"] = nearest  # a cached property
    return model


def nearest_ensemble() -> EnsembleModel:
    members = {"spanv2": Member(), "span": Member()}
    ensemble = Ensemble(members=members, team="", paper="", license="")
    models = {name: nearest_model(name) for name in members}
    return EnsembleModel(name="two", ensemble=ensemble, members=models)


def nearest_onnx() -> OnnxModel:
    class Session:
        def run(self, lr: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(nearest(lr.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))

    return OnnxModel(
        session=Session(),  # pyright: ignore[reportArgumentType] # a stub
        name="nearest",
        scale=SCALE,
        data_range=1.0,
        min_side=1,
        receptive_field_radius=1,
    )


MODELS = {"model": nearest_model(), "ensemble": nearest_ensemble(), "onnx": nearest_onnx()}


def expected_sr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Nearest-neighbour upscaling in float64, of uint8 or floats (..., h, w, 3)."""
    levels = image.astype(np.float64) * (1 if image.dtype == np.uint8 else 255)
    return np.rint(np.kron(levels, np.ones((SCALE, SCALE, 1)))).astype(np.uint8)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_type_and_axes_of_the_result_are_those_of_the_image(model: Any) -> None:
    expected = expected_sr(PIXELS)
    for image, output_type in (
        (PIXELS, np.ndarray),
        (jnp.asarray(PIXELS), jax.Array),
        (Image.fromarray(PIXELS), Image.Image),
        (FLOATS, np.ndarray),
        (jnp.asarray(FLOATS, jnp.float32), jax.Array),
    ):
        sr = model(image)
        assert isinstance(sr, output_type) and np.array_equal(np.asarray(sr), expected)
        assert np.asarray(sr).dtype == np.uint8
    batch = np.stack([PIXELS, 255 - PIXELS])
    assert np.array_equal(model(batch), np.stack([expected, 255 - expected]))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_torch_tensors_are_accepted(model: Any) -> None:
    tensor = torch.tensor(PIXELS.transpose(2, 0, 1))  # as read_image of torchvision returns it
    with pytest.raises(InvalidArgument, match="permute"):
        model(tensor)
    for image in (tensor.permute(1, 2, 0), tensor.permute(1, 2, 0).double() / 255):
        sr = model(image)
        assert type(sr) is np.ndarray and np.array_equal(sr, expected_sr(PIXELS))
    for unusable in (torch.tensor(FLOATS).requires_grad_(), torch.tensor(FLOATS).bfloat16()):
        with pytest.raises(InvalidArgument, match="detach"):
            model(unusable)


def test_floats_reach_the_network_unrounded() -> None:
    between = np.full((4, 4, 3), (100.25 / 255, 100.5 / 255, 0.1))
    inputs: list[Any] = []
    model = nearest_model()
    model.__dict__["forward"] = lambda lr: inputs.append(lr) or nearest(lr)
    assert np.array_equal(model(between)[0, 0], (100, 100, 26))  # 25.5 in float32 is above
    assert np.array_equal(inputs[0][0], between.astype(np.float32))
    sr = model.upscaler(self_ensemble=True)(between)
    assert sr.dtype == np.float32 and np.allclose(sr[0, 0], between[0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "strategy", [{"tile_size": (4, 4)}, {"self_ensemble": True}, {"windows": {9: 1.0}}, {}]
)
def test_every_strategy_takes_floats_and_batches(strategy: dict[str, Any]) -> None:
    model = nearest_model()
    model.__dict__["receptive_field_radius"] = 1
    batch = np.random.default_rng(0).random((2, 9, 7, 3), np.float32)
    sr = model.upscaler(**strategy)(batch)
    assert sr.shape == (2, 36, 28, 3)
    assert np.allclose(sr, batch.repeat(4, axis=1).repeat(4, axis=2), atol=1e-6)


def test_colour_profile_and_exif_of_a_pil_image_are_those_of_the_result() -> None:
    image = Image.fromarray(PIXELS)
    image.info = {"icc_profile": b"profile", "dpi": (300, 300), "exif": b"Exif\0\0"}
    assert nearest_model()(image).info == image.info


def test_small_images_of_a_batch_are_refused() -> None:
    model = nearest_model("hat")
    with pytest.raises(ImageTooSmall):
        model(np.zeros((2, 1, 1, 3), np.uint8))


def pil(mode: str) -> Image.Image:
    return Image.fromarray(PIXELS).convert(mode)


def with_key_color(image: Image.Image) -> Image.Image:
    image.info["transparency"] = (0, 0, 0)
    return image


REFUSED: dict[str, tuple[Any, str, str]] = {  # image, offending value, part of the remedy
    "bool": (PIXELS > 99, "bool", "np.uint8(255)"),
    "uint16": (PIXELS.astype(np.uint16), "uint16", "/ 65535"),
    "int64": (PIXELS.astype(int), "int64", "astype(np.uint8)"),
    "int8": (PIXELS.view(np.int8), "int8", "astype(np.uint8)"),
    "complex": (FLOATS.astype(complex), "complex128", "uint8"),
    "objects": (PIXELS.astype(object), "object", "uint8"),
    "list": (PIXELS.tolist(), "list", "np.asarray"),
    "path": (Path("a.png"), "Path", "PIL.Image.open"),
    "file name": ("a.png", "str", "PIL.Image.open"),
    "none": (None, "NoneType", "np.asarray"),
    "number": (3.0, "float", "np.asarray"),
    "channels first": (PIXELS.transpose(2, 0, 1), "(3, 5, 7)", "transpose(1, 2, 0)"),
    "batch, channels first": (
        PIXELS.transpose(2, 0, 1)[None],
        "(1, 3, 5, 7)",
        "transpose(0, 2, 3, 1)",
    ),
    "grey": (PIXELS[..., 0], "(5, 7)", "np.repeat(image[..., None]"),
    "grey, 3 axes": (PIXELS[..., :1], "(5, 7, 1)", "np.repeat"),
    "grey + alpha": (PIXELS[..., :2], "(5, 7, 2)", "image[..., :1]"),
    "RGBA": (np.dstack([PIXELS, PIXELS[..., 0]]), "(5, 7, 4)", "image[..., :3]"),
    "5 axes": (PIXELS[None, None], "(1, 1, 5, 7, 3)", "4 for a batch"),
    "1 axis": (PIXELS[0, 0], "(3,)", "3 axes"),
    "no rows": (PIXELS[:0], "(0, 7, 3)", "pixels"),
    "empty batch": (PIXELS[None][:0], "(0, 5, 7, 3)", "pixels"),
    "levels": (FLOATS * 255, "255", "/ 255"),
    "16-bit levels": (FLOATS * 65535, "65535", "/ 65535"),
    "[-1, 1]": (FLOATS * 2 - 1, "-1", "(image + 1) / 2"),
    "overshoot": (FLOATS + 0.05, "1.05", "np.clip"),
    "negative": (FLOATS - 0.05, "-0.05", "np.clip"),
    "NaN": (np.where(IS_LEVEL, np.nan, FLOATS), "nan", "not finite"),
    "infinite": (np.where(IS_LEVEL, -np.inf, FLOATS), "-inf", "not finite"),
    "masked": (np.ma.masked_array(PIXELS, PIXELS > 9), "masked", "filled"),
    "PIL grey": (pil("L"), "L", 'convert("RGB")'),
    "PIL 16 bit": (Image.fromarray(PIXELS[..., 0].astype(np.uint16)), "I;16", "read_image"),
    "PIL palette": (pil("P"), "P", 'convert("RGB")'),
    "PIL CMYK": (pil("CMYK"), "CMYK", 'convert("RGB")'),
    "PIL RGBA": (pil("RGBA"), "RGBA", "composite"),
    "PIL key colour": (with_key_color(pil("RGB")), "transparent", "composite"),
    "JAX int32": (jnp.asarray(PIXELS, jnp.int32), "int32", "astype(np.uint8)"),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_other_images_are_refused_with_value_rule_and_remedy(model: Any) -> None:
    for name, (image, value, remedy) in REFUSED.items():
        with pytest.raises(InvalidArgument) as caught:
            model(image)
        assert value in caught.value.problem, name
        assert remedy in caught.value.remedy, name
        assert "(h, w, 3)" in caught.value.rule


def test_damaged_pil_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(InvalidArgument, match="truncated"):
        check_image(image)


def test_traced_image_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"model\.net"):
        jax.jit(nearest_model())(jnp.asarray(PIXELS))


# --- drawn images ---


def draw_valid(rng: np.random.Generator) -> NDArray[Any]:
    """An array of the contract: uint8 or floats, an image or a batch, of any memory layout."""
    shape = (*rng.integers(1, 6, rng.integers(2, 4)).tolist(), 3)
    pixels = rng.integers(0, 256, shape, np.uint8)
    array = pixels if rng.integers(2) else rng.random(shape)
    if array.dtype != np.uint8:
        array = np.where(rng.random(shape) < 0.1, np.rint(array), array)  # exact 0 and 1
        array = array.astype(rng.choice(["f2", "f4", "f8", ">f4", "g"]))
    if rng.integers(3) == 0:  # other strides, with the same values
        array = np.ascontiguousarray(array[..., ::-1, :])[..., ::-1, :]
    if rng.integers(3) == 0:
        array = np.asfortranarray(array)
    return array


def contain(array: NDArray[Any], rng: np.random.Generator) -> tuple[Any, type]:
    """The array in a container that can hold it, and the type of the result."""
    containers: list[tuple[Callable[[Any], Any], type]] = [(lambda x: x, np.ndarray)]
    native = array.astype(np.float64) if array.dtype.str in (">f4", "<f16") else array
    if array.dtype in (np.uint8, np.float32):
        containers.append((jnp.asarray, jax.Array))
    if type(torch).__name__ == "module":
        containers.append((lambda x: torch.tensor(np.ascontiguousarray(native)), np.ndarray))
    if array.dtype == np.uint8 and array.ndim == 3:
        containers.append((Image.fromarray, Image.Image))
    container, output_type = containers[rng.integers(len(containers))]
    return container(array), output_type


def spoil(array: NDArray[Any], rng: np.random.Generator) -> tuple[Any, str]:
    """An image that is not of the contract, and the value that the error must name."""
    is_float = array.dtype.kind == "f"
    choice = int(rng.integers(9))
    if choice == 0:
        dtype = np.dtype(str(rng.choice(["u2", "i2", "i4", "u4", "i8", "?", "c8", "O", "i1"])))
        return array.astype(np.int64).astype(dtype), str(dtype)
    if choice == 1:
        moved = np.moveaxis(np.concatenate([array] * 2, axis=-2), -1, -3)  # w is even, never 3
        return moved, str(moved.shape)
    if choice == 2:
        channels = int(rng.choice([1, 2, 4, 5]))
        other = np.concatenate([array, array], axis=-1)[..., :channels]
        return other, str(other.shape)
    if choice == 3:
        empty = array[..., :0, :, :] if rng.integers(2) else array[..., :0, :]
        return empty, str(empty.shape)
    if choice == 4:
        other = array[..., 0][None][0] if array.ndim == 3 else array[None]
        return other, str(other.shape)
    if choice == 5:
        return array.tolist(), "list"
    if choice == 6 and array.ndim == 3:
        mode = str(rng.choice(["L", "P", "RGBA", "CMYK", "1", "HSV", "LA", "YCbCr", "F", "I"]))
        return Image.new(mode, array.shape[1::-1]), mode
    value = float(rng.choice([np.nan, np.inf, -np.inf, 1.5, -0.25, 255, 70000, 1e30, -1e-3]))
    floats = array.astype(np.float32) if is_float else array / np.float32(255)
    index = tuple(int(rng.integers(side)) for side in floats.shape)
    floats[index] = value
    return floats, f"{np.float32(value):.7g}"


def check_drawn_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = MODELS[str(rng.choice(list(MODELS)))]
    array = draw_valid(rng)
    if rng.integers(2):
        image, value = spoil(array, rng)
        with pytest.raises(InvalidArgument) as caught:
            model(image)
        error = caught.value
        assert value in error.problem and "(h, w, 3)" in error.rule and error.remedy, seed
        return
    image, output_type = contain(array, rng)
    before = array.copy()
    sr = model(image)
    assert isinstance(sr, output_type) and np.asarray(sr).dtype == np.uint8, seed
    levels = array.astype(np.float64) * (1 if array.dtype == np.uint8 else 255)
    error = np.kron(levels, np.ones((SCALE, SCALE, 1))) - np.asarray(sr)
    assert np.abs(error).max() <= 0.5 + 1e-4, seed  # rounded, up to float32
    assert np.array_equal(array, before), seed


def test_drawn_images_are_upscaled_or_refused() -> None:
    for seed in range(NUM_SAMPLES):
        check_drawn_image(seed)


@pytest.mark.slow
def test_many_drawn_images_are_upscaled_or_refused() -> None:
    for seed in range(NUM_DRAWS):
        check_drawn_image(seed)


def test_result_of_a_numpy_array_is_not_copied() -> None:
    assert convert_like(PIXELS, PIXELS) is PIXELS
