"""TSSR, and DISP, which is the same network."""

import jax
import jax.numpy as jnp
import numpy as np
from esrjax_plugins.tssr import TSSRBlock
from flax import nnx

from esrjax import registry
from esrjax.nn.state_dict import KeyMap


def test_extern_conv_is_the_third_convolution():
    naming = KeyMap(registry.get_entry("tssr").torch_names)
    keys = ("c1_r", "c2_r", "_extern_conv_block.0", "c3_r")
    for order, key in enumerate(keys, 1):
        key, path = f"blocks.3.{key}.eval_conv.bias", f"blocks.3.c{order}.bias"
        assert (naming.to_flax(key), naming.to_torch(path)) == (path, key)


def test_block_adds_its_last_activation():
    block = TSSRBlock(2, rngs=nnx.Rngs(0))
    u = jnp.asarray(np.random.default_rng(0).random((1, 3, 4, 2)), jnp.float32)
    f = u
    for conv in (block.c1, block.c2, block.c3, block.c4):
        f = jax.nn.silu(conv(f))
    np.testing.assert_array_equal(block(u), u + f)


def test_disp_is_tssr():
    disp, tssr = registry.get_entry("disp"), registry.get_entry("tssr")
    assert disp.network is tssr.network
    assert disp.torch_names == tssr.torch_names
