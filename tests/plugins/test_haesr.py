"""HAESR: queries and keys of the attentions, and one set of maps for all blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks.haesr_attention import (
    PATTERNS,
    DilatedGrid,
    LocalWindows,
    PartitionedChannelAttention,
)
from esrjax_plugins.haesr import HAESR
from flax import nnx

H, W = 24, 40


def numbered_image():
    return 1 + jnp.arange(H * W, dtype=jnp.float32).reshape(1, H, W, 1)


def coordinates(tokens):
    """Row and column of every token, each `(sets, L)`; −1 and W − 1 outside of the image."""
    return np.divmod(np.asarray(tokens)[0, ..., 0].astype(int) - 1, W)


@pytest.mark.parametrize("pattern, num_keys", [("star", 96), ("cross", 96), ("corner", 100)])
def test_keys_are_the_window_and_its_pattern(pattern, num_keys):
    sampling = LocalWindows(pattern)
    queries, keys = sampling.queries(numbered_image()), sampling.keys(numbered_image())
    assert keys.shape == (1, H * W // 64, num_keys, 1)
    for query, key in zip(np.asarray(queries[0]), np.asarray(keys[0]), strict=True):
        assert set(query.ravel()) <= set(key.ravel())
    row, column = coordinates(keys[:, W // 8 + 2 :][:, :1])  # a neighbourhood within the image
    np.testing.assert_array_equal(16 * (row[0] - 4) + column[0] - 12, PATTERNS[pattern])


def test_keys_outside_the_image_are_zero():
    keys = np.asarray(LocalWindows("star").keys(numbered_image()))[0, 0, :, 0]
    row, column = np.divmod(PATTERNS["star"], 16)
    np.testing.assert_array_equal(keys == 0, (row < 4) | (column < 4))


@pytest.mark.parametrize("rows, columns", [(7, 7), (8, 7), (7, 8)])
def test_a_grid_spans_the_image_and_has_keys_halfway(rows, columns):
    sampling, (h, w) = DilatedGrid(rows, columns), (H // 8, W // 8)
    offset, a = np.indices((h * w, 64))
    queries = [offset // w + h * (a // 8), offset % w + w * (a % 8)]
    np.testing.assert_array_equal(coordinates(sampling.queries(numbered_image())), queries)
    offset, a = np.indices((h * w, rows * columns))
    extra_keys = [
        offset // w + h * (a // columns) + (h // 2 if rows == 7 else 0),
        offset % w + w * (a % columns) + (w // 2 if columns == 7 else 0),
    ]
    keys = sampling.keys(numbered_image())
    np.testing.assert_array_equal(coordinates(keys[:, :, :64]), queries)
    np.testing.assert_array_equal(coordinates(keys[:, :, 64:]), extra_keys)


@pytest.mark.parametrize("sampling", [LocalWindows("star"), DilatedGrid(7, 8)])
def test_reverse_reassembles_the_queries(sampling):
    np.testing.assert_array_equal(
        sampling.reverse(sampling.queries(numbered_image()), like=numbered_image()),
        numbered_image(),
    )


@pytest.fixture(scope="module")
def net():
    net = HAESR(channels=16, kernel_size=3, num_shared_blocks=1, rngs=nnx.Rngs(0))
    net.eval()
    return net


def test_later_blocks_apply_the_maps_of_the_first(net):
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 16)), jnp.float32)
    _, maps = nnx.jit(lambda block, x: block(x, (None,) * 6))(net.block0, x)
    assert [attn_map.shape[2:] for attn_map in maps] == [
        (64, num_keys) for num_keys in (96, 113, 96, 120, 100, 120)
    ]
    np.testing.assert_allclose(maps[1].sum(-1), 1, atol=1e-5)

    @nnx.jit
    def run_block(block, x, maps):
        y, returned_maps = block(x, maps)
        assert all(a is b for a, b in zip(maps, returned_maps, strict=True))
        return y

    y = run_block(net.block1, x, maps)
    zero_map_output = run_block(net.block1, x, tuple(0 * attn_map for attn_map in maps))
    assert jnp.abs(y - zero_map_output).max() > 1e-6


def test_initialization_of_position_tables_and_temperatures(net):
    tables = [
        net.block0.residual_layer.SLA1.attn.rel_pos_bias,
        net.block0.residual_layer.SGA2.attn.extra_pos_bias,
    ]
    assert all(0.018 < table[...].std() < 0.022 for table in tables)
    assert 0.8 < net.block0.residual_layer.SGA1.attn.grid_bias[...].std() < 1.2
    assert net.block1.residual_layer.BlockC.cttn2.temperature[...] == 1


def test_channel_attention_is_confined_to_windows_or_grids():
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 24, 4)), jnp.float32)
    changed = x.at[0, 3, 5].add(1.0)
    for is_grid in (False, True):
        attention = PartitionedChannelAttention(4, is_grid, rngs=nnx.Rngs(0))
        attention.qkv_dwconv.weight[...] *= jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
        is_affected = np.abs(np.asarray(attention(changed) - attention(x))).max((0, 3)) > 1e-7
        row, column = np.indices((16, 24))
        in_window, in_grid = (row < 8) & (column < 8), (row % 8 == 3) & (column % 8 == 5)
        np.testing.assert_array_equal(is_affected, in_grid if is_grid else in_window)


@pytest.mark.parametrize("h, w", [(9, 9), (16, 11)])
def test_images_of_nine_pixels_and_more_are_padded_and_cropped(net, h, w):
    graph, state = nnx.split(net)
    run = jax.jit(lambda x: nnx.merge(graph, state)(x))
    assert run(jnp.ones((1, h, w, 3))).shape == (1, 4 * h, 4 * w, 3)
