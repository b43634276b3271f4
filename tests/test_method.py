"""A method is a value: a network, its sizes and its facts."""

import dataclasses

import jax
import pytest
from flax import nnx

from esrjax.method import BadSize, Ensemble, Member, Method, Weights
from esrjax.network.layers import Conv2d


class Net(nnx.Module):
    """A network of two sizes."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 4, scale: int = 2):
        self.conv = Conv2d(3, channels, rngs=rngs)
        self.scale = scale


def build(rngs, depth=3):
    """A network by a function."""
    return Net(rngs=rngs, channels=depth)


def method(network=Net):
    return Method(network=network, team="ours", paper="unsaid", license="MIT")


def weight(net):
    return net.conv.weight[...]


@pytest.mark.parametrize(
    "network, sizes", [(Net, {"channels": 4, "scale": 2}), (build, {"depth": 3})]
)
def test_sizes_are_the_arguments_of_the_network(network, sizes):
    assert method(network).sizes() == sizes


def test_build_gives_the_sizes_that_were_asked_for():
    assert weight(method().build()).shape == (3, 3, 3, 4)
    assert weight(method().build(channels=7)).shape == (3, 3, 3, 7)
    assert weight(method(build).build(depth=5)).shape == (3, 3, 3, 5)


def test_tiny_sizes_are_those_of_the_weights_called_so():
    wide, tiny = (Weights(sha256="0", sizes={"channels": n}) for n in (9, 2))
    assert method().tiny() == {}
    held = {"wide": wide, "tiny": tiny}
    assert dataclasses.replace(method(), weights=held).tiny() == {"channels": 2}


def test_build_is_a_function_of_the_seed():
    first, again, other = (weight(method().build(seed=seed)) for seed in (0, 0, 1))
    assert jax.numpy.array_equal(first, again)
    assert not jax.numpy.array_equal(first, other)


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(BadSize) as caught:
        method().build(chanels=3, channels=4, width=2)
    assert str(caught.value) == (
        "no such size: chanels, width\n"
        "  rule:   a size is an argument of the method's network: channels=4, scale=2\n"
        "  remedy: use one of these names, or leave the size out"
    )


@pytest.mark.parametrize(
    "value",
    [
        method(),
        Weights(sha256="0"),
        Member(),
        Ensemble(members={"span": Member()}, team="ours", paper="unsaid", license="MIT"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_facts_do_not_change(value):
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


def test_methods_share_no_facts_by_accident():
    assert method().weights is not method().weights
