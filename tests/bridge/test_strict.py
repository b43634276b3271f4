"""What goes back to PyTorch is what the team published: keys, nesting, shapes, types, bits."""

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
    if isinstance(method := registry.method(name), Method)
    for weights in method.weights.values()
]


@pytest.fixture(scope="module")
def files(request):
    """The official checkpoints by their sha256."""
    reference = request.getfixturevalue("reference")
    found = [p for p in (reference / "weights").iterdir() if p.suffix in (".pth", ".safetensors")]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in found}


def loaded(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.mark.parametrize(("name", "weights"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_a_checkpoint_comes_back_as_it_was_published(files, tmp_path, name, weights):
    official = files.get(weights.sha256)
    if official is None:
        pytest.skip("the reference folder does not hold these weights")
    convert(name, official, tmp_path / "ours.pth", to="torch", sizes=dict(weights.sizes))
    ours, theirs = loaded(tmp_path / "ours.pth"), loaded(official)
    roots = [weights.root, *weights.beside] if weights.root else []
    assert set(roots) == (set(theirs) if roots else set())
    for root in roots or [None]:
        same_tensors(ours[root] if root else ours, theirs[root] if root else theirs)
    values, published = (held[weights.root] if roots else held for held in (ours, theirs))
    for key, value in published.items():
        assert torch.equal(values[key], value), key


def same_tensors(ours, theirs):
    """Keys, shapes and types; the sets beside the root hold other values."""
    told = [
        {key: (tuple(value.shape), value.dtype) for key, value in held.items()}
        for held in (ours, theirs)
    ]
    assert told[0] == told[1]
