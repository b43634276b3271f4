"""The plugin interface: immutable data, hyperparameters, building of networks."""

import dataclasses

import jax
import pytest
from flax import nnx

from esrjax.errors import InvalidArgument
from esrjax.method import Ensemble, Member, Method, Weights
from esrjax.nn.layers import Conv2d


class Net(nnx.Module):
    """A network with two hyperparameters."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 4, scale: int = 2):
        self.conv = Conv2d(3, channels, rngs=rngs)
        self.scale = scale


def build(rngs, depth=3):
    """Build a network; a function instead of a class."""
    return Net(rngs=rngs, channels=depth)


def make_method(network=Net):
    return Method(network=network, team="ours", paper="none", license="MIT", scales=(2, 4))


def conv_weight(net):
    return net.conv.weight[...]


@pytest.mark.parametrize(
    "network, hparams", [(Net, {"channels": 4, "scale": 2}), (build, {"depth": 3})]
)
def test_hparams_are_the_arguments_of_the_network(network, hparams):
    assert make_method(network).default_hparams() == hparams


def test_build_uses_its_hparams():
    assert conv_weight(make_method().build()).shape == (3, 3, 3, 4)
    assert conv_weight(make_method().build(channels=7)).shape == (3, 3, 3, 7)
    assert conv_weight(make_method(build).build(depth=5)).shape == (3, 3, 3, 5)


def test_test_hparams_default_to_those_of_the_weights_tiny():
    large, tiny = (Weights(sha256="0", hparams={"channels": n}) for n in (9, 2))
    assert make_method().get_test_hparams() == {}
    weights = {"large": large, "tiny": tiny}
    assert dataclasses.replace(make_method(), weights=weights).get_test_hparams() == {"channels": 2}


def test_build_depends_on_the_seed_only():
    first, repeated, other = (conv_weight(make_method().build(seed=seed)) for seed in (0, 0, 1))
    assert jax.numpy.array_equal(first, repeated)
    assert not jax.numpy.array_equal(first, other)


@pytest.mark.parametrize("value", [True, "8"])
def test_hparam_of_another_type_is_reported(value):
    # Python computes with True as with 1: a network with one channel.
    with pytest.raises(InvalidArgument, match=f"channels={value!r}"):
        make_method().check_hparams({"channels": value})
    make_method().check_hparams({"channels": 8})


def test_unknown_hparam_is_reported_with_the_known_ones():
    with pytest.raises(InvalidArgument) as caught:
        make_method().build(chanels=3, channels=4, width=2)
    assert caught.value.problem == "Unknown hyperparameter: chanels, width"
    assert caught.value.rule.endswith("channels=4, scale=2")
    assert "'channels'" in caught.value.remedy


@pytest.mark.parametrize(
    "value",
    [
        make_method(),
        Weights(sha256="0"),
        Member(),
        Ensemble(members={"span": Member()}, team="ours", paper="none", license="MIT"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plugin_data_is_immutable(value):
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


def test_methods_do_not_share_defaults():
    assert make_method().weights is not make_method().weights
