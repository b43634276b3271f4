"""Checkpoints converted back to PyTorch have the published keys, nesting, shapes, dtypes, bits."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from esrjax import registry
from esrjax.bridge.conversion import convert
from esrjax.method import Method

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
