"""ZenoSR's network is DAN with factors for the outputs of its blocks."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.dan import DAN
from esrjax_plugins.zenosr import ACN, METHOD
from flax import nnx

from esrjax.nn.state_dict import KeyMap, load_state_dict, to_state_dict

HPARAMS = {"channels": 4, "num_blocks": 2}
LR = jnp.asarray(np.random.default_rng(0).random((1, 8, 9, 3)), jnp.float32)


def test_initialized_network_is_dan():
    net, naming = ACN(rngs=nnx.Rngs(0), **HPARAMS), KeyMap(METHOD.torch_names)
    base = load_state_dict(
        DAN(rngs=nnx.Rngs(1), **HPARAMS), to_state_dict(net, naming), naming, {"alpha_*": ""}
    )
    np.testing.assert_array_equal(net(LR), base(LR))


def test_factors_are_numbered_from_five_in_block_order():
    net = ACN(rngs=nnx.Rngs(0), **HPARAMS)
    assert to_state_dict(net, KeyMap(METHOD.torch_names))["alpha_6"].shape == (1, 4, 1, 1)
    first, second = net.block_outputs(net.to_feat(LR))
    net.alpha_6[...] = jnp.zeros((1, 1, 1, 4)).at[..., 2].set(3)
    scaled = net.block_outputs(net.to_feat(LR))
    np.testing.assert_array_equal(scaled[0], first)
    np.testing.assert_array_equal(scaled[1][..., 2], 3 * second[..., 2])
    assert not scaled[1][..., :2].any()
