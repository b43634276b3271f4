"""ZenoSR's network is DAN with factors for what each block gives."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.dan import DAN
from esrjax_plugins.zenosr import ACN, METHOD
from flax import nnx

from esrjax.network.naming import Naming
from esrjax.network.weights import load, tensors

SIZES = {"channels": 4, "blocks": 2}
LR = jnp.asarray(np.random.default_rng(0).random((1, 8, 9, 3)), jnp.float32)


def test_at_first_it_is_dan():
    net, naming = ACN(rngs=nnx.Rngs(0), **SIZES), Naming(METHOD.torch_names)
    base = load(DAN(rngs=nnx.Rngs(1), **SIZES), tensors(net, naming), naming, {"alpha_*": ""})
    np.testing.assert_array_equal(net(LR), base(LR))


def test_the_factors_are_numbered_from_five_and_belong_to_blocks_in_order():
    net = ACN(rngs=nnx.Rngs(0), **SIZES)
    assert tensors(net, Naming(METHOD.torch_names))["alpha_6"].shape == (1, 4, 1, 1)
    first, second = net.stages(net.to_feat(LR))
    net.alpha_6[...] = jnp.zeros((1, 1, 1, 4)).at[..., 2].set(3)
    weighed = net.stages(net.to_feat(LR))
    np.testing.assert_array_equal(weighed[0], first)
    np.testing.assert_array_equal(weighed[1][..., 2], 3 * second[..., 2])
    assert not weighed[1][..., :2].any()
