"""Comparison with a golden file passes for PyTorch's values and fails for any other."""

import hashlib
import shutil

import numpy as np
import pytest
from arrays import load_npz
from flax import nnx
from optional import torch
from safetensors.torch import load_file

from esrjax import registry
from esrjax.errors import UnreadableFile
from esrjax.inference import open_method
from esrjax.interop.array_diff import FLOAT32_RTOL
from esrjax.interop.convert import convert
from esrjax.interop.parity import compare, read_golden
from esrjax.method import Method
from esrjax.nn import checkpoint_io
from esrjax.nn.functional import resize_nearest
from esrjax.nn.hooks import taps
from esrjax.nn.layers import Conv2d

OFFICIAL = {"span": "team00_SPAN.pth", "spanv2": "team22_spanv2_c2.pth"}


@pytest.fixture
def golden(crumbs, tmp_path):
    """Write a golden file of the third-party method's own outputs: `golden(y0=...) -> path`."""

    def write(**changes):
        x = np.random.default_rng(0).random((1, 6, 7, 3), np.float32)
        y, activations = taps(open_method("crumb").net, x)
        arrays = {"x0": x, "y0": np.asarray(y), "act_filter": np.asarray(activations["filter"])}
        arrays = {key: value.transpose(0, 3, 1, 2) for key, value in arrays.items()} | changes
        np.savez(tmp_path / "golden.npz", **arrays)
        return tmp_path / "golden.npz"

    return write


def compare_crumb(path):
    return compare("crumb", registry.get_method("crumb"), open_method("crumb").net, path)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_weights_reproduce_pytorch_outputs(esrjax, reference, name):
    args = ["--checkpoint", reference / "weights" / OFFICIAL[name]]
    result = esrjax("parity", name, *args, "--golden", reference / f"golden/{name}.npz", "--json")
    comparison = result.json
    assert result.code == 0 and comparison["passed"] is True
    assert comparison["method"] == name
    diffs = comparison["diffs"]
    assert comparison["max_abs_diff"] == max(diff["max_abs_diff"] for diff in diffs)
    y0 = diffs[0]
    assert (y0["name"], y0["shape"]) == ("y0", [1, 3, 192, 256])
    assert y0["max_abs_diff"] < 1e-5
    assert {"y0", "y1", "act_block_1"} < {diff["name"] for diff in diffs}
    assert comparison["unchecked_keys"] == []


@pytest.mark.parametrize(
    "key",
    [
        "block_3.guidance_map_conv.bias",
        pytest.param("conv_near.weight", marks=pytest.mark.slow),
        pytest.param("pointwise_conv.weight", marks=pytest.mark.slow),
    ],
)
def test_tensor_with_the_wrong_sign_fails(esrjax, reference, tmp_path, key):
    state_dict = checkpoint_io.read_checkpoint(
        reference / "weights" / OFFICIAL["spanv2"]
    ).state_dict
    checkpoint_io.write_torch(tmp_path / "wrong.pth", {**state_dict, key: -state_dict[key]})
    args = ["--checkpoint", tmp_path / "wrong.pth"]
    result = esrjax(
        "parity", "spanv2", *args, "--golden", reference / "golden/spanv2.npz", "--json"
    )
    assert result.code == 1 and result.json["passed"] is False
    assert result.json["max_abs_diff"] > 0.01


def test_golden_file_of_another_network_is_refused(esrjax, reference):
    args = ["--checkpoint", reference / "weights" / OFFICIAL["spanv2"]]
    result = esrjax("parity", "spanv2", *args, "--golden", reference / "golden/span.npz")
    assert result.code == 2 and "remedy: " in result.err


def test_own_outputs_pass_and_unchecked_keys_are_listed(esrjax, golden):
    comparison = compare_crumb(golden(note=np.zeros(1)))
    assert comparison.passed
    assert [diff.name for diff in comparison.diffs] == ["y0", "act_filter"]
    assert comparison.diffs[0].shape == (1, 3, 24, 28)
    assert (comparison.diffs[0].num_changed_u8, comparison.diffs[1].num_changed_u8) == (0, None)
    assert comparison.unchecked_keys == ("note",)
    result = esrjax("parity", "crumb", "--golden", golden(note=np.zeros(1)))
    assert result.code == 0
    assert result.out.endswith("not compared: note\ncrumb: equal to PyTorch\n")


@pytest.mark.parametrize(("fraction", "passed"), [(0.9, True), (1.1, False)])
def test_differences_around_the_tolerance(golden, fraction, passed):
    y = load_npz(golden())["y0"]
    y_with_error = y.copy()
    y_with_error[0, 0, 0, 0] += fraction * FLOAT32_RTOL * max(1, np.ptp(y))
    assert compare_crumb(golden(y0=y_with_error)).passed is passed


def test_wrong_activation_fails_with_a_right_output(golden):
    wrong = load_npz(golden())["act_filter"] + 1
    comparison = compare_crumb(golden(act_filter=wrong))
    assert [diff.passed for diff in comparison.diffs] == [True, False]
    assert not comparison.passed


class TwoHeadNet(nnx.Module):
    """A network with an x4 output and a further head `head_1x`."""

    def __init__(self, *, rngs):
        self.head_1x = Conv2d(3, 3, rngs=rngs)

    def __call__(self, x):
        self.head_1x(x)
        return resize_nearest(x, size=(4 * x.shape[1], 4 * x.shape[2]))


@pytest.mark.parametrize("offset", [0, 1])
def test_outputs_of_further_heads_are_compared(tmp_path, offset):
    net = TwoHeadNet(rngs=nnx.Rngs(0))
    method = Method(network=TwoHeadNet, team="", paper="", license="")
    x = np.random.default_rng(0).random((1, 6, 7, 3), np.float32)
    nhwc_arrays = {"x0": x, "y0": net(x), "y0_1x": net.head_1x(x) + offset, "y0_noise": x}
    arrays = {key: np.asarray(y).transpose(0, 3, 1, 2) for key, y in nhwc_arrays.items()}
    np.savez(tmp_path / "golden.npz", **arrays)
    comparison = compare("headed", method, net, tmp_path / "golden.npz")
    assert comparison.checks == {"y0": True, "y0_1x": not offset}
    assert comparison.unchecked_keys == ("y0_noise",)


def test_nan_weights_are_refused_by_name(esrjax, golden, crumbs, tmp_path):
    state_dict = checkpoint_io.read_checkpoint(crumbs / "crumbs/crumb.safetensors").state_dict
    state_dict["filter.bias"][0] = np.nan
    checkpoint_io.write_torch(tmp_path / "nan.pth", state_dict)
    result = esrjax("parity", "crumb", "--checkpoint", tmp_path / "nan.pth", "--golden", golden())
    assert result.code == 2 and "filter.bias has nan at [0]" in result.err


def test_nan_outputs_fail(golden):
    net = nnx.clone(open_method("crumb").net)
    net.filter.bias[...] = net.filter.bias[...].at[0].set(np.nan)
    comparison = compare("crumb", registry.get_method("crumb"), net, golden())
    assert not comparison.passed
    assert comparison.diffs[0].num_changed_u8 == 3 * 24 * 28


def test_missing_or_incomplete_golden_file_is_refused(golden, tmp_path):
    path = golden()
    shutil.move(path, tmp_path / "moved.npz")
    with pytest.raises(UnreadableFile, match="cannot be read"):
        compare_crumb(path)
    np.savez(path, y0=np.zeros(1))
    with pytest.raises(UnreadableFile, match="no x0 with its y0"):
        compare_crumb(path)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"x0": np.zeros((3, 6, 7), np.float32)}, "has x0 of shape (3, 6, 7)"),
        ({"x0": np.zeros((1, 5, 6, 7), np.float32)}, "has x0 of shape (1, 5, 6, 7)"),
        ({"x0": np.full((1, 3, 6, 7), np.nan)}, "has x0 with values that are not finite"),
        ({"y0": np.zeros((1, 3, 24, 28), complex)}, "has y0 of type complex128"),
        ({"y0": np.array("abc")}, "has y0 of type <U3"),
        ({"act_filter": np.array([None])}, "cannot be read as .npz"),
    ],
)
def test_golden_file_of_odd_arrays_is_refused(tmp_path, changes, problem):
    images = {"x0": np.zeros((1, 3, 6, 7), np.float32), "y0": np.zeros((1, 3, 24, 28), np.float32)}
    np.savez(tmp_path / "golden.npz", **images | changes)
    with pytest.raises(UnreadableFile) as caught:
        read_golden(tmp_path / "golden.npz")
    assert problem in caught.value.problem


# Checkpoints converted back to PyTorch have the published keys, nesting, shapes, dtypes, bits


PUBLISHED = [
    (name, weights)
    for name in registry.names()
    if isinstance(method := registry.get_entry(name), Method)
    for weights in method.weights.values()
]


@pytest.fixture(scope="module")
def checkpoints(request):
    """Official checkpoints by their SHA-256."""
    reference = request.getfixturevalue("reference")
    paths = [p for p in (reference / "weights").iterdir() if p.suffix in (".pth", ".safetensors")]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}


def load_checkpoint(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_published_checkpoint_round_trips_bit_exact(checkpoints, tmp_path, name, weights):
    official = checkpoints.get(weights.sha256)
    if official is None:
        pytest.skip("the reference folder does not have these weights")
    convert(name, official, tmp_path / "exported.pth", to="torch", hparams=dict(weights.hparams))
    exported, published_file = load_checkpoint(tmp_path / "exported.pth"), load_checkpoint(official)
    root_keys = [weights.state_dict_key, *weights.other_keys] if weights.state_dict_key else []
    assert set(root_keys) == (set(published_file) if root_keys else set())
    for root_key in root_keys or [None]:
        assert_same_layout(
            exported[root_key] if root_key else exported,
            published_file[root_key] if root_key else published_file,
        )
    values, published = (
        contents[weights.state_dict_key] if root_keys else contents
        for contents in (exported, published_file)
    )
    for key, value in published.items():
        assert torch.equal(values[key], value), key


def assert_same_layout(exported, published):
    """Compare keys, shapes and dtypes; further state dicts (an EMA) have other values."""
    dtypes_and_shapes = [
        {key: (tuple(value.shape), value.dtype) for key, value in state_dict.items()}
        for state_dict in (exported, published)
    ]
    assert dtypes_and_shapes[0] == dtypes_and_shapes[1]
