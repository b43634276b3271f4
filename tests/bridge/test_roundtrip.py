"""Weights go to PyTorch's file and come back bit for bit, and PyTorch's networks take them."""

import importlib

import numpy as np
import pytest
import torch
from twins import drawn

from esrjax import registry
from esrjax.method import Method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.weights import leaves, load, tensors
from esrjax.recognition import template

OURS = [
    name
    for name in registry.names()
    if registry.origin(name).startswith("esrjax ") and isinstance(registry.method(name), Method)
]
TWINS = "span spanv2 rfdn_span hfenet safmn_deep15 mambagate_sr".split()


@pytest.fixture
def saved(tmp_path):
    """An empty network, one with drawn weights, and the `.pth` that it was saved as."""

    def save(name, form):
        method = registry.plain(name)
        empty, naming = template(method, form, method.tiny()), Naming(method.torch_names)
        shapes = {naming.to_torch(path): shape(leaf) for path, leaf in leaves(empty)}
        net = load(empty, drawn.weights(shapes, seed=2), naming)
        archive.write_torch(tmp_path / f"{name}.pth", tensors(net, naming))
        return empty, net, tmp_path / f"{name}.pth"

    return save


def shape(leaf):
    """As PyTorch has it."""
    value, axes = leaf.get_value(), leaf.get_metadata().get("torch_axes")
    return tuple(value.shape if axes is None else (value.shape[axis] for axis in axes))


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", OURS)
def test_every_method_comes_back_bit_for_bit(saved, name, form):
    empty, net, path = saved(name, form)
    held = archive.read(path)
    again = load(empty, held.tensors, Naming(registry.plain(name).torch_names))
    before, after = dict(leaves(net)), dict(leaves(again))
    assert before.keys() == after.keys() and len(before) == len(held.tensors) > 0
    for key, leaf in before.items():
        wanted, found = np.asarray(leaf.get_value()), np.asarray(after[key].get_value())
        assert (wanted.dtype, wanted.tobytes()) == (found.dtype, found.tobytes()), key


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_takes_the_file_as_it_is(saved, name):
    _, net, path = saved(name, "deploy")
    twin = importlib.import_module(f"twins.{name}").Twin()
    state = torch.load(path, weights_only=True)
    twin.load_state_dict(state, strict=True)
    for key, value in tensors(net, Naming(registry.plain(name).torch_names)).items():
        np.testing.assert_array_equal(twin.state_dict()[key].numpy(), value, err_msg=key)
