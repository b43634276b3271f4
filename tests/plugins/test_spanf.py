"""SPANF and those who made its tail narrower."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.spanf import Entry
from flax import nnx

from esrjax import registry
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.network.words import pixel_shuffle

NARROWER = {"pds": 20, "pkdsr": 24}


def picture():
    return jnp.asarray(np.random.default_rng(0).random((1, 5, 7, 3)), jnp.float32)


def shapes(name):
    net = deploy(registry.method(name).build())
    return {key: value.shape for key, value in tensors(net, Naming({})).items()}


def test_the_near_branch_starts_as_nearest_neighbour_upsampling():
    x = picture()
    near = registry.method("spanf").build().conv_near
    repeated = jnp.repeat(jnp.repeat(x, 4, 1), 4, 2)
    np.testing.assert_array_equal(pixel_shuffle(near(x), 4), repeated)


def test_the_first_block_has_no_attention():
    entry = Entry(3, 4, rngs=nnx.Rngs(0))
    shift = entry.c3.sk.bias[...]
    before = entry(picture())
    entry.c3.sk.bias.set_value(shift + 1)
    np.testing.assert_allclose(entry(picture()), before + 1, atol=1e-5)


@pytest.mark.parametrize("name, tail", NARROWER.items())
def test_only_the_tail_is_narrower(name, tail):
    wide, narrow = shapes("spanf"), shapes(name)
    changed = {key: shape for key, shape in narrow.items() if wide[key] != shape}
    assert changed == {
        "conv_cat.weight": (tail, 112, 1, 1),
        "conv_cat.bias": (tail,),
        "conv_2.weight": (48, tail, 3, 3),
    }


def test_the_names_of_pds_are_its_own():
    method = registry.method("pds")
    keys = tensors(deploy(method.build()), Naming(method.torch_names))
    assert {"conv_cat_1.weight", "conv_2_1.eval_conv.bias"} <= set(keys)
