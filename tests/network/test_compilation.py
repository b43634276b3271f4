"""How networks are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import compilation, words


def conv(x, w):
    return words.conv2d(x, w, padding=(1, 1))


X, W = jnp.ones((1, 32, 32, 32)), jnp.ones((3, 3, 32, 32))


@pytest.fixture
def afresh():
    compilation.flags.cache_clear()
    yield
    compilation.flags.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU alone")
def test_dense_convolutions_use_all_cores():
    def compiled(options):
        return jax.jit(conv, compiler_options=options).lower(X, W).compile().as_text()

    assert "ynn" in compiled({}), "by itself XLA no longer takes YNNPACK: the flag can go"
    assert "ynn" not in compiled(dict(compilation.flags()))


def test_a_flag_that_xla_does_not_know_is_left_out(monkeypatch, afresh):
    monkeypatch.setattr(compilation, "ALL_CORES", {"xla_cpu_of_another_version": True})
    assert compilation.flags() == {}
    assert compilation.jit(conv)(X, W).shape == X.shape


def test_other_platforms_have_none(monkeypatch, afresh):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.flags() == {}


@pytest.mark.parametrize(
    "through",
    [
        lambda f: f,
        jax.jit,
        jax.vmap,
        lambda f: lambda x, w: jax.jit(lambda: f(x, w))(),
        lambda f: lambda x, w: jax.vjp(f, x, w)[0],
    ],
    ids=["alone", "jit", "vmap", "constants", "gradient"],
)
def test_what_is_compiled_is_a_part_of_what_surrounds_it(through):
    x, w = (X, W) if through is not jax.vmap else (X[None], W[None])
    found = through(compilation.jit(conv))(x, w)
    np.testing.assert_allclose(found, through(conv)(x, w), rtol=1e-6)


def test_options_of_jit_are_passed_on():
    power = compilation.jit(lambda x, n: x**n, static_argnums=1)
    assert power(3.0, 2) == 9
    assert jax.jit(lambda x: power(x, 2))(3.0) == 9
