"""SPANF, and the methods that prune its tail."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.spanf import Conv3XCStem
from flax import nnx

from esrjax import registry
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

TAIL_CHANNELS = {"pds": 20, "pkdsr": 24}


def random_image():
    return jnp.asarray(np.random.default_rng(0).random((1, 5, 7, 3)), jnp.float32)


def parameter_shapes(name):
    net = deploy(registry.get_entry(name).build())
    return {key: value.shape for key, value in to_state_dict(net, KeyMap({})).items()}


def test_near_branch_is_initialized_to_nearest_neighbour_upsampling():
    x = random_image()
    near = registry.get_entry("spanf").build().conv_near
    repeated = jnp.repeat(jnp.repeat(x, 4, 1), 4, 2)
    np.testing.assert_array_equal(pixel_shuffle(near(x), 4), repeated)


def test_first_block_has_no_attention():
    stem = Conv3XCStem(3, 4, rngs=nnx.Rngs(0))
    bias = stem.c3.sk.bias[...]
    expected = stem(random_image())
    stem.c3.sk.bias.set_value(bias + 1)
    np.testing.assert_allclose(stem(random_image()), expected + 1, atol=1e-5)


@pytest.mark.parametrize("name, tail_channels", TAIL_CHANNELS.items())
def test_only_the_tail_is_narrower(name, tail_channels):
    spanf_shapes, pruned_shapes = parameter_shapes("spanf"), parameter_shapes(name)
    changed = {key: shape for key, shape in pruned_shapes.items() if spanf_shapes[key] != shape}
    assert changed == {
        "conv_cat.weight": (tail_channels, 112, 1, 1),
        "conv_cat.bias": (tail_channels,),
        "conv_2.weight": (48, tail_channels, 3, 3),
    }


def test_pds_has_its_own_torch_names():
    method = registry.get_entry("pds")
    keys = to_state_dict(deploy(method.build()), KeyMap(method.torch_names))
    assert {"conv_cat_1.weight", "conv_2_1.eval_conv.bias"} <= set(keys)
