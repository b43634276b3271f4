"""Weights written to .pth and read again are bit-exact, and PyTorch networks load them."""

import importlib

import numpy as np
import pytest
import torch
from twins.drawn import random_state_dict

from esrjax import registry
from esrjax.method import Method
from esrjax.network import archive
from esrjax.network.naming import KeyMap
from esrjax.network.weights import load_state_dict, named_parameters, to_state_dict
from esrjax.recognition import abstract_network

METHODS = [
    name
    for name in registry.names()
    if registry.distribution_of(name).startswith("esrjax ")
    and isinstance(registry.get_entry(name), Method)
]
TWINS = "span spanv2 rfdn_span hfenet safmn_deep15 mambagate_sr".split()


@pytest.fixture
def save_random_weights(tmp_path):
    """Return an abstract network, one with random weights, and the .pth it was saved to."""

    def save(name, form):
        method = registry.get_method(name)
        abstract_net, key_map = (
            abstract_network(method, form, method.get_test_hparams()),
            KeyMap(method.torch_names),
        )
        shapes = {
            key_map.to_torch(path): torch_shape(variable)
            for path, variable in named_parameters(abstract_net)
        }
        net = load_state_dict(abstract_net, random_state_dict(shapes, seed=2), key_map)
        archive.write_torch(tmp_path / f"{name}.pth", to_state_dict(net, key_map))
        return abstract_net, net, tmp_path / f"{name}.pth"

    return save


def torch_shape(variable):
    """Shape of a variable in PyTorch's layout."""
    value, axes = variable.get_value(), variable.get_metadata().get("torch_axes")
    return tuple(value.shape if axes is None else (value.shape[axis] for axis in axes))


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_round_trips_bit_exact(save_random_weights, name, form):
    abstract_net, net, path = save_random_weights(name, form)
    checkpoint = archive.read_checkpoint(path)
    loaded_net = load_state_dict(
        abstract_net, checkpoint.state_dict, KeyMap(registry.get_method(name).torch_names)
    )
    before, after = dict(named_parameters(net)), dict(named_parameters(loaded_net))
    assert before.keys() == after.keys() and len(before) == len(checkpoint.state_dict) > 0
    for key, variable in before.items():
        expected, actual = np.asarray(variable.get_value()), np.asarray(after[key].get_value())
        assert (expected.dtype, expected.tobytes()) == (actual.dtype, actual.tobytes()), key


@pytest.mark.parametrize("name", TWINS)
def test_twin_loads_the_file_strictly(save_random_weights, name):
    _, net, path = save_random_weights(name, "deploy")
    twin = importlib.import_module(f"twins.{name}").Twin()
    state_dict = torch.load(path, weights_only=True)
    twin.load_state_dict(state_dict, strict=True)
    for key, value in to_state_dict(net, KeyMap(registry.get_method(name).torch_names)).items():
        np.testing.assert_array_equal(twin.state_dict()[key].numpy(), value, err_msg=key)
