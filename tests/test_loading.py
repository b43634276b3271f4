"""A checkpoint is loaded as it was saved, or refused: drawn files against a path of their own."""

import io
import json
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from optional import torch
from safetensors.numpy import save

from esrjax.errors import InvalidWeights, UnreadableFile, UserError, WeightsMismatch, log_note
from esrjax.loading import load_network
from esrjax.method import Method
from esrjax.nn.checkpoint_io import read_checkpoint
from esrjax.nn.layers import Conv2d, Linear, Sequential

NUM_DRAWS = 10_000  # of the campaign of `make test-slow`
NUM_FAST_DRAWS = 80


class Tiny(nnx.Module):
    """A weight of every sort: convolution, linear, statistics, counter."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 2):
        self.body = Sequential([Conv2d(3, channels, (1, 5), rngs=rngs), Linear(2, 4, rngs=rngs)])
        self.mean = nnx.BatchStat(jnp.zeros(3))
        self.count = nnx.BatchStat(jnp.array(0))


METHOD = Method(
    network=Tiny,
    team="us",
    paper="none",
    license="MIT",
    torch_names={"features.{i}.{leaf}": "body.{i}.{leaf}"},
    unused_torch_keys={"*.mask": "recomputed"},
)
SHAPES = {
    "features.0.weight": (2, 3, 1, 5),
    "features.0.bias": (2,),
    "features.1.weight": (4, 2),
    "features.1.bias": (4,),
    "mean": (3,),
}


def tensors(rng):
    values = {key: rng.standard_normal(shape, np.float32) for key, shape in SHAPES.items()}
    return values | {"count": np.array(rng.integers(0, 1000))}


def assert_equal_weights(net, expected):
    """Compare each variable with the tensor of its own, transposed by hand."""
    conv, linear = net.body[0], net.body[1]
    pairs = {
        "features.0.weight": (conv.weight, (2, 3, 1, 0)),
        "features.0.bias": (conv.bias, (0,)),
        "features.1.weight": (linear.weight, (1, 0)),
        "features.1.bias": (linear.bias, (0,)),
        "mean": (net.mean, (0,)),
        "count": (net.count, ()),
    }
    for key, (variable, axes) in pairs.items():
        value = np.asarray(variable.get_value())
        want = expected[key].transpose(axes).astype(value.dtype)
        np.testing.assert_array_equal(value, want, err_msg=key, strict=True)


# --- drawn files -------------------------------------------------------------------------------


@dataclass
class Draw:
    """Contents of a file, and what loading it should give."""

    tensors: dict[str, Any]
    fields: dict[str, Any] | None = None  # metadata
    is_valid: bool = True
    prefix: str = ""
    wrap: Any = dict  # state dict -> what is saved by PyTorch
    log: list[str] = field(default_factory=list)  # what must be said


VALID_DTYPES = [np.float32] * 3 + [np.float64, np.float16, ml_dtypes.bfloat16]
INVALID_DTYPES = [np.int8, np.uint8, np.int64, np.bool_, np.complex64]
PREFIXES = ["module.", "_orig_mod.", "model.", "net_g.", "generator.", "network.", "params."]
JSON_VALUES = [
    None,
    True,
    0,
    -1,
    3,
    4.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
]
METADATA = {"method": "tiny", "form": "deploy", "hparams": {}, "data_range": 1.0, "scale": 4}
IS_VALID_FIELD = {
    "method": lambda v: v == "tiny",
    "form": lambda v: v in ("train", "deploy"),
    "hparams": lambda v: v == {} and isinstance(v, dict),
    "data_range": lambda v: v == 1 and not isinstance(v, bool),
    "scale": lambda v: v == 4 and type(v) is int,
    "license": lambda v: isinstance(v, str),
    "note": lambda v: isinstance(v, str),
    "esrjax": lambda v: isinstance(v, str),
    "source_sha256": lambda v: v in ("", 64 * "a"),
    "tensors_sha256": lambda v: v in ("", 64 * "a"),
    "parity_report": lambda v: v is None or isinstance(v, dict),
    "another": lambda v: False,
}


def draw_tensors(rng):
    """A state dict: right, in other types, or with one of the faults."""
    draw = Draw(tensors(rng))
    keys = list(SHAPES)
    key = keys[rng.integers(len(keys))]
    for name in keys:
        dtype = VALID_DTYPES[rng.integers(len(VALID_DTYPES))]
        draw.tensors[name] = draw.tensors[name].astype(dtype)
    value = draw.tensors[key]
    match rng.integers(20):
        case 0:
            dtype = INVALID_DTYPES[rng.integers(len(INVALID_DTYPES))]
            draw.tensors[key], draw.is_valid = value.astype(dtype), False
        case 1 | 2:
            index = tuple(rng.integers(n) for n in value.shape)
            value[index] = rng.choice([np.nan, np.inf, -np.inf])
            draw.is_valid = False
        case 3:
            draw.tensors[key] = value.astype(np.float64)
            draw.tensors[key].flat[0], draw.is_valid = 1e300, False
        case 4:
            draw.tensors[key] = value.T.copy() if value.ndim > 1 else value[None]
            draw.is_valid = False
        case 5:
            del draw.tensors[key]
            draw.is_valid = False
        case 6:
            draw.tensors["features.2.bias"], draw.is_valid = np.zeros(2, np.float32), False
        case 7:
            dtype = INVALID_DTYPES[rng.integers(len(INVALID_DTYPES))]
            draw.tensors["features.1.mask"] = np.ones(2, dtype)  # unused, of any type
        case 8:
            draw.tensors[key.replace("features", "body")] = draw.tensors.pop(key)  # its path
        case 9:
            draw.tensors["count"], draw.is_valid = np.array(2.5), False
    return draw


def draw_prefix(rng, draw):
    match rng.integers(4):
        case 0:
            draw.prefix = "".join(rng.choice(PREFIXES, rng.integers(1, 3)))
            draw.tensors = {draw.prefix + key: value for key, value in draw.tensors.items()}
            draw.log.append(draw.prefix)
        case 1 if len(draw.tensors) > 1:  # not all keys share it
            first = next(iter(draw.tensors))
            draw.tensors[f"module.{first}"] = draw.tensors.pop(first)
            draw.is_valid = False


def draw_metadata(rng, draw):
    if rng.random() < 0.4:
        return
    draw.fields = dict(METADATA)
    if rng.random() < 0.6:
        names = list(IS_VALID_FIELD)
        name = names[rng.integers(len(names))]
        valid = {"form": "train", "data_range": 1, "source_sha256": 64 * "a"}
        values = [*JSON_VALUES, *([valid[name]] if name in valid else [])]
        draw.fields[name] = values[rng.integers(len(values))]
        draw.is_valid &= IS_VALID_FIELD[name](draw.fields[name])
    if rng.random() < 0.1:
        name = ["method", "form"][rng.integers(2)]
        del draw.fields[name]
        draw.is_valid = False


def draw_container(rng, draw):
    """How PyTorch code stores the state dict."""
    zeros = {key: torch.zeros(1) for key in draw.tensors}
    state = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}
    match rng.integers(7):
        case 0:
            key = ["params", "params_ema", "state_dict", "model", "net_g"][rng.integers(5)]
            draw.wrap = lambda weights: {key: weights, **state}
        case 1:
            draw.wrap = lambda weights: {"params": zeros, "params_ema": weights}
            draw.log.append("params_ema")
        case 2:
            draw.wrap = lambda weights: {"params_ema": {}, "params": weights}
            draw.log.append("params_ema")
        case 3:
            draw.wrap = lambda weights: {"my_net": weights, "epoch": 3}
            draw.log.append("my_net")
        case 4:
            draw.wrap = lambda weights: {**weights, "epoch": 3}
            draw.log.append("epoch")
        case 5:
            draw.wrap = lambda weights: list(weights.values())
            draw.is_valid = False


def to_torch(value):
    is_bfloat16 = value.dtype == ml_dtypes.bfloat16
    tensor = torch.from_numpy(np.array(value.astype(np.float32) if is_bfloat16 else value))
    return tensor.bfloat16() if is_bfloat16 else tensor


def draw_file(rng, path):
    """Write a drawn file of a drawn format under a drawn suffix; return the draw and its path."""
    draw = draw_tensors(rng)
    expected = dict(draw.tensors)
    draw_prefix(rng, draw)
    is_torch = rng.random() < 0.5
    if is_torch:
        draw_container(rng, draw)
        buffer, weights = io.BytesIO(), {k: to_torch(v) for k, v in draw.tensors.items()}
        is_zip = bool(rng.integers(2))
        torch.save(draw.wrap(weights), buffer, _use_new_zipfile_serialization=is_zip)
        data = buffer.getvalue()
    else:
        draw_metadata(rng, draw)
        header = None if draw.fields is None else {"esrjax": json.dumps(draw.fields)}
        data = save({k: np.asarray(v, order="C") for k, v in draw.tensors.items()}, header)
    suffix = [".pth", ".safetensors", ".onnx", ".ckpt", ""][rng.integers(5)]
    is_right = suffix in ("", *((".pth", ".ckpt") if is_torch else (".safetensors",)))
    draw.log += [] if is_right else ["as its suffix says"]
    path = path.with_suffix(suffix)
    if rng.random() < 0.05:
        data, draw.is_valid = data[: rng.integers(len(data))], False
    path.write_bytes(data)
    return draw, path, {key.replace("body", "features"): v for key, v in expected.items()}


def check_draw(seed, path, caplog):
    """Load one drawn file; the file is right and so are the weights, or it is refused."""
    draw, path, expected = draw_file(np.random.default_rng(seed), path)
    log_note.cache_clear()
    caplog.clear()
    try:
        net = load_network("tiny", METHOD, read_checkpoint(path)).net
    except UserError as error:
        assert not draw.is_valid, f"seed {seed}: {error}"
        assert error.problem and error.rule and error.remedy and path.name in error.location
        return False
    assert draw.is_valid, f"seed {seed}: loaded"
    assert_equal_weights(net, expected)
    for text in draw.log:
        assert text in caplog.text, f"seed {seed}"
    return True


def campaign(num_draws, path, caplog):
    caplog.set_level(logging.WARNING, "esrjax")
    loaded = sum(check_draw(seed, path, caplog) for seed in range(num_draws))
    print(f"{num_draws} drawn checkpoints: {loaded} loaded, {num_draws - loaded} refused")
    assert 0.2 < loaded / num_draws < 0.8  # both outcomes are tested


def test_drawn_checkpoints_are_loaded_right_or_refused(tmp_path, caplog):
    campaign(NUM_FAST_DRAWS, tmp_path / "net", caplog)


@pytest.mark.slow
def test_many_drawn_checkpoints_are_loaded_right_or_refused(tmp_path, caplog):
    campaign(NUM_DRAWS, tmp_path / "net", caplog)


# --- cases that are drawn rarely, or whose text matters ------------------------------------------


@pytest.fixture
def load(tmp_path):
    """Saves an object by PyTorch and loads it: `load(contents, suffix) -> LoadedNetwork`."""

    def run(contents, suffix=".pth"):
        path = tmp_path / f"net{suffix}"
        torch.save(contents, path)
        return load_network("tiny", METHOD, read_checkpoint(path))

    return run


@pytest.fixture
def weights():
    return {key: to_torch(value) for key, value in tensors(np.random.default_rng(0)).items()}


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda t: t * float("nan"), "mean has nan at [0], 3 such values of 3"),
        (lambda t: t.to(torch.complex64), "mean is complex64"),
        (lambda t: t > 0, "mean is bool"),
        (lambda t: t.to(torch.int8), "mean is int8"),
        (lambda t: t.double() + 1e39, "mean has values beyond the range of float32"),
    ],
)
def test_tensor_that_is_no_weight_is_named(load, weights, change, text):
    with pytest.raises(InvalidWeights) as caught:
        load(weights | {"mean": change(weights["mean"])})
    assert text in caught.value.problem and "1 of 6" in caught.value.problem


@pytest.mark.parametrize(
    "change, dtype",
    [
        (lambda t: t.to_sparse(), "sparse float32"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantized qint8"),
        (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda t: t.to("meta"), "meta float32"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of PyTorch
def test_tensor_that_numpy_cannot_have_is_named(load, weights, change, dtype):
    with pytest.raises(UnreadableFile, match=f"the tensor mean is {dtype}"):
        load(weights | {"mean": change(weights["mean"])})


def test_conjugate_of_a_real_tensor_and_strides_are_read(load, weights):
    conv = weights["features.0.weight"].contiguous(memory_format=torch.channels_last)
    changed = weights | {"features.0.weight": conv, "mean": torch.conj(weights["mean"])}
    expected = {key: value.numpy() for key, value in weights.items()}
    assert_equal_weights(load(changed).net, expected)


def test_rounding_from_float64_is_logged(load, weights, caplog):
    log_note.cache_clear()
    load(
        {key: value.double() / 3 for key, value in weights.items() if key != "count"}
        | {"count": weights["count"]}
    )
    assert "rounded from float64" in caplog.text
    caplog.clear()
    load({key: value.double() for key, value in weights.items()})  # exact
    assert "rounded" not in caplog.text


def test_averaged_model_of_pytorch_is_read(load, weights, caplog):
    log_note.cache_clear()
    averaged = {f"module.{key}": value for key, value in weights.items()}
    loaded = load(averaged | {"n_averaged": torch.tensor(5)})
    assert_equal_weights(loaded.net, {key: value.numpy() for key, value in weights.items()})
    assert "not used: n_averaged" in caplog.text and "'module.'" in caplog.text


def test_prefix_that_the_network_has_itself_is_kept(tmp_path):
    class Wrapper(nnx.Module):
        def __init__(self, *, rngs):
            self.model = Linear(2, 3, rngs=rngs)

    weights = {"model.weight": np.ones((3, 2), np.float32), "model.bias": np.ones(3, np.float32)}
    method = replace(METHOD, network=Wrapper, torch_names={})
    for prefix in ("", "model.", "module."):
        path = tmp_path / "net.safetensors"
        path.write_bytes(save({prefix + key: value for key, value in weights.items()}))
        loaded = load_network("wrapper", method, read_checkpoint(path))
        assert set(loaded.checkpoint.state_dict) == set(weights)


def test_duplicate_keys_of_the_metadata_are_refused(tmp_path):
    text = json.dumps(METADATA)[:-1] + ', "method": "other"}'
    values = tensors(np.random.default_rng(0))
    (tmp_path / "net.safetensors").write_bytes(save(values, {"esrjax": text}))
    with pytest.raises(UnreadableFile, match="method is there twice"):
        read_checkpoint(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "hparams", [{"seed": 3}, {"width": 2}, {"channels": 2.5}, {"channels": "x"}, {"channels": 0}]
)
def test_hparams_of_the_metadata_that_the_network_has_not_are_refused(tmp_path, hparams):
    header = {"esrjax": json.dumps(METADATA | {"hparams": hparams})}
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(tensors(np.random.default_rng(0)), header))
    with pytest.raises(UserError) as caught:
        load_network("tiny", METHOD, read_checkpoint(path))
    assert next(iter(hparams)) in str(caught.value) and str(path) in caught.value.location


def test_weights_of_another_data_range_are_refused(tmp_path):
    header = {"esrjax": json.dumps(METADATA | {"data_range": 255.0})}
    path = tmp_path / "net.safetensors"
    path.write_bytes(save(tensors(np.random.default_rng(0)), header))
    with pytest.raises(WeightsMismatch, match=r"images in \[0, 255\]"):
        load_network("tiny", METHOD, read_checkpoint(path))
