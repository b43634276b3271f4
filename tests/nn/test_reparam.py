"""Reparameterisation: the deploy form equals the train form in float64, border included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks.spab import Conv3XC
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from esrjax import registry
from esrjax.nn.functional import conv2d
from esrjax.nn.layers import Conv2d, Sequential
from esrjax.nn.reparam import Affine, Reparam, deploy
from esrjax.nn.state_dict import KeyMap, cast, named_parameters, to_state_dict

FEW = settings(max_examples=6, deadline=None, derandomize=True)
SIDES = st.tuples(st.integers(1, 3), st.integers(1, 4))
ODD = st.tuples(*2 * [st.sampled_from([1, 3, 5])])
CHANNELS = st.integers(1, 4)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


# --- the algebra -------------------------------------------------------------------------------


def random_array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def affine(seed, sides, in_channels, out_channels):
    return Affine(
        random_array(seed, *sides, in_channels, out_channels), random_array(seed + 1, out_channels)
    )


def conv_valid(x, a):
    return conv2d(x, a.w, a.b)


def conv_same(x, a):
    kh, kw = a.w.shape[:2]
    return conv2d(x, a.w, a.b, padding=(kh // 2, kw // 2))


def random_images(in_channels):
    return random_array(9, 2, 8, 9, in_channels)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@FEW
@given(SIDES, SIDES, CHANNELS, CHANNELS, CHANNELS)
def test_then_equals_two_convolutions_in_sequence(
    first, second, in_channels, mid_channels, out_channels
):
    a, b = (
        affine(0, first, in_channels, mid_channels),
        affine(2, second, mid_channels, out_channels),
    )
    x = random_images(in_channels)
    assert_close(conv_valid(x, a.then(b)), conv_valid(conv_valid(x, a), b))


@FEW
@given(ODD, ODD, CHANNELS, CHANNELS)
def test_sum_equals_two_parallel_convolutions(first, second, in_channels, out_channels):
    a, b = affine(0, first, in_channels, out_channels), affine(2, second, in_channels, out_channels)
    x = random_images(in_channels)
    assert_close(conv_same(x, a + b), conv_same(x, a) + conv_same(x, b))


def test_scale_output_scales_and_shifts_every_channel():
    a, x, scale, shift = (
        affine(0, (3, 3), 2, 4),
        random_images(2),
        random_array(5, 4),
        random_array(6, 4),
    )
    row = lambda v: v[None, None, None]  # noqa: E731
    assert_close(
        conv_same(x, a.scale_output(scale, shift)), row(scale) * conv_same(x, a) + row(shift)
    )
    assert_close(conv_same(x, a.scale_output(scale)), row(scale) * conv_same(x, a))


def test_identity_changes_nothing():
    x = random_images(3)
    np.testing.assert_array_equal(conv_same(x, Affine.identity(3, x.dtype)), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(groups=2), dict(groups=4), dict(dilation=2)])
def test_from_conv_equals_the_layer(options, bias):
    conv = cast(Conv2d(4, 8, (3, 5), bias=bias, rngs=nnx.Rngs(0), **options), jnp.float64)
    x = random_images(4)
    assert_close(conv_same(x, Affine.from_conv(conv)), conv(x))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_to_conv_inverts_from_conv(groups):
    conv = cast(Conv2d(4, 8, groups=groups, rngs=nnx.Rngs(0)), jnp.float64)
    round_trip = Affine.from_conv(conv).to_conv(groups)
    assert_same_weights(round_trip, conv)
    assert_close(round_trip(random_images(4)), conv(random_images(4)))


def test_to_conv_without_bias():
    a = affine(0, (3, 3), 2, 4)
    conv = a.to_conv(bias=False)
    assert conv.bias is None
    assert_close(conv(random_images(2)) + a.b[None, None, None], conv_same(random_images(2), a))


def test_strided_convolution_is_rejected():
    with pytest.raises(ValueError, match="stride 2 cannot be fused"):
        Affine.from_conv(Conv2d(1, 1, stride=2, rngs=nnx.Rngs(0)))


def test_kernels_without_common_centre_are_rejected():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\) have no common centre"):
        affine(0, (2, 3), 1, 1) + affine(0, (3, 3), 1, 1)


# --- deploy ------------------------------------------------------------------------------------


class Nested(Reparam):
    """A block that contains blocks, one of them in a list."""

    def __init__(self):
        self.inner = Conv3XC(3, 4, rngs=nnx.Rngs(1))
        self.outer = Sequential([Conv3XC(4, 3, rngs=nnx.Rngs(2))])

    def __call__(self, x):
        return self.outer(self.inner(x))

    def fuse(self):
        return Sequential([self.inner, *self.outer])


class WithoutSkip(Conv3XC):
    """A block whose `fuse` leaves out the skip connection."""

    def fuse(self):
        return functools.reduce(Affine.then, map(Affine.from_conv, self.conv)).to_conv()


BUILDS = {
    "one block": lambda: Conv3XC(3, 5, rngs=nnx.Rngs(0)),
    "nested": lambda: Sequential([Nested()]),
    "span": lambda: registry.get_entry("span").build(channels=6),
}


def with_random_weights(net):
    """Return `net` in float64 with random parameters; 0 and 1 would hide mistakes."""
    net = cast(net, jnp.float64)
    for seed, (_, leaf) in enumerate(named_parameters(net)):
        leaf.set_value(0.3 * random_array(seed, *leaf.get_value().shape))
    return net


def relative_error(net):
    """Return the largest difference between the two forms, over the range of the output."""
    x = random_array(7, 1, 4, 5, 3)
    train_out, deploy_out = net(x), deploy(net)(x)
    return float(jnp.abs(deploy_out - train_out).max() / jnp.ptp(train_out))


def assert_same_weights(ours, theirs):
    ours, theirs = to_state_dict(ours, KeyMap({})), to_state_dict(theirs, KeyMap({}))
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_form_equals_train_form(build):
    assert relative_error(with_random_weights(build())) < 1e-9


def test_fuse_without_the_skip_is_detected():
    assert relative_error(with_random_weights(WithoutSkip(3, 5, rngs=nnx.Rngs(0)))) > 1e-3


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_fuses_all_blocks_and_does_not_change_its_argument(build):
    net = with_random_weights(build())
    before, deployed = nnx.clone(net), deploy(net)
    assert not any(isinstance(module, Reparam) for _, module in nnx.iter_modules(deployed))
    assert any(isinstance(module, Reparam) for _, module in nnx.iter_modules(net))
    assert_same_weights(net, before)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_is_idempotent(build):
    deployed = deploy(with_random_weights(build()))
    assert_same_weights(deploy(deployed), deployed)


def test_blocks_in_lists_and_dictionaries_are_fused():
    net = nnx.Module()
    net.blocks = nnx.Dict(a=nnx.List([Conv3XC(3, 3, rngs=nnx.Rngs(0))]))
    assert type(deploy(net).blocks["a"][0]) is Conv2d


def test_block_without_fuse_is_an_error():
    with pytest.raises(NotImplementedError, match=r"Reparam must implement fuse\(\)"):
        deploy(Reparam())


def test_deploy_works_on_an_abstract_network():
    deployed = nnx.eval_shape(lambda: deploy(registry.get_entry("span").build()))
    assert dict(named_parameters(deployed))["block_6.c3.weight"].get_value().shape == (3, 3, 28, 28)
