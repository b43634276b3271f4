"""Sums, maxima and shares are the same numbers, with their slopes, by what a CPU is fast at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import words

SIDES = pytest.mark.parametrize("n", [1, 9, 32, 33, 50])  # both sides of what XLA sums in one step


def drawn(seed, *shape):
    return 3 * np.random.default_rng(seed).standard_normal(shape)


def with_gradient(function, *args):
    """What it gives, and the slopes of the sine of it."""

    @jax.jit
    def run(*args):
        y, back = jax.vjp(function, *args)
        return y, *back(jnp.cos(y))

    return run(*args)


def agree(ours, plain, *args):
    with jax.enable_x64(True):
        found, wanted = with_gradient(ours, *args), with_gradient(plain, *args)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


@SIDES
def test_shares_are_those_of_jax(n):
    agree(words.softmax, jax.nn.softmax, drawn(0, 2, 3, n))


@SIDES
def test_attention_is_the_product_with_the_shares(n):
    agree(words.attend, lambda x, v: jax.nn.softmax(x) @ v, drawn(0, 2, 3, n), drawn(1, 2, n, 4))


@SIDES
def test_a_total_is_the_sum(n):
    agree(words.total, lambda x: x.sum(-1, keepdims=True), drawn(0, 2, 3, n))


@pytest.mark.parametrize("h, w", [(1, 2), (5, 40), (40, 5)])
def test_means_and_variances_of_pictures(h, w):
    x = 100 + drawn(0, 2, h, w, 3)
    agree(words.picture_mean, lambda x: x.mean((1, 2), keepdims=True), x)
    agree(words.picture_variance, lambda x: x.var((1, 2), keepdims=True, ddof=1), x)


def test_large_scores_do_not_overflow_and_shares_are_narrow_where_they_were():
    scores = jnp.array([[1e4, 1e4 - 1, -1e4] * 20], jnp.bfloat16)
    shares = words.softmax(scores)
    assert shares.dtype == jnp.bfloat16
    np.testing.assert_allclose(shares.astype(jnp.float32).sum(), 1, atol=0.02)
    attended = words.attend(scores, jnp.ones((60, 2), jnp.bfloat16))
    assert attended.dtype == jnp.bfloat16
    np.testing.assert_allclose(attended.astype(jnp.float32), 1, atol=0.02)


def text(platform, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def norm(x):
    return words.layer_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def group(x):
    return words.group_norm(x[..., :16], jnp.ones(16), jnp.zeros(16))


@pytest.mark.parametrize("function", [words.softmax, words.normalize, norm, group])
def test_a_cpu_goes_number_by_number_nowhere(function):
    x = jnp.ones((1, 8, 36, 48))
    assert "reduce-window" not in jax.jit(function).lower(x).compile().as_text()


@pytest.mark.parametrize("function", [words.softmax, words.total, norm])
def test_another_platform_gets_the_sum_itself(function):
    x = jnp.ones((2, 48))
    assert "dot_general" in text("cpu", function, x)
    assert "dot_general" not in text("cuda", function, x)
    with words.plain(True):
        assert "dot_general" not in text("cpu", lambda x: function(x), x)
