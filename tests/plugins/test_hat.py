"""HAT: overlapping window attention, and heads that cost nothing unless they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks import scan_layers
from esrjax_plugins.blocks.window_attention import overlapping_position_index
from esrjax_plugins.hat import METHOD, OCAB
from flax import nnx

from esrjax.loading import abstract_network
from esrjax.nn.cost import cost
from esrjax.nn.hooks import heads, taps
from esrjax.nn.state_dict import perturb_weights
from esrjax.testing import FAST_COMPILE

SMALL = dict(channels=12, num_groups=1, depth=1, num_heads=2, window_size=4, squeeze_factor=6)


def normal_array(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_overlapping_attention_is_softmax_over_the_neighbourhood():
    """Computed pixel by pixel; keys outside of the image are zero and take part in the softmax."""
    ocab, qkv = perturb_weights(OCAB(6, 2, 4, 2, rngs=nnx.Rngs(0)), 0.3), normal_array(1, 8, 8, 18)
    actual = super(OCAB, ocab).__call__(qkv)[0]
    padded = jnp.pad(qkv[0], ((1, 1), (1, 1), (0, 0)))
    table = np.asarray(ocab.relative_position_bias_table[...])
    for y, x in ((0, 0), (3, 6), (7, 1)):
        top, left = 4 * (y // 4), 4 * (x // 4)  # of the window, and of its keys in `padded`
        neighbourhood = padded[top : top + 6, left : left + 6].reshape(36, 18)
        head_outputs = []
        for head in range(2):
            q, k, v = (slice(6 * i + 3 * head, 6 * i + 3 * head + 3) for i in range(3))
            # from query to key as in HAT's code: negative rows index the table from its end
            offsets = [np.arange(6) - (at % 4) - 1 for at in (y, x)]
            rows = (9 * offsets[0][:, None] + offsets[1][None]).ravel()
            logits = neighbourhood[:, k] @ qkv[0, y, x, q] / np.sqrt(3) + table[rows, head]
            head_outputs.append(jax.nn.softmax(logits) @ neighbourhood[:, v])
        expected = jnp.concatenate(head_outputs) @ ocab.proj.weight[...] + ocab.proj.bias[...]
        np.testing.assert_allclose(actual[y, x], expected, atol=1e-5)


def test_position_index_wraps_around_the_table():
    rows = overlapping_position_index(16, 4)
    assert rows.shape == (256, 576) and rows.min() < 0
    assert rows.min() >= -(39**2) and rows.max() < 39**2


# --- heads -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    """With and without extra heads."""
    nets = [METHOD.build(**SMALL, extra_scales=extra_scales) for extra_scales in ((2, 1), ())]
    for net in nets:
        net.eval()
    return nets


def test_heads_output_images_of_their_scales(networks):
    x = normal_array(1, 7, 10, 3)
    y, outputs = jax.jit(lambda x: taps(networks[0], x), compiler_options=FAST_COMPILE)(x)
    assert {name: image.shape for name, image in heads(outputs).items()} == {
        "1x": (1, 7, 10, 3),
        "2x": (1, 14, 20, 3),
    }
    assert y.shape == (1, 28, 40, 3)


def test_unused_heads_cost_nothing(networks):
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    executables = [jax.jit(lambda x, net=net: net(x)).lower(x).compile() for net in networks]
    flops = [executable.cost_analysis()["flops"] for executable in executables]
    assert flops[0] == flops[1] > 0


def test_heads_have_gradients_with_remat(monkeypatch):
    monkeypatch.setattr(scan_layers, "xla_keeps_remat", lambda: True)
    graph, state = nnx.split(METHOD.build(**SMALL, remat=True))

    def loss(state):
        _, outputs = taps(nnx.merge(graph, state), normal_array(1, 4, 8, 3))
        return heads(outputs)["2x"].sum()

    grads = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(state)
    for module_grads in (
        grads["head_2x"]["steps"][0],
        grads["layers"][0]["residual_group"]["overlap_attn"]["proj"],
    ):
        assert np.abs(module_grads["weight"][...]).max() > 0
    assert not grads["upsample"]["steps"][0]["weight"][...].any()


# --- hyperparameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hparams", "params"),
    [
        (dict(num_groups=6), 20_772_507),
        (dict(num_groups=6, channels=144, compress_ratio=24, squeeze_factor=24), 9_621_183),
    ],
)
def test_parameter_counts_of_the_published_networks(hparams, params):
    net = abstract_network(METHOD, "deploy", {**hparams, "extra_scales": ()})
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == params


@pytest.mark.slow  # the check of the reported cost counts the same network
def test_macs_by_operator_are_fvcores():
    report = cost(abstract_network(METHOD, "deploy", {}), image_size=64)
    expected = {"conv2d": 76.44, "linear": 89.18, "matmul": 37.37, "layer_norm": 0.63}
    for op, giga in {**expected, "global_avg_pool": 0.05}.items():
        macs = sum(
            op_cost.macs_full for op_cost in report.ops if op_cost.is_needed and op_cost.op == op
        )
        assert round(macs / 1e9, 2) == giga, op
    assert round(report.macs / 1e9, 2) == 203.67
    assert report.params_full == 40_846_575, "those of the plain network"
