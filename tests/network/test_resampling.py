"""Pooling and resizing equal PyTorch's with their gradients, at sizes that divide or not."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from esrjax.network import resampling
from esrjax.network.words import native_lowering

SIZES = [
    ((12, 8), (3, 2)),
    ((13, 11), (4, 5)),
    ((5, 7), (5, 7)),
    ((3, 4), (7, 12)),
    ((6, 1), (1, 3)),
]


def outputs_and_grads(ours, theirs, old, dtype):
    """Return outputs and gradients of both for random images, pairwise, as NHWC."""
    x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype(dtype)
    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    torch_y = theirs(torch_x)
    torch.sin(torch_y).sum().backward()
    torch_results = [t.detach().numpy().transpose(0, 2, 3, 1) for t in (torch_y, torch_x.grad)]
    with jax.enable_x64(True):
        results = ours(jnp.asarray(x)), jax.grad(lambda x: jnp.sin(ours(x)).sum())(jnp.asarray(x))
    return zip(results, torch_results, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resize_equals_pytorchs(mode, old, new, dtype):
    for ours, theirs in outputs_and_grads(
        lambda x: getattr(resampling, f"resize_{mode}")(x, size=new),
        lambda x: functional.interpolate(x, new, mode=mode),
        old,
        dtype,
    ):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-6
        )


@pytest.mark.parametrize("old, new", [*SIZES, ((52, 48), (39, 36)), ((52, 48), (26, 24))])
def test_bicubic_resize_equals_pytorchs(old, new):
    for ours, theirs in outputs_and_grads(
        jax.jit(lambda x: resampling.resize_bicubic(x, new)),
        lambda x: functional.interpolate(x, new, mode="bicubic", align_corners=False),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [(3, 4), (1, 2)])
def test_bicubic_resize_of_an_image_equals_pytorchs_in_float32(fraction):
    hr = np.random.default_rng(0).random((1, 256, 192, 3), np.float32)
    new = tuple(side * fraction[0] // fraction[1] for side in hr.shape[1:3])
    ours = resampling.resize_bicubic(jnp.asarray(hr), new)
    theirs = functional.interpolate(torch.tensor(hr.transpose(0, 3, 1, 2)), new, mode="bicubic")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("old", [(12, 8), (13, 11), (15, 16), (5, 7), (9, 1)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_adaptive_max_pool_equals_pytorchs(old, factor):
    new = tuple(max(1, side // factor) for side in old)
    for ours, theirs in outputs_and_grads(
        lambda x: resampling.adaptive_max_pool(x, factor),
        lambda x: functional.adaptive_max_pool2d(x, new),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (7, 4), (3, 1)])
def test_max_pool_leaves_out_incomplete_windows(kernel_size, stride):
    for ours, theirs in outputs_and_grads(
        lambda x: resampling.max_pool(x, kernel_size, stride),
        lambda x: functional.max_pool2d(x, kernel_size, stride),
        (13, 10),
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old", range(1, 70, 7))
def test_nearest_positions_are_computed_in_float32(old):
    line = np.arange(old, dtype=np.float32)
    for new in range(1, 270, 13):
        theirs = functional.interpolate(torch.tensor(line)[None, None], new, mode="nearest")
        ours = resampling.resize_nearest(jnp.asarray(line)[None, None, :, None], size=(1, new))
        np.testing.assert_array_equal(ours[0, 0, :, 0], theirs[0, 0])


def test_global_avg_pool_equals_pytorchs():
    for ours, theirs in outputs_and_grads(
        resampling.global_avg_pool,
        lambda x: functional.adaptive_avg_pool2d(x, 1),
        (5, 4),
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


OPS = {
    "adaptive_max_pool": lambda x: resampling.adaptive_max_pool(x, 4),
    "resize_bilinear": lambda x: resampling.resize_bilinear(
        x, size=(x.shape[1] * 3 - 1, x.shape[2] // 2)
    ),
    "max_pool": lambda x: resampling.max_pool(x, 7, 4),
    "reflect_pad": lambda x: resampling.reflect_pad(x, pad=3),
    "resize_nearest": lambda x: resampling.resize_nearest(x, size=(x.shape[1] + 2, 2 * x.shape[2])),
}


@pytest.mark.parametrize("op", OPS)
def test_one_export_serves_every_image_size(op):
    h, w = jax.export.symbolic_shape("h, w", constraints=["h >= 8", "w >= 8"])
    with native_lowering(True):
        exported = jax.export.export(jax.jit(OPS[op]))(
            jax.ShapeDtypeStruct((1, h, w, 2), jnp.float32)
        )
    for size in ((8, 9), (13, 8)):
        x = jnp.asarray(np.random.default_rng(0).random((1, *size, 2), np.float32))
        np.testing.assert_allclose(exported.call(x), OPS[op](x), rtol=0, atol=1e-6)


def test_native_max_pool_is_one_primitive():
    x = jnp.zeros((1, 9, 9, 2))
    with native_lowering(True):
        trace = jax.make_jaxpr(OPS["max_pool"])(x).jaxpr
    assert [equation.primitive.name for equation in trace.eqns] == ["reduce_window_max"]
