"""MambaIRv2: which token is of which kind, the light network's feed-forward, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.mambairv2 import METHOD
from esrjax_plugins.parts.feed_forward import GatedMLP
from flax import nnx

from esrjax.model import open_method
from esrjax.network.cost import cost
from esrjax.network.taps import heads, taps
from esrjax.recognition import template
from esrjax.testing import QUICK

LIGHT = dict(further=(), gated=True, direct=True, channels=48, groups=4, blocks=5, heads=4)
LIGHT |= dict(states=8, kinds=64, rank=32, ratio=1)
SMALL = dict(channels=12, groups=1, blocks=2, heads=2, window=4, states=2, kinds=3, rank=2)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("number", [0, 1])
def test_kinds_are_those_of_the_official_network(reference, number):
    golden = np.load(reference / "golden/mambairv2.npz")
    net = open_method("mambairv2", reference / "weights/mambairv2_tiny.safetensors").net
    x = golden[f"x{number}"].transpose(0, 2, 3, 1)
    _, parts = jax.jit(lambda x: taps(net, x), compiler_options=QUICK)(x)
    kinds = [parts[path].argmax(-1)[0] for path in parts if path.endswith("assm.kind")]
    np.testing.assert_array_equal(kinds, golden[f"route{number}"])


def test_half_of_the_channels_gates_the_other():
    part, x = GatedMLP(4, 8, rngs=nnx.Rngs(0)), drawn(1, 6, 7, 4)
    hidden = jax.nn.gelu(part.fc1(x), approximate=False)
    gate = hidden[..., 4:]
    gate = (gate - gate.mean(-1, keepdims=True)) / jnp.sqrt(gate.var(-1, keepdims=True) + 1e-5)
    wanted = part.fc2(hidden[..., :4] * part.sg.conv(gate))
    np.testing.assert_allclose(part(x), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "scales"), [({}, {"2x", "3x", "4x"}), (dict(gated=True, direct=True, further=()), ())]
)
def test_pictures_of_all_scales(sizes, scales):
    net = METHOD.build(**SMALL, **sizes)
    net.eval()
    y, parts = jax.jit(lambda x: taps(net, x), compiler_options=QUICK)(drawn(1, 6, 7, 3))
    made = heads(parts)
    assert set(made) == set(scales)
    for name, each in made.items():
        assert each.shape == (1, 6 * int(name[0]), 7 * int(name[0]), 3)
    assert y.shape == (1, 24, 28, 3) and jnp.isfinite(y).all()


def test_the_published_light_size():
    net = template(METHOD, "deploy", LIGHT)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == 789_680


def test_work_is_what_the_counter_found():
    """It counts the heads that the official class returns too; the scan it does not see."""
    net = template(METHOD, "deploy", {})
    all_heads = cost(net, side=64, counted=METHOD.counted)
    assert round(all_heads.macs / 1e9, 2) == 159.51
    assert round(16 * all_heads.macs / 1e9, 1) == 2552.2
    assert all_heads.params_honest == 34_238_235, "those of the plain network"
    said = {"conv2d": 34.71, "einsum": 5.85, "layer_norm": 1.16}
    for word, giga in said.items():
        found = sum(piece.official for piece in all_heads.work if piece.word == word)
        assert round(found / 1e9, 2) == giga, word
