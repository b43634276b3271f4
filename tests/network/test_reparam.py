"""The deploy form is the train form, in double precision, to the last pixel of the border."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.parts.spab import Conv3XC
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from esrjax import registry
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.naming import Naming
from esrjax.network.reparam import Affine, Reparam, deploy
from esrjax.network.weights import cast, leaves, tensors
from esrjax.network.words import conv2d

FEW = settings(max_examples=6, deadline=None, derandomize=True)
SIDES = st.tuples(st.integers(1, 3), st.integers(1, 4))
ODD = st.tuples(*2 * [st.sampled_from([1, 3, 5])])
WIDTH = st.integers(1, 4)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


# --- the algebra -------------------------------------------------------------------------------


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def affine(seed, sides, wide, out):
    return Affine(drawn(seed, *sides, wide, out), drawn(seed + 1, out))


def valid(x, a):
    return conv2d(x, a.w, a.b)


def same(x, a):
    kh, kw = a.w.shape[:2]
    return conv2d(x, a.w, a.b, padding=(kh // 2, kw // 2))


def picture(wide):
    return drawn(9, 2, 8, 9, wide)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@FEW
@given(SIDES, SIDES, WIDTH, WIDTH, WIDTH)
def test_then_is_one_convolution_after_another(first, second, wide, between, out):
    a, b = affine(0, first, wide, between), affine(2, second, between, out)
    x = picture(wide)
    assert_close(valid(x, a.then(b)), valid(valid(x, a), b))


@FEW
@given(ODD, ODD, WIDTH, WIDTH)
def test_plus_is_two_convolutions_side_by_side(first, second, wide, out):
    a, b = affine(0, first, wide, out), affine(2, second, wide, out)
    x = picture(wide)
    assert_close(same(x, a + b), same(x, a) + same(x, b))


def test_scaled_acts_on_every_output():
    a, x, scale, shift = affine(0, (3, 3), 2, 4), picture(2), drawn(5, 4), drawn(6, 4)
    row = lambda v: v[None, None, None]  # noqa: E731
    assert_close(same(x, a.scaled(scale, shift)), row(scale) * same(x, a) + row(shift))
    assert_close(same(x, a.scaled(scale)), row(scale) * same(x, a))


def test_identity_changes_nothing():
    x = picture(3)
    np.testing.assert_array_equal(same(x, Affine.identity(3, x.dtype)), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(groups=2), dict(groups=4), dict(dilation=2)])
def test_of_is_the_layer(options, bias):
    conv = cast(Conv2d(4, 8, (3, 5), bias=bias, rngs=nnx.Rngs(0), **options), jnp.float64)
    x = picture(4)
    assert_close(same(x, Affine.of(conv)), conv(x))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_undoes_of(groups):
    conv = cast(Conv2d(4, 8, groups=groups, rngs=nnx.Rngs(0)), jnp.float64)
    back = Affine.of(conv).conv(groups)
    assert_same_weights(back, conv)
    assert_close(back(picture(4)), conv(picture(4)))


def test_conv_can_do_without_bias():
    a = affine(0, (3, 3), 2, 4)
    conv = a.conv(bias=False)
    assert conv.bias is None
    assert_close(conv(picture(2)) + a.b[None, None, None], same(picture(2), a))


def test_a_strided_convolution_is_refused():
    with pytest.raises(ValueError, match="stride 2 is not an Affine"):
        Affine.of(Conv2d(1, 1, stride=2, rngs=nnx.Rngs(0)))


def test_kernels_without_a_common_centre_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\) have no common centre"):
        affine(0, (2, 3), 1, 1) + affine(0, (3, 3), 1, 1)


# --- the deploy law ----------------------------------------------------------------------------


class Nested(Reparam):
    """A block of blocks, one of them in a list."""

    def __init__(self):
        self.inner = Conv3XC(3, 4, rngs=nnx.Rngs(1))
        self.outer = Sequential([Conv3XC(4, 3, rngs=nnx.Rngs(2))])

    def __call__(self, x):
        return self.outer(self.inner(x))

    def fuse(self):
        return Sequential([self.inner, *self.outer])


class Forgetful(Conv3XC):
    """A block that drops its skip when it fuses."""

    def fuse(self):
        return functools.reduce(Affine.then, map(Affine.of, self.conv)).conv()


BUILDS = {
    "one block": lambda: Conv3XC(3, 5, rngs=nnx.Rngs(0)),
    "nested": lambda: Sequential([Nested()]),
    "span": lambda: registry.method("span").build(channels=6),
}


def scattered(net):
    """`net` in double precision, every parameter away from the 0 and 1 that hide mistakes."""
    net = cast(net, jnp.float64)
    for seed, (_, leaf) in enumerate(leaves(net)):
        leaf.set_value(0.3 * drawn(seed, *leaf.get_value().shape))
    return net


def error(net):
    """The largest difference between the two forms, relative to the range of the output."""
    x = drawn(7, 1, 4, 5, 3)
    wide, thin = net(x), deploy(net)(x)
    return float(jnp.abs(thin - wide).max() / jnp.ptp(wide))


def assert_same_weights(ours, theirs):
    ours, theirs = tensors(ours, Naming({})), tensors(theirs, Naming({}))
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_changes_no_pixel(build):
    assert error(scattered(build())) < 1e-9


def test_a_fuse_that_drops_the_skip_is_caught():
    assert error(scattered(Forgetful(3, 5, rngs=nnx.Rngs(0)))) > 1e-3


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_leaves_no_block_and_its_input_alone(build):
    net = scattered(build())
    before, thin = nnx.clone(net), deploy(net)
    assert not any(isinstance(part, Reparam) for _, part in nnx.iter_modules(thin))
    assert any(isinstance(part, Reparam) for _, part in nnx.iter_modules(net))
    assert_same_weights(net, before)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_deploy_twice_is_deploy_once(build):
    thin = deploy(scattered(build()))
    assert_same_weights(deploy(thin), thin)


def test_blocks_in_lists_and_dictionaries_are_found():
    net = nnx.Module()
    net.held = nnx.Dict(a=nnx.List([Conv3XC(3, 3, rngs=nnx.Rngs(0))]))
    assert type(deploy(net).held["a"][0]) is Conv2d


def test_a_block_that_does_not_say_what_it_fuses_to_is_an_error():
    with pytest.raises(NotImplementedError, match="Reparam must say what it fuses to"):
        deploy(Reparam())


def test_deploy_works_on_an_abstract_network():
    thin = nnx.eval_shape(lambda: deploy(registry.method("span").build()))
    assert dict(leaves(thin))["block_6.c3.weight"].get_value().shape == (3, 3, 28, 28)
