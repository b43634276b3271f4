"""Weights go into a network and out of it: both sides exact, all or nothing."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.archive import read
from esrjax.network.layers import Conv2d, Linear, Sequential, parameter
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import WeightsMismatch, cast, leaves, load, tensors

NAMING = Naming({"features.{i}.{leaf}": "body.{i}.{leaf}"})


class Net(nnx.Module):
    """One of every kind of leaf."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.body = Sequential([Conv2d(2, 3, (1, 5), rngs=rngs), Linear(3, 4, rngs=rngs)])
        self.gain = parameter(jax.random.normal(rngs.params(), (1, 1, 1, 4)), (0, 3, 1, 2))
        self.count = nnx.BatchStat(jnp.array(seed))


def held(seed=1):
    return tensors(Net(seed), NAMING)


def mismatch(tensors, net=None, **options):
    with pytest.raises(WeightsMismatch) as caught:
        load(net or Net(), tensors, NAMING, **options)
    return caught.value


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key, strict=True)


def test_tensors_have_pytorchs_names_and_shapes():
    assert {key: value.shape for key, value in held().items()} == {
        "features.0.weight": (3, 2, 1, 5),
        "features.0.bias": (3,),
        "features.1.weight": (4, 3),
        "features.1.bias": (4,),
        "gain": (1, 4, 1, 1),
        "count": (),
    }


@pytest.mark.parametrize("net", [Net(), nnx.eval_shape(Net)], ids=["built", "abstract"])
def test_what_is_loaded_comes_out(net):
    assert_same(tensors(load(net, held(), NAMING), NAMING), held())


def test_load_keeps_the_types_of_the_network():
    doubled = {key: value.astype(np.float64) for key, value in held().items()}
    assert_same(tensors(load(Net(), doubled, NAMING), NAMING), held())


def test_load_leaves_its_network_alone():
    net = Net()
    load(net, held(1), NAMING)
    assert_same(tensors(net, NAMING), held(0))


def test_a_mismatch_lists_both_sides_at_once_and_changes_nothing():
    net, wrong = Net(), held()
    del wrong["features.1.bias"]
    wrong["features.1.biases"] = np.zeros(4)
    wrong["gain"] = np.zeros((1, 1, 1, 4))
    wrong["ema.decay"] = np.zeros(())
    error = mismatch(wrong, net, place="net.pth")
    assert error.count == 4
    assert str(error) == (
        "4 of 8 tensors do not match:\n"
        "    not in the checkpoint: features.1.bias (4,) (is it features.1.biases?)\n"
        "    misshapen: gain is (1, 1, 1, 4), the network has (1, 4, 1, 1)\n"
        "    not in the network: features.1.biases (4,)\n"
        "    not in the network: ema.decay ()\n"
        "  place:  net.pth\n"
        "  rule:   every tensor has its place in the network, and every place its tensor\n"
        "  remedy: check the method and its sizes (--size key=value); nothing was loaded"
    )
    assert_same(tensors(net, NAMING), held(0))


def test_a_long_list_shows_every_kind_and_says_how_many_more():
    wrong = {f"other.{i}": np.zeros(()) for i in range(30)}
    text = str(mismatch(wrong))
    assert text.startswith("36 of 36 tensors do not match")
    assert text.count("not in the checkpoint") == 6
    assert text.count("not in the network") == 10
    assert "\n    and 20 more\n" in text


def test_two_tensors_of_one_place_are_a_mismatch():
    wrong = held() | {"body.1.bias": np.zeros(4)}
    text = str(mismatch(wrong))
    assert "of one place: features.1.bias and body.1.bias" in text
    assert "1 of 6" in text


def test_unused_globs_let_tensors_go():
    more = held() | {"mask.0": np.zeros(1), "body.mask": np.zeros(1), "other": np.zeros(1)}
    unused = {"mask.*": "made anew", "*.mask": "made anew"}
    assert str(mismatch(more, unused=unused)).startswith("1 of 7")
    del more["other"]
    assert_same(tensors(load(Net(), more, NAMING, unused=unused), NAMING), held())


def test_cast_changes_a_copy():
    net = Net()
    half = cast(net, jnp.bfloat16)
    assert {leaf.get_value().dtype.name for _, leaf in leaves(half)} == {"bfloat16"}
    assert_same(tensors(net, NAMING), held(0))


@pytest.mark.parametrize(
    "name, file", [("span", "team00_SPAN.pth"), ("spanv2", "team22_spanv2_c2.pth")]
)
def test_official_weights_load_exactly_and_come_back_bit_for_bit(reference, name, file):
    method, found = registry.method(name), read(reference / "weights" / file)
    said = method.weights["ntire2026"]
    assert found.sha256 == said.sha256
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    shape = deploy if said.form == "deploy" else lambda net: net
    net = nnx.eval_shape(lambda: shape(method.build(**said.sizes)))
    naming = Naming(method.torch_names)
    back = tensors(load(net, found.tensors, naming, method.unused), naming)
    assert_same(back, found.tensors)
