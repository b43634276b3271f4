"""The selective scan is its token-by-token recurrence, however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import ops
from esrjax.network.recurrence import LANES, STEPS


def drawn(n, length, wide, states, dtype=np.float32):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((n, length, wide))
    delta = np.logaddexp(draw.standard_normal((n, length, wide)) - 2, 0)
    a = -np.exp(draw.standard_normal((wide, states)))
    b, c = draw.standard_normal((2, n, length, states))
    return [v.astype(dtype) for v in (x, delta, a, b, c, draw.standard_normal(wide))]


def token_by_token(x, delta, a, b, c, d):
    state, outputs = np.zeros((len(x), *a.shape)), []
    for t in range(x.shape[1]):
        written = (delta[:, t] * x[:, t])[:, :, None] * b[:, t, None]
        state = np.exp(delta[:, t, :, None] * a) * state + written
        outputs.append((state * c[:, t, None]).sum(-1) + d * x[:, t])
    return np.stack(outputs, 1)


LENGTHS = [1, STEPS + 1, 3 * STEPS - 5, 2 * LANES * STEPS + 7]


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recurrence(length):
    with jax.enable_x64(True):
        given = drawn(2, length, 3, 4, np.float64)
        y = ops.selective_scan(*given)
    np.testing.assert_allclose(y, token_by_token(*given), rtol=0, atol=1e-11)


def test_in_float32_it_stays_float32():
    given = drawn(2, 3 * STEPS - 5, 3, 4)
    y = ops.selective_scan(*given)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, token_by_token(*given), rtol=0, atol=1e-5)


def test_what_is_forgotten_at_once_and_what_is_never_forgotten():
    x, delta, a, b, c, d = drawn(1, 300, 3, 4)
    for kept in (0 * a, 1e6 * a):
        given = (x, delta, kept, b, c, d)
        wanted = token_by_token(*(v.astype(np.float64) for v in given))
        y = ops.selective_scan(*given)
        np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_its_gradient_is_that_of_finite_differences():
    run = jax.jit(lambda given: jnp.sum(jnp.sin(ops.selective_scan(*given))))
    with jax.enable_x64(True):
        given = drawn(2, 2 * LANES * STEPS + 7, 2, 3, np.float64)
        ahead = [np.cos(7 * v) for v in given]
        slopes = jax.jit(jax.grad(run))(given)
        for index, v in enumerate(ahead):
            there, back = (
                [*given[:index], given[index] + step * v, *given[index + 1 :]]
                for step in (1e-5, -1e-5)
            )
            found = (run(there) - run(back)) / 2e-5
            np.testing.assert_allclose(found, np.vdot(slopes[index], v), rtol=1e-6)


def test_states_are_held_of_one_segment_alone():
    length, wide, states = 8 * LANES * STEPS, 8, 64
    given = [jnp.asarray(v) for v in drawn(1, length, wide, states)]
    run = lambda *given: ops.selective_scan(*given).sum()  # noqa: E731
    every_state = 4 * length * wide * states
    for function in (run, jax.grad(run)):
        compiled = jax.jit(function).lower(*given).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.8 * every_state
