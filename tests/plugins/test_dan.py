"""DAN's attention between channels: whole patches in training, overlapping windows outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.parts import dual_attention
from esrjax_plugins.parts.dual_attention import GlobalChannel, Windows, in_windows
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

SIDE = 5


def starts(length, side=dual_attention.WINDOW):
    return Windows(length, side).positions()[:, 0].tolist()


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    "length, wanted",
    [(8, [0]), (72, [0]), (73, [0, 1]), (145, [0, 37, 73]), (256, [0, 62, 124, 184])],
)
def test_windows_are_evenly_set_and_the_last_is_flush(length, wanted):
    assert starts(length) == wanted


@settings(max_examples=50, deadline=None, derandomize=True)
@given(length=st.integers(1, 400), side=st.integers(1, 80))
def test_windows_are_equal_and_leave_nothing_out(length, side):
    windows = Windows(length, side)
    positions = np.asarray(windows.positions())
    assert positions.shape[1] == min(side, length)
    assert len(np.unique(positions[:, 0])) == len(positions)
    np.testing.assert_array_equal(np.unique(positions), np.arange(length))
    holding = [np.flatnonzero((positions == i).any(1)) for i in range(length)]
    ends = np.asarray([(held[0], held[-1]) for held in holding])
    assert max(map(len, holding)) <= 2
    np.testing.assert_array_equal(windows.holding(), ends.T)
    for window in windows.holding():
        np.testing.assert_array_equal(positions.ravel()[windows.place(window)], np.arange(length))


@pytest.mark.parametrize("h, w", [(11, 7), (4, 12), (5, 5), (3, 4)])
def test_what_windows_find_is_averaged_where_they_overlap(h, w):
    x = drawn(2, h, w, 3)
    total, count = np.zeros(x.shape), np.zeros(x.shape)
    for row in starts(h, SIDE):
        for column in starts(w, SIDE):
            where = np.s_[:, row : row + SIDE, column : column + SIDE]
            total[where] += x[where] - x[where].mean((1, 2), keepdims=True)
            count[where] += 1
    ours = in_windows(lambda z: z - z.mean(1, keepdims=True), x, SIDE)
    np.testing.assert_allclose(ours, total / count, rtol=0, atol=1e-6)


def attention():
    return GlobalChannel(4, window=SIDE, rngs=nnx.Rngs(0))


def test_windows_are_used_outside_of_training_alone():
    net, large, small = attention(), drawn(1, 7, 6, 4), drawn(1, 5, 4, 4)
    whole, fits = net(large), net(small)
    net.eval()
    assert jnp.abs(net(large) - whole).max() > 1e-3
    np.testing.assert_array_equal(net(small), fits)
    net.train()
    np.testing.assert_array_equal(net(large), whole)


def test_channels_attend_to_channels():
    net, z = attention(), drawn(1, 6, 8)
    net.temperature[...] = jnp.full((1, 1), 2.0)
    query, value = np.split(np.asarray(z)[0].T, 2)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    shares = jax.nn.softmax(jnp.asarray(2 * unit(query) @ unit(value).T), -1)
    np.testing.assert_allclose(net.attend(z)[0].T, shares @ value, rtol=0, atol=1e-6)
