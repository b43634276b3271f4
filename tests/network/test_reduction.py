"""Sums, maxima and softmax in their fast forms equal the plain ones, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import words

SIDES = pytest.mark.parametrize("n", [1, 9, 32, 33, 50])  # on both sides of MAX_DIRECT_SUM


def random_array(seed, *shape):
    return 3 * np.random.default_rng(seed).standard_normal(shape)


def value_and_grads(function, *args):
    """Return the value of `function`, and the gradients of its sine by all arguments."""

    @jax.jit
    def run(*args):
        y, vjp = jax.vjp(function, *args)
        return y, *vjp(jnp.cos(y))

    return run(*args)


def assert_same_with_grads(ours, reference, *args):
    with jax.enable_x64(True):
        actual, expected = value_and_grads(ours, *args), value_and_grads(reference, *args)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@SIDES
def test_softmax_equals_jax(n):
    assert_same_with_grads(words.softmax, jax.nn.softmax, random_array(0, 2, 3, n))


@SIDES
def test_attention_equals_softmax_then_matmul(n):
    assert_same_with_grads(
        words.attention_from_logits,
        lambda x, v: jax.nn.softmax(x) @ v,
        random_array(0, 2, 3, n),
        random_array(1, 2, n, 4),
    )


@SIDES
def test_sum_last_axis_equals_the_sum(n):
    assert_same_with_grads(
        words.sum_last_axis, lambda x: x.sum(-1, keepdims=True), random_array(0, 2, 3, n)
    )


@pytest.mark.parametrize("h, w", [(1, 2), (5, 40), (40, 5)])
def test_spatial_mean_and_variance(h, w):
    x = 100 + random_array(0, 2, h, w, 3)
    assert_same_with_grads(words.spatial_mean, lambda x: x.mean((1, 2), keepdims=True), x)
    assert_same_with_grads(words.spatial_var, lambda x: x.var((1, 2), keepdims=True, ddof=1), x)


def test_large_logits_do_not_overflow_and_dtype_is_kept():
    logits = jnp.array([[1e4, 1e4 - 1, -1e4] * 20], jnp.bfloat16)
    probabilities = words.softmax(logits)
    assert probabilities.dtype == jnp.bfloat16
    np.testing.assert_allclose(probabilities.astype(jnp.float32).sum(), 1, atol=0.02)
    attended = words.attention_from_logits(logits, jnp.ones((60, 2), jnp.bfloat16))
    assert attended.dtype == jnp.bfloat16
    np.testing.assert_allclose(attended.astype(jnp.float32), 1, atol=0.02)


def lowered(platform, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def layer_norm(x):
    return words.layer_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def group_norm(x):
    return words.group_norm(x[..., :16], jnp.ones(16), jnp.zeros(16))


@pytest.mark.parametrize("function", [words.softmax, words.normalize, layer_norm, group_norm])
def test_cpu_code_has_no_reduce_window(function):
    x = jnp.ones((1, 8, 36, 48))
    assert "reduce-window" not in jax.jit(function).lower(x).compile().as_text()


@pytest.mark.parametrize("function", [words.softmax, words.sum_last_axis, layer_norm])
def test_other_platforms_get_a_plain_sum(function):
    x = jnp.ones((2, 48))
    assert "dot_general" in lowered("cpu", function, x)
    assert "dot_general" not in lowered("cuda", function, x)
    with words.native_lowering(True):
        assert "dot_general" not in lowered("cpu", lambda x: function(x), x)
