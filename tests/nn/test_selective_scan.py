"""The selective scan equals its token-by-token recurrence, for every split into chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.nn import ops
from esrjax.nn.selective_scan import CHUNK_LEN, MAX_CHUNKS


def random_inputs(n, length, channels, states, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, length, channels))
    delta = np.logaddexp(rng.standard_normal((n, length, channels)) - 2, 0)
    a = -np.exp(rng.standard_normal((channels, states)))
    b, c = rng.standard_normal((2, n, length, states))
    return [v.astype(dtype) for v in (x, delta, a, b, c, rng.standard_normal(channels))]


def token_by_token(x, delta, a, b, c, d):
    state, outputs = np.zeros((len(x), *a.shape)), []
    for t in range(x.shape[1]):
        update = (delta[:, t] * x[:, t])[:, :, None] * b[:, t, None]
        state = np.exp(delta[:, t, :, None] * a) * state + update
        outputs.append((state * c[:, t, None]).sum(-1) + d * x[:, t])
    return np.stack(outputs, 1)


LENGTHS = [1, CHUNK_LEN + 1, 3 * CHUNK_LEN - 5, 2 * MAX_CHUNKS * CHUNK_LEN + 7]


@pytest.mark.parametrize("length", LENGTHS)
def test_scan_equals_the_recurrence(length):
    with jax.enable_x64(True):
        inputs = random_inputs(2, length, 3, 4, np.float64)
        y = ops.selective_scan(*inputs)
    np.testing.assert_allclose(y, token_by_token(*inputs), rtol=0, atol=1e-11)


def test_float32_stays_float32():
    inputs = random_inputs(2, 3 * CHUNK_LEN - 5, 3, 4)
    y = ops.selective_scan(*inputs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, token_by_token(*inputs), rtol=0, atol=1e-5)


def test_infinite_and_zero_decay():
    x, delta, a, b, c, d = random_inputs(1, 300, 3, 4)
    for rates in (0 * a, 1e6 * a):
        inputs = (x, delta, rates, b, c, d)
        expected = token_by_token(*(v.astype(np.float64) for v in inputs))
        y = ops.selective_scan(*inputs)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_gradient_equals_finite_differences():
    run = jax.jit(lambda inputs: jnp.sum(jnp.sin(ops.selective_scan(*inputs))))
    with jax.enable_x64(True):
        inputs = random_inputs(2, 2 * MAX_CHUNKS * CHUNK_LEN + 7, 2, 3, np.float64)
        directions = [np.cos(7 * v) for v in inputs]
        grads = jax.jit(jax.grad(run))(inputs)
        for index, v in enumerate(directions):
            plus, minus = (
                [*inputs[:index], inputs[index] + step * v, *inputs[index + 1 :]]
                for step in (1e-5, -1e-5)
            )
            derivative = (run(plus) - run(minus)) / 2e-5
            np.testing.assert_allclose(derivative, np.vdot(grads[index], v), rtol=1e-6)


def test_states_of_one_segment_only_are_in_memory():
    length, channels, states = 8 * MAX_CHUNKS * CHUNK_LEN, 8, 64
    inputs = [jnp.asarray(v) for v in random_inputs(1, length, channels, states)]
    run = lambda *inputs: ops.selective_scan(*inputs).sum()  # noqa: E731
    all_states_bytes = 4 * length * channels * states
    for function in (run, jax.grad(run)):
        compiled = jax.jit(function).lower(*inputs).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 0.8 * all_states_bytes
