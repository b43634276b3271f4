"""DAN's channel attention: whole patches in training, overlapping windows in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks import dual_attention
from esrjax_plugins.blocks.dual_attention import (
    AxisWindows,
    GlobalChannelAttention,
    apply_in_windows,
)
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

WINDOW_SIZE = 5


def starts(length, window_size=dual_attention.TLC_WINDOW_SIZE):
    return AxisWindows(length, window_size).positions()[:, 0].tolist()


def normal_array(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    "length, expected",
    [(8, [0]), (72, [0]), (73, [0, 1]), (145, [0, 37, 73]), (256, [0, 62, 124, 184])],
)
def test_windows_are_evenly_set_and_the_last_is_flush(length, expected):
    assert starts(length) == expected


@settings(max_examples=15, deadline=None, derandomize=True)  # each compiles
@given(length=st.integers(1, 400), window_size=st.integers(1, 80))
def test_windows_have_one_size_and_cover_all_pixels(length, window_size):
    windows = AxisWindows(length, window_size)
    positions = np.asarray(windows.positions())
    assert positions.shape[1] == min(window_size, length)
    assert len(np.unique(positions[:, 0])) == len(positions)
    np.testing.assert_array_equal(np.unique(positions), np.arange(length))
    containing = [np.flatnonzero((positions == i).any(1)) for i in range(length)]
    first_and_last = np.asarray([(indices[0], indices[-1]) for indices in containing])
    assert max(map(len, containing)) <= 2
    np.testing.assert_array_equal(windows.covering_windows(), first_and_last.T)
    for window in windows.covering_windows():
        np.testing.assert_array_equal(
            positions.ravel()[windows.concatenated_index(window)], np.arange(length)
        )


@pytest.mark.parametrize("h, w", [(11, 7), (4, 12), (5, 5), (3, 4)])
def test_outputs_are_averaged_where_windows_overlap(h, w):
    x = normal_array(2, h, w, 3)
    total, count = np.zeros(x.shape), np.zeros(x.shape)
    for row in starts(h, WINDOW_SIZE):
        for column in starts(w, WINDOW_SIZE):
            window = np.s_[:, row : row + WINDOW_SIZE, column : column + WINDOW_SIZE]
            total[window] += x[window] - x[window].mean((1, 2), keepdims=True)
            count[window] += 1
    actual = apply_in_windows(lambda z: z - z.mean(1, keepdims=True), x, WINDOW_SIZE)
    np.testing.assert_allclose(actual, total / count, rtol=0, atol=1e-6)


def make_attention():
    return GlobalChannelAttention(4, window_size=WINDOW_SIZE, rngs=nnx.Rngs(0))


def test_windows_are_used_in_evaluation_only():
    net, large, small = make_attention(), normal_array(1, 7, 6, 4), normal_array(1, 5, 4, 4)
    train_large, train_small = net(large), net(small)
    net.eval()
    assert jnp.abs(net(large) - train_large).max() > 1e-3
    np.testing.assert_array_equal(net(small), train_small)
    net.train()
    np.testing.assert_array_equal(net(large), train_large)


def test_channels_attend_to_channels():
    net, z = make_attention(), normal_array(1, 6, 8)
    net.temperature[...] = jnp.full((1, 1), 2.0)
    query, value = np.split(np.asarray(z)[0].T, 2)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    attn = jax.nn.softmax(jnp.asarray(2 * unit(query) @ unit(value).T), -1)
    np.testing.assert_allclose(net.attend(z)[0].T, attn @ value, rtol=0, atol=1e-6)
