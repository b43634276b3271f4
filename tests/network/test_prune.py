"""A narrowed network is the wide one without the channels that went; what is unclear is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network import archive
from esrjax.network.layers import Conv2d, GroupNorm, Sequential
from esrjax.network.prune import Unprunable, shrink
from esrjax.network.reparam import deploy
from esrjax.network.weights import cast, leaves
from esrjax.recognition import recognise


def deployed(name, **sizes):
    return deploy(registry.plain(name).build(**sizes))


def abstract(name, **sizes):
    return nnx.eval_shape(lambda: deployed(name, **sizes))


def values(net):
    return {path: np.asarray(leaf.get_value()) for path, leaf in leaves(net)}


@pytest.fixture(scope="module")
def spanf(reference):
    """SPANF with its official weights."""
    checkpoint = archive.read(reference / "weights" / "team24_spanf.pth")
    return recognise("spanf", registry.plain("spanf"), checkpoint).net


def test_pkdsr_is_pruned_twice_as_by_hand(spanf):
    by_hand = values(spanf)
    net = spanf
    for tail in (28, 24):
        net = shrink(net, abstract("pkdsr", tail=tail), "first")
        by_hand["conv_cat.weight"] = by_hand["conv_cat.weight"][..., :tail]
        by_hand["conv_cat.bias"] = by_hand["conv_cat.bias"][:tail]
        by_hand["conv_2.weight"] = by_hand["conv_2.weight"][:, :, :tail]
        found = values(net)
        assert found.keys() == by_hand.keys()
        for path, value in by_hand.items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_the_linear_tail_forgets_the_channels_that_went(spanf):
    with jax.enable_x64(True):
        wide = cast(spanf, jnp.float64)
        narrow = shrink(wide, abstract("pkdsr", tail=24), "first")
        wide.conv_2.weight.set_value(wide.conv_2.weight[...].at[:, :, 24:].set(0))
        x = jnp.asarray(np.random.default_rng(0).random((1, 5, 6, 3)))
        np.testing.assert_allclose(narrow(x), wide(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep", ["first", "l1"])
def test_where_nothing_stays_nothing(keep):
    """TSSR knows no norm, and SiLU(0) = 0: channels without weights are as good as gone."""
    with jax.enable_x64(True):
        wide = cast(deployed("tssr", channels=6), jnp.float64)
        kept = {"first": [0, 1, 2, 3], "l1": [1, 2, 4, 5]}[keep]
        gone = sorted({*range(6)} - {*kept})
        if keep == "l1":
            _emptied(wide, gone, 0.1)
        narrow = shrink(wide, abstract("tssr", channels=4), keep)
        np.testing.assert_array_equal(
            narrow.conv_1.bias[...], wide.conv_1.bias[...][jnp.array(kept)]
        )
        _emptied(wide, gone, 0.0)
        x = jnp.asarray(np.random.default_rng(1).random((1, 5, 6, 3)))
        np.testing.assert_allclose(narrow(x), wide(x), rtol=0, atol=1e-12)


def _emptied(net, channels, share):
    """Multiply all weights of these channels, of six, by `share`."""
    for _, leaf in leaves(net):
        value = leaf.get_value()
        for axis, size in enumerate(value.shape):
            if size == 6:
                mask = jnp.where(jnp.isin(jnp.arange(6), jnp.array(channels)), share, 1.0)
                value = value * jnp.expand_dims(mask, [a for a in range(value.ndim) if a != axis])
        leaf.set_value(value)


def test_depthwise_kernels_follow_their_channels():
    def net(channels):
        rngs = nnx.Rngs(0)
        into = Conv2d(3, channels, 1, rngs=rngs)
        return Sequential([into, Conv2d(channels, channels, groups=channels, rngs=rngs)])

    wide = net(6)
    narrow = shrink(wide, net(4), "l1")
    x = jnp.asarray(np.random.default_rng(2).random((1, 5, 6, 3), np.float32))
    went = [i for i in range(6) if not np.isin(wide[0].bias[i], narrow[0].bias[...])]
    assert len(went) == 2
    np.testing.assert_allclose(narrow(x), np.delete(wide(x), went, -1), rtol=0, atol=1e-6)


def grouped(channels):
    return Sequential([Conv2d(channels, channels, groups=2, bias=False, rngs=nnx.Rngs(0))])


def sided(side):
    return Sequential([Conv2d(3, 4, side, rngs=nnx.Rngs(0))])


class Tabled(nnx.Module):
    """A table of biases, a column for every head."""

    def __init__(self, heads):
        self.table = nnx.Param(jnp.zeros((9, heads)))


def normed(channels):
    return Sequential([GroupNorm(2, channels)])


@pytest.mark.parametrize(
    ("wide", "narrow", "said"),
    [
        (
            lambda: abstract("span", channels=8),
            lambda: abstract("span", channels=6),
            ["8 channels become 6: block_1.c1.", "32 channels become 24: conv_cat.weight"],
        ),
        (
            lambda: registry.plain("pkdsr").build(tail=8),
            lambda: registry.plain("pkdsr").build(tail=6),
            ["16 channels become 12: conv_2.conv.0.bias", "prune the deploy form"],
        ),
        (
            lambda: abstract("pkdsr", tail=6),
            lambda: abstract("pkdsr", tail=8),
            ["6 channels become 8: conv_2.weight, conv_cat.bias, conv_cat.weight"],
        ),
        (
            lambda: abstract("spanf", tail=8),
            lambda: abstract("tssr", channels=8),
            ["only in the wide network: block_1.", "only in the narrow network: blocks.0."],
        ),
        (lambda: abstract("tssr"), lambda: abstract("tssr"), ["no axis differs"]),
        (
            lambda: sided(5),
            lambda: sided(3),
            ["not of channels: 0.weight"],
        ),
        (lambda: Tabled(4), lambda: Tabled(2), ["not of channels: table"]),
        (lambda: normed(6), lambda: normed(4), ["0 sees its channels in 2 groups"]),
        (
            lambda: grouped(8),
            lambda: grouped(6),
            ["4 channels become 3: 0.weight", "8 channels become 6", "in 2 groups"],
        ),
    ],
    ids=["concat", "hidden", "grown", "strangers", "same", "kernel", "table", "norm", "grouped"],
)
def test_what_is_unclear_is_refused(wide, narrow, said):
    with pytest.raises(Unprunable) as error:
        shrink(wide(), narrow(), "first")
    assert all(part in str(error.value) for part in said), str(error.value)
