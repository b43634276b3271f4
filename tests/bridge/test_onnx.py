"""What a trace says, its ONNX graph says too, whatever the sides turn out to be."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import max_dim, min_dim

pytestmark = pytest.mark.export
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")

from esrjax.bridge.onnx import model, runtime  # noqa: E402 # only where there is ONNX Runtime
from esrjax.network.words import conv1d, plain  # noqa: E402

EXTENTS = {
    "floor below zero": lambda h, w: h + (3 - w) // 4,
    "ceil": lambda h, w: -(-h // 8) + w * w,
    "rest": lambda h, w: (h - 9 * w) % 5,
    "extremes": lambda h, w: max_dim(7, h) - min_dim(w, 9) + 2,
}
FUNCTIONS = {
    "loop": lambda x: lax.scan(lambda s, t: (0.5 * s + t, s - t), x[0, 0], x[0])[1],
    "loop backwards": lambda x: lax.scan(
        lambda s, t: (s + t, 2 * s), jnp.zeros(x.shape[-1]), x[0, 0], reverse=True
    )[1],
    "order": lambda x: jnp.argsort(jnp.floor(x[0, 0] * 3), axis=-1, stable=True),
    "rolled": lambda x: jnp.roll(x, (-2, 3), (1, 2)),
    "every other": lambda x: x[..., 1::2],
    "middle": lambda x: x[:, 1 : x.shape[1] // 2 + 1, -2:],
    "one of a batch": lambda x: jax.vmap(lambda t: t[jnp.arange(t.shape[0]) // 2])(x[:, 0]),
    "products": lambda x: jnp.einsum("nchw,nkhw->nck", x, x) @ jnp.ones((3, 2)),
    "product of rows": lambda x: x @ x.mT,
    "best": lambda x: x.argmax(1),
    "choice": lambda x: jnp.where(x > 0.5, x, -1) + jnp.clip(x, 0.2, 0.6) ** 3,
    "reversed": lambda x: x[:, :, ::-1],
    "tokens": lambda x: conv1d(x[:, :, 0].mT, jnp.ones((3, 3, 2)), padding=1),
}


def both(function, size):
    """The function's result and that of its graph, made for any size, at one."""
    h, w = jax.export.symbolic_shape("h, w", constraints=["h >= 6", "w >= 6"])
    with plain(True):
        made = model.to_onnx(function, jax.ShapeDtypeStruct((1, 3, h, w), jnp.float32), "law")
    lr = np.random.default_rng(0).random((1, 3, *size), np.float32)
    (found,) = runtime.session(made.SerializeToString()).run(None, {model.INPUT: lr})
    return np.asarray(function(jnp.asarray(lr))), found


@pytest.mark.parametrize("size", [(6, 7), (13, 11), (24, 16)])
@pytest.mark.parametrize("name", EXTENTS)
def test_an_extent_is_calculated_as_python_does(name, size):
    ours, theirs = both(lambda x: x * jnp.float32(EXTENTS[name](*x.shape[2:])), size)
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("size", [(6, 7), (13, 11)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_what_jax_makes_of_it(name, size):
    if name == "product of rows":
        size = (size[0], size[0])
    ours, theirs = both(lambda x: FUNCTIONS[name](x).astype(jnp.float32), size)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-6)
