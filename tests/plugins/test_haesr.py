"""HAESR: which pixels see which, and one map for all blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.haesr import HAESR, ChannelAttention
from esrjax_plugins.parts.shared_maps import PATTERNS, Global, Local
from flax import nnx

H, W = 24, 40


def numbered():
    return 1 + jnp.arange(H * W, dtype=jnp.float32).reshape(1, H, W, 1)


def places(tokens):
    """Row and column of every token, `(sets, L)` each; of those outside −1 and the last."""
    return np.divmod(np.asarray(tokens)[0, ..., 0].astype(int) - 1, W)


@pytest.mark.parametrize("pattern, keys", [("star", 96), ("cross", 96), ("corner", 100)])
def test_a_window_sees_itself_and_its_pattern_alike_in_every_window(pattern, keys):
    cut = Local(pattern)
    queries, seen = cut.queries(numbered()), cut.keys(numbered())
    assert seen.shape == (1, H * W // 64, keys, 1)
    for query, key in zip(np.asarray(queries[0]), np.asarray(seen[0]), strict=True):
        assert set(query.ravel()) <= set(key.ravel())
    row, column = places(seen[:, W // 8 + 2 :][:, :1])  # surroundings that lie in the picture
    np.testing.assert_array_equal(16 * (row[0] - 4) + column[0] - 12, PATTERNS[pattern])


def test_outside_the_picture_keys_are_zero():
    seen = np.asarray(Local("star").keys(numbered()))[0, 0, :, 0]
    row, column = np.divmod(PATTERNS["star"], 16)
    np.testing.assert_array_equal(seen == 0, (row < 4) | (column < 4))


@pytest.mark.parametrize("rows, columns", [(7, 7), (8, 7), (7, 8)])
def test_a_grid_spans_the_picture_and_sees_what_lies_halfway(rows, columns):
    cut, (h, w) = Global(rows, columns), (H // 8, W // 8)
    offset, a = np.indices((h * w, 64))
    own = [offset // w + h * (a // 8), offset % w + w * (a % 8)]
    np.testing.assert_array_equal(places(cut.queries(numbered())), own)
    offset, a = np.indices((h * w, rows * columns))
    between = [
        offset // w + h * (a // columns) + (h // 2 if rows == 7 else 0),
        offset % w + w * (a % columns) + (w // 2 if columns == 7 else 0),
    ]
    seen = cut.keys(numbered())
    np.testing.assert_array_equal(places(seen[:, :, :64]), own)
    np.testing.assert_array_equal(places(seen[:, :, 64:]), between)


@pytest.mark.parametrize("cut", [Local("star"), Global(7, 8)])
def test_queries_become_a_picture_again(cut):
    np.testing.assert_array_equal(cut.picture(cut.queries(numbered()), like=numbered()), numbered())


@pytest.fixture(scope="module")
def net():
    net = HAESR(channels=16, kernel=3, shared=1, rngs=nnx.Rngs(0))
    net.eval()
    return net


def test_the_second_block_sees_through_the_maps_of_the_first(net):
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 16)), jnp.float32)
    _, maps = net.block0(x, (None,) * 6)
    assert [seen.shape[2:] for seen in maps] == [
        (64, keys) for keys in (96, 113, 96, 120, 100, 120)
    ]
    np.testing.assert_allclose(maps[1].sum(-1), 1, atol=1e-5)
    y, same = net.block1(x, maps)
    assert all(a is b for a, b in zip(maps, same, strict=True))
    nothing, _ = net.block1(x, tuple(0 * seen for seen in maps))
    assert jnp.abs(y - nothing).max() > 1e-6


def test_position_tables_start_small_and_temperatures_at_one(net):
    tables = [net.block0.body.SLA1.attn.rel_pos_bias, net.block0.body.SGA2.attn.extra_pos_bias]
    assert all(0.018 < table[...].std() < 0.022 for table in tables)
    assert 0.8 < net.block0.body.SGA1.attn.grid_bias[...].std() < 1.2
    assert net.block1.body.BlockC.cttn2.temperature[...] == 1


def test_channels_attend_within_tiles_or_combs():
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 24, 4)), jnp.float32)
    dot = x.at[0, 3, 5].add(1.0)
    for combed in (False, True):
        part = ChannelAttention(4, combed, rngs=nnx.Rngs(0))
        part.qkv_dwconv.weight[...] *= jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
        touched = np.abs(np.asarray(part(dot) - part(x))).max((0, 3)) > 1e-7
        row, column = np.indices((16, 24))
        tile, comb = (row < 8) & (column < 8), (row % 8 == 3) & (column % 8 == 5)
        np.testing.assert_array_equal(touched, comb if combed else tile)


@pytest.mark.parametrize("h, w", [(9, 9), (16, 11)])
def test_sides_from_nine_up_are_filled_and_cut_again(net, h, w):
    graph, state = nnx.split(net)
    run = jax.jit(lambda x: nnx.merge(graph, state)(x))
    assert run(jnp.ones((1, h, w, 3))).shape == (1, 4 * h, 4 * w, 3)
