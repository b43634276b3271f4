"""HAT: windows that see around themselves, and heads that cost nothing unless they are asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.hat import METHOD, OCAB
from esrjax_plugins.parts.windows import overlapping_positions
from flax import nnx

from esrjax.network.cost import cost
from esrjax.network.taps import heads, taps
from esrjax.network.weights import scattered
from esrjax.recognition import template
from esrjax.testing import QUICK

SMALL = dict(channels=12, groups=1, blocks=1, heads=2, window=4, squeeze=6)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_overlapping_windows_are_softmax_over_what_lies_around():
    """Pixel by pixel; beyond the picture keys are zero, but they count."""
    part, qkv = scattered(OCAB(6, 2, 4, 2, rngs=nnx.Rngs(0)), 0.3), drawn(1, 8, 8, 18)
    found = super(OCAB, part).__call__(qkv)[0]
    padded = jnp.pad(qkv[0], ((1, 1), (1, 1), (0, 0)))
    table = np.asarray(part.relative_position_bias_table[...])
    for y, x in ((0, 0), (3, 6), (7, 1)):
        top, left = 4 * (y // 4), 4 * (x // 4)  # of the window, and of its keys when padded
        around = padded[top : top + 6, left : left + 6].reshape(36, 18)
        mixed = []
        for head in range(2):
            q, k, v = (slice(6 * i + 3 * head, 6 * i + 3 * head + 3) for i in range(3))
            # from query to key, in PyTorch's way: negative rows are counted from the end
            apart = [np.arange(6) - (at % 4) - 1 for at in (y, x)]
            rows = (9 * apart[0][:, None] + apart[1][None]).ravel()
            logits = around[:, k] @ qkv[0, y, x, q] / np.sqrt(3) + table[rows, head]
            mixed.append(jax.nn.softmax(logits) @ around[:, v])
        wanted = jnp.concatenate(mixed) @ part.proj.weight[...] + part.proj.bias[...]
        np.testing.assert_allclose(found[y, x], wanted, atol=1e-5)


def test_positions_wrap_round_the_table():
    rows = overlapping_positions(16, 4)
    assert rows.shape == (256, 576) and rows.min() < 0
    assert rows.min() >= -(39**2) and rows.max() < 39**2


# --- heads -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks():
    """With further heads, and without."""
    nets = [METHOD.build(**SMALL, further=further) for further in ((2, 1), ())]
    for net in nets:
        net.eval()
    return nets


def test_heads_make_pictures_of_their_scales(networks):
    x = drawn(1, 7, 10, 3)
    y, parts = jax.jit(lambda x: taps(networks[0], x), compiler_options=QUICK)(x)
    assert {name: each.shape for name, each in heads(parts).items()} == {
        "1x": (1, 7, 10, 3),
        "2x": (1, 14, 20, 3),
    }
    assert y.shape == (1, 28, 40, 3)


def test_heads_that_are_not_asked_for_cost_nothing(networks):
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    programs = [jax.jit(lambda x, net=net: net(x)).lower(x).compile() for net in networks]
    flops = [program.cost_analysis()["flops"] for program in programs]
    assert flops[0] == flops[1] > 0


def test_heads_train_although_groups_are_made_again():
    graph, state = nnx.split(METHOD.build(**SMALL, remat=True))

    def loss(state):
        _, parts = taps(nnx.merge(graph, state), drawn(1, 4, 8, 3))
        return heads(parts)["2x"].sum()

    slope = jax.jit(jax.grad(loss), compiler_options=QUICK)(state)
    for part in (
        slope["head_2x"]["steps"][0],
        slope["layers"][0]["residual_group"]["overlap_attn"]["proj"],
    ):
        assert np.abs(part["weight"][...]).max() > 0
    assert not slope["upsample"]["steps"][0]["weight"][...].any()


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "params"),
    [
        (dict(groups=6), 20_772_507),
        (dict(groups=6, channels=144, compress=24, squeeze=24), 9_621_183),
    ],
)
def test_the_published_sizes(sizes, params):
    net = template(METHOD, "deploy", {**sizes, "further": ()})
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == params


def test_work_is_what_the_counter_found_by_operator():
    counted = cost(template(METHOD, "deploy", {}), side=64)
    said = {"conv2d": 76.44, "linear": 89.18, "matmul": 37.37, "layer_norm": 0.63}
    for word, giga in {**said, "average_pool": 0.05}.items():
        found = sum(piece.macs for piece in counted.work if piece.needed and piece.word == word)
        assert round(found / 1e9, 2) == giga, word
    assert round(counted.macs / 1e9, 2) == 203.67
    assert counted.params_honest == 40_846_575, "those of the plain network"
