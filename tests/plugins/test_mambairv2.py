"""MambaIRv2: classes of tokens, the light network's feed-forward, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import load_npz
from esrjax_plugins.blocks.feed_forward import GatedMLP
from esrjax_plugins.mambairv2 import METHOD
from flax import nnx

from esrjax.inference import open_method
from esrjax.loading import abstract_network
from esrjax.nn.cost import cost
from esrjax.nn.hooks import heads, taps
from esrjax.testing import FAST_COMPILE

LIGHT = dict(
    extra_scales=(),
    gated_mlp=True,
    pixelshuffledirect=True,
    channels=48,
    num_groups=4,
    depth=5,
    num_heads=4,
)
LIGHT |= dict(d_state=8, num_tokens=64, inner_rank=32, mlp_ratio=1)
SMALL = dict(
    channels=12,
    num_groups=1,
    depth=2,
    num_heads=2,
    window_size=4,
    d_state=2,
    num_tokens=3,
    inner_rank=2,
)


def normal_array(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("index", [0, 1])
def test_token_classes_are_those_of_the_official_network(reference, index):
    golden = load_npz(reference / "golden/mambairv2.npz")
    net = open_method("mambairv2", reference / "weights/mambairv2_tiny.safetensors").net
    x = golden[f"x{index}"].transpose(0, 2, 3, 1)
    _, outputs = jax.jit(lambda x: taps(net, x), compiler_options=FAST_COMPILE)(x)
    classes = [
        outputs[path].argmax(-1)[0] for path in outputs if path.endswith("assm.gumbel_routing")
    ]
    np.testing.assert_array_equal(classes, golden[f"route{index}"])


def test_gated_mlp_gates_one_half_by_the_other():
    mlp, x = GatedMLP(4, 8, rngs=nnx.Rngs(0)), normal_array(1, 6, 7, 4)
    hidden = jax.nn.gelu(mlp.fc1(x), approximate=False)
    gate = hidden[..., 4:]
    gate = (gate - gate.mean(-1, keepdims=True)) / jnp.sqrt(gate.var(-1, keepdims=True) + 1e-5)
    expected = mlp.fc2(hidden[..., :4] * mlp.sg.conv(gate))
    np.testing.assert_allclose(mlp(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("hparams", "scales"),
    [
        ({}, {"2x", "3x", "4x"}),
        (dict(gated_mlp=True, pixelshuffledirect=True, extra_scales=()), ()),
    ],
)
def test_heads_output_images_of_all_scales(hparams, scales):
    net = METHOD.build(**SMALL, **hparams)
    net.eval()
    y, outputs = jax.jit(lambda x: taps(net, x), compiler_options=FAST_COMPILE)(
        normal_array(1, 6, 7, 3)
    )
    images = heads(outputs)
    assert set(images) == set(scales)
    for name, image in images.items():
        assert image.shape == (1, 6 * int(name[0]), 7 * int(name[0]), 3)
    assert y.shape == (1, 24, 28, 3) and jnp.isfinite(y).all()


def test_parameter_count_of_the_light_network():
    net = abstract_network(METHOD, "deploy", LIGHT)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == 789_680


@pytest.mark.slow  # the check of the reported cost counts the same network
def test_macs_by_operator_are_fvcores():
    """fvcore also counts the heads that the official class returns, but not the scan."""
    net = abstract_network(METHOD, "deploy", {})
    all_heads = cost(net, image_size=64, included=METHOD.cost_options.included)
    assert round(all_heads.macs / 1e9, 2) == 159.51
    assert round(16 * all_heads.macs / 1e9, 1) == 2552.2
    assert all_heads.params_full == 34_238_235, "those of the plain network"
    expected = {"conv2d": 34.71, "einsum": 5.85, "layer_norm": 1.16}
    for op, giga in expected.items():
        macs = sum(op_cost.macs for op_cost in all_heads.ops if op_cost.op == op)
        assert round(macs / 1e9, 2) == giga, op
