"""Channel pruning: the target is the source without some channels; ambiguous shapes are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import WeightsMismatch
from esrjax.loading import load_network
from esrjax.nn import checkpoint_io
from esrjax.nn.layers import Conv2d, GroupNorm, Sequential
from esrjax.nn.prune import prune_channels
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import cast, named_parameters


def build_deployed(name, **hparams):
    return deploy(registry.get_method(name).build(**hparams))


def abstract_deployed(name, **hparams):
    return nnx.eval_shape(lambda: build_deployed(name, **hparams))


def values(net):
    return {path: np.asarray(leaf.get_value()) for path, leaf in named_parameters(net)}


@pytest.fixture(scope="module")
def spanf(reference):
    """SPANF with its official weights."""
    checkpoint = checkpoint_io.read_checkpoint(reference / "weights" / "team24_spanf.pth")
    return load_network("spanf", registry.get_method("spanf"), checkpoint).net


def test_pruning_pkdsr_twice_equals_slicing_by_hand(spanf):
    expected = values(spanf)
    net = spanf
    for tail in (28, 24):
        net = prune_channels(net, abstract_deployed("pkdsr", tail_channels=tail), "first")
        expected["conv_cat.weight"] = expected["conv_cat.weight"][..., :tail]
        expected["conv_cat.bias"] = expected["conv_cat.bias"][:tail]
        expected["conv_2.weight"] = expected["conv_2.weight"][:, :, :tail]
        weights = values(net)
        assert weights.keys() == expected.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(weights[path], value, err_msg=path)


def test_pruned_linear_tail_equals_zeroed_channels(spanf):
    with jax.enable_x64(True):
        source = cast(spanf, jnp.float64)
        target = prune_channels(source, abstract_deployed("pkdsr", tail_channels=24), "first")
        source.conv_2.weight.set_value(source.conv_2.weight[...].at[:, :, 24:].set(0))
        x = jnp.asarray(np.random.default_rng(0).random((1, 5, 6, 3)))
        np.testing.assert_allclose(target(x), source(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("criterion", ["first", "l1"])
def test_pruning_channels_of_zero_weights_changes_nothing(criterion):
    """TSSR has no normalisation, and SiLU(0) = 0: channels of zero weights have no effect."""
    with jax.enable_x64(True):
        source = cast(build_deployed("tssr", channels=6), jnp.float64)
        channels = {"first": [0, 1, 2, 3], "l1": [1, 2, 4, 5]}[criterion]
        removed = sorted({*range(6)} - {*channels})
        if criterion == "l1":
            scale_channels(source, removed, 0.1)
        target = prune_channels(source, abstract_deployed("tssr", channels=4), criterion)
        np.testing.assert_array_equal(
            target.conv_1.bias[...], source.conv_1.bias[...][jnp.array(channels)]
        )
        scale_channels(source, removed, 0.0)
        x = jnp.asarray(np.random.default_rng(1).random((1, 5, 6, 3)))
        np.testing.assert_allclose(target(x), source(x), rtol=0, atol=1e-12)


def scale_channels(net, channels, factor):
    """Multiply all weights of some of the six channels by `factor`."""
    for _, leaf in named_parameters(net):
        value = leaf.get_value()
        for axis, size in enumerate(value.shape):
            if size == 6:
                mask = jnp.where(jnp.isin(jnp.arange(6), jnp.array(channels)), factor, 1.0)
                value = value * jnp.expand_dims(mask, [a for a in range(value.ndim) if a != axis])
        leaf.set_value(value)


def test_depthwise_kernels_are_pruned_with_their_channels():
    def net(channels):
        rngs = nnx.Rngs(0)
        conv_in = Conv2d(3, channels, 1, rngs=rngs)
        return Sequential([conv_in, Conv2d(channels, channels, groups=channels, rngs=rngs)])

    source = net(6)
    target = prune_channels(source, net(4), "l1")
    x = jnp.asarray(np.random.default_rng(2).random((1, 5, 6, 3), np.float32))
    removed = [i for i in range(6) if not np.isin(source[0].bias[i], target[0].bias[...])]
    assert len(removed) == 2
    np.testing.assert_allclose(target(x), np.delete(source(x), removed, -1), rtol=0, atol=1e-6)


def grouped_conv(channels):
    return Sequential([Conv2d(channels, channels, groups=2, bias=False, rngs=nnx.Rngs(0))])


def square_conv(side):
    return Sequential([Conv2d(3, 4, side, rngs=nnx.Rngs(0))])


class BiasTable(nnx.Module):
    """A table of relative position biases, a column for every head."""

    def __init__(self, num_heads):
        self.table = nnx.Param(jnp.zeros((9, num_heads)))


def group_norm(channels):
    return Sequential([GroupNorm(2, channels)])


@pytest.mark.parametrize(
    ("source", "target", "messages"),
    [
        (
            lambda: abstract_deployed("span", channels=8),
            lambda: abstract_deployed("span", channels=6),
            ["8 channels become 6: block_1.c1.", "32 channels become 24: conv_cat.weight"],
        ),
        (
            lambda: registry.get_method("pkdsr").build(tail_channels=8),
            lambda: registry.get_method("pkdsr").build(tail_channels=6),
            ["16 channels become 12: conv_2.conv.0.bias", "prune the deploy form"],
        ),
        (
            lambda: abstract_deployed("pkdsr", tail_channels=6),
            lambda: abstract_deployed("pkdsr", tail_channels=8),
            ["6 channels become 8: conv_2.weight, conv_cat.bias, conv_cat.weight"],
        ),
        (
            lambda: abstract_deployed("spanf", tail_channels=8),
            lambda: abstract_deployed("tssr", channels=8),
            ["only in the source network: block_1.", "only in the target network: blocks.0."],
        ),
        (lambda: abstract_deployed("tssr"), lambda: abstract_deployed("tssr"), ["no axis differs"]),
        (
            lambda: square_conv(5),
            lambda: square_conv(3),
            ["not of channels: 0.weight"],
        ),
        (lambda: BiasTable(4), lambda: BiasTable(2), ["not of channels: table"]),
        (lambda: group_norm(6), lambda: group_norm(4), ["0 has 2 groups"]),
        (
            lambda: grouped_conv(8),
            lambda: grouped_conv(6),
            ["4 channels become 3: 0.weight", "8 channels become 6", "2 groups"],
        ),
    ],
    ids=["concat", "hidden", "grown", "other", "same", "kernel", "table", "norm", "grouped"],
)
def test_ambiguous_shapes_are_reported(source, target, messages):
    with pytest.raises(WeightsMismatch) as error:
        prune_channels(source(), target(), "first")
    assert all(message in str(error.value) for message in messages), str(error.value)
