"""VSCINet's depthwise kernel shapes, its factors, and what the organisers' counter leaves out."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.vscinet import METHOD, VCSA, InceptionDWConv
from flax import nnx
from optional import torch

from esrjax.nn.cost import cost
from esrjax.nn.state_dict import KeyMap, to_state_dict


@pytest.mark.parametrize("h, w", [(8, 9), (3, 2)])
def test_every_quarter_has_its_kernel_shape_and_keeps_its_size(h, w):
    x = np.random.default_rng(0).standard_normal((1, h, w, 8)).astype(np.float32)
    net = InceptionDWConv(8, rngs=nnx.Rngs(0))
    state_dict = {key: torch.tensor(value) for key, value in to_state_dict(net, KeyMap({})).items()}

    def conv(x, name):
        return torch.nn.functional.conv2d(x, state_dict[name + ".weight"], padding="same", groups=2)

    quarters = torch.tensor(x.transpose(0, 3, 1, 2)).split(2, 1)
    names = ("conv2_1", "conv2_2", "conv2_3", "conv2_4.0")
    outputs = [conv(quarter, name) for quarter, name in zip(quarters, names, strict=True)]
    outputs[3] = conv(outputs[3], "conv2_4.1")
    expected = torch.cat(outputs, 1).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(net(jnp.asarray(x)), expected, rtol=0, atol=1e-6)
    assert state_dict["conv2_2.weight"].shape[2:] == (5, 3)


def test_variance_has_no_weight_at_initialization():
    net = VCSA(4, rngs=nnx.Rngs(0))
    pooled, variance = jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 5.0)
    np.testing.assert_array_equal(net.gate_input(pooled, variance), pooled)
    net.beta[...] = jnp.ones((1, 1, 1, 2))
    np.testing.assert_array_equal(net.gate_input(pooled, variance), pooled + variance)


def test_eighty_convolutions_are_missing_in_the_official_count():
    net = nnx.eval_shape(METHOD.build)
    missing = [op_cost for op_cost in cost(net, image_size=16).ops if ".dwc." in op_cost.path]
    assert sum(op_cost.convs for op_cost in missing) == 80
    assert sum(op_cost.macs_full for op_cost in missing) == 16 * 285 * 16**2
