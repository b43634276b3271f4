"""Compiler options of networks, and jit with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import get_opaque_trace_state

from esrjax.nn import compilation, functional

pytestmark = pytest.mark.platform_lowering


def conv(x, w):
    return functional.conv2d(x, w, padding=(1, 1))


X, W = jnp.ones((1, 32, 32, 32)), jnp.ones((3, 3, 32, 32))


@pytest.fixture
def clear_cache():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an option of XLA's CPU backend")
def test_dense_convolutions_use_all_cores():
    def hlo(options):
        return jax.jit(conv, compiler_options=options).lower(X, W).compile().as_text()

    assert "ynn" in hlo({}), "XLA no longer uses YNNPACK by default: remove the option"
    assert "ynn" not in hlo(dict(compilation.compiler_options()))


def test_option_unknown_to_xla_is_left_out(monkeypatch, clear_cache):
    monkeypatch.setattr(compilation, "DISABLE_YNNPACK", {"xla_cpu_of_another_version": True})
    assert compilation.compiler_options() == {}
    assert compilation.jit(conv)(X, W).shape == X.shape


def test_other_platforms_have_no_options(monkeypatch, clear_cache):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() == {}


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: f,
        jax.jit,
        jax.vmap,
        lambda f: lambda x, w: jax.jit(lambda: f(x, w))(),
        lambda f: lambda x, w: jax.vjp(f, x, w)[0],
    ],
    ids=["none", "jit", "vmap", "constants", "gradient"],
)
def test_jit_works_inside_other_transformations(transform):
    x, w = (X, W) if transform is not jax.vmap else (X[None], W[None])
    out = transform(compilation.jit(conv))(x, w)
    np.testing.assert_allclose(out, transform(conv)(x, w), rtol=1e-6)


def test_trace_state_outside_of_traces_is_known_inside_one():
    compilation._no_trace_state.cache_clear()
    double = compilation.jit(lambda x: 2 * x)
    assert jax.jit(double)(1.0) == 2, "the first call is inside a trace"
    assert compilation._no_trace_state() == get_opaque_trace_state()


def test_jit_options_are_passed_on():
    power = compilation.jit(lambda x, n: x**n, static_argnums=1)
    assert power(3.0, 2) == 9
    assert jax.jit(lambda x: power(x, 2))(3.0) == 9


def test_number_of_compiled_programs_is_bounded(monkeypatch):
    clearings = []
    monkeypatch.setattr(compilation, "MAX_PROGRAMS", 3)
    monkeypatch.setattr(compilation, "_programs", set())
    monkeypatch.setattr(jax, "clear_caches", lambda: clearings.append(len(compilation._programs)))
    double = compilation.jit(lambda x: 2 * x)
    for size in (1, 2, 3, 1, 2, 3):
        double(jnp.ones(size))
    assert clearings == []
    double(jnp.ones(4))
    assert clearings == [3] and len(compilation._programs) == 1
