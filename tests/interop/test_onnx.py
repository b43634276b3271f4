"""ONNX graphs of JAX functions compute what JAX computes, for images of any size."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import max_dim, min_dim

from esrjax.interop.onnx import lowerings, sessions  # only where there is ONNX Runtime
from esrjax.nn.functional import conv1d, native_lowering

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")


DIMS = {
    "floor below zero": lambda h, w: h + (3 - w) // 4,
    "ceil": lambda h, w: -(-h // 8) + w * w,
    "remainder": lambda h, w: (h - 9 * w) % 5,
    "extremes": lambda h, w: max_dim(7, h) - min_dim(w, 9) + 2,
}
FUNCTIONS = {
    "scan": lambda x: lax.scan(lambda s, t: (0.5 * s + t, s - t), x[0, 0], x[0])[1],
    "reverse scan": lambda x: lax.scan(
        lambda s, t: (s + t, 2 * s), jnp.zeros(x.shape[-1]), x[0, 0], reverse=True
    )[1],
    "argsort": lambda x: jnp.argsort(jnp.floor(x[0, 0] * 3), axis=-1, stable=True),
    "roll": lambda x: jnp.roll(x, (-2, 3), (1, 2)),
    "strided slice": lambda x: x[..., 1::2],
    "slice": lambda x: x[:, 1 : x.shape[1] // 2 + 1, -2:],
    "batched gather": lambda x: jax.vmap(lambda t: t[jnp.arange(t.shape[0]) // 2])(x[:, 0]),
    "einsum": lambda x: jnp.einsum("nchw,nkhw->nck", x, x) @ jnp.ones((3, 2)),
    "batched matmul": lambda x: x @ x.mT,
    "argmax": lambda x: x.argmax(1),
    "where and clip": lambda x: jnp.where(x > 0.5, x, -1) + jnp.clip(x, 0.2, 0.6) ** 3,
    "reverse": lambda x: x[:, :, ::-1],
    "conv1d": lambda x: conv1d(x[:, :, 0].mT, jnp.ones((3, 3, 2)), padding=1),
}


def jax_and_onnx(function, size):
    """Outputs of a function in JAX and of its ONNX graph (symbolic size), for a random image."""
    h, w = jax.export.symbolic_shape("h, w", constraints=["h >= 6", "w >= 6"])
    with native_lowering(True):
        onnx_proto = lowerings.to_onnx(
            function, jax.ShapeDtypeStruct((1, 3, h, w), jnp.float32), "test"
        )
    lr = np.random.default_rng(0).random((1, 3, *size), np.float32)
    (output,) = sessions.make_session(onnx_proto.SerializeToString()).run(
        None, {sessions.INPUT: lr}
    )
    return np.asarray(function(jnp.asarray(lr))), output


@pytest.mark.parametrize("size", [(6, 7), (13, 11), (24, 16)])
@pytest.mark.parametrize("name", DIMS)
def test_symbolic_dimension_is_computed_as_in_python(name, size):
    jax_out, onnx_out = jax_and_onnx(lambda x: x * jnp.float32(DIMS[name](*x.shape[2:])), size)
    np.testing.assert_array_equal(onnx_out, jax_out)


@pytest.mark.parametrize("size", [(6, 7), (13, 11)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_computed_as_in_jax(name, size):
    if name == "batched matmul":  # of square matrices
        size = (size[0], size[0])
    jax_out, onnx_out = jax_and_onnx(lambda x: FUNCTIONS[name](x).astype(jnp.float32), size)
    np.testing.assert_allclose(onnx_out, jax_out, rtol=1e-6, atol=1e-6)
