"""Pools and resizes give PyTorch's numbers and gradients, at sizes that divide and that do not."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from esrjax.network import resampling
from esrjax.network.words import plain

SIZES = [
    ((12, 8), (3, 2)),
    ((13, 11), (4, 5)),
    ((5, 7), (5, 7)),
    ((3, 4), (7, 12)),
    ((6, 1), (1, 3)),
]


def both(ours, theirs, old, dtype):
    """Outputs and gradients of the two for one random picture, in our layout."""
    x = np.random.default_rng(0).standard_normal((2, *old, 3)).astype(dtype)
    given = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = theirs(given)
    torch.sin(wanted).sum().backward()
    turned = [t.detach().numpy().transpose(0, 2, 3, 1) for t in (wanted, given.grad)]
    with jax.enable_x64(True):
        found = ours(jnp.asarray(x)), jax.grad(lambda x: jnp.sin(ours(x)).sum())(jnp.asarray(x))
    return zip(found, turned, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_resize_is_pytorchs(mode, old, new, dtype):
    for ours, theirs in both(
        lambda x: getattr(resampling, mode)(x, size=new),
        lambda x: functional.interpolate(x, new, mode=mode),
        old,
        dtype,
    ):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-6
        )


@pytest.mark.parametrize("old, new", [*SIZES, ((52, 48), (39, 36)), ((52, 48), (26, 24))])
def test_a_bicubic_resize_is_pytorchs(old, new):
    for ours, theirs in both(
        jax.jit(lambda x: resampling.resize_bicubic(x, new)),
        lambda x: functional.interpolate(x, new, mode="bicubic", align_corners=False),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [(3, 4), (1, 2)])
def test_a_picture_is_resized_as_by_pytorch_in_single_precision(part):
    hr = np.random.default_rng(0).random((1, 256, 192, 3), np.float32)
    new = tuple(side * part[0] // part[1] for side in hr.shape[1:3])
    ours = resampling.resize_bicubic(jnp.asarray(hr), new)
    theirs = functional.interpolate(torch.tensor(hr.transpose(0, 3, 1, 2)), new, mode="bicubic")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("old", [(12, 8), (13, 11), (15, 16), (5, 7), (9, 1)])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_an_adaptive_pool_is_pytorchs(old, shrink):
    new = tuple(max(1, side // shrink) for side in old)
    for ours, theirs in both(
        lambda x: resampling.adaptive_max_pool(x, shrink),
        lambda x: functional.adaptive_max_pool2d(x, new),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("window, stride", [(2, 2), (7, 4), (3, 1)])
def test_a_pool_leaves_out_windows_that_are_not_whole(window, stride):
    for ours, theirs in both(
        lambda x: resampling.max_pool(x, window, stride),
        lambda x: functional.max_pool2d(x, window, stride),
        (13, 10),
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old", range(1, 70, 7))
def test_the_nearest_pixel_is_found_in_float32(old):
    line = np.arange(old, dtype=np.float32)
    for new in range(1, 270, 13):
        theirs = functional.interpolate(torch.tensor(line)[None, None], new, mode="nearest")
        ours = resampling.nearest(jnp.asarray(line)[None, None, :, None], size=(1, new))
        np.testing.assert_array_equal(ours[0, 0, :, 0], theirs[0, 0])


def test_the_average_of_a_picture_is_pytorchs():
    for ours, theirs in both(
        resampling.average_pool, lambda x: functional.adaptive_avg_pool2d(x, 1), (5, 4), np.float64
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


WORDS = {
    "adaptive_max_pool": lambda x: resampling.adaptive_max_pool(x, 4),
    "bilinear": lambda x: resampling.bilinear(x, size=(x.shape[1] * 3 - 1, x.shape[2] // 2)),
    "max_pool": lambda x: resampling.max_pool(x, 7, 4),
    "mirror": lambda x: resampling.mirror(x, ring=3),
    "nearest": lambda x: resampling.nearest(x, size=(x.shape[1] + 2, 2 * x.shape[2])),
}


@pytest.mark.parametrize("word", WORDS)
def test_one_program_serves_pictures_of_any_size(word):
    h, w = jax.export.symbolic_shape("h, w", constraints=["h >= 8", "w >= 8"])
    with plain(True):
        program = jax.export.export(jax.jit(WORDS[word]))(
            jax.ShapeDtypeStruct((1, h, w, 2), jnp.float32)
        )
    for size in ((8, 9), (13, 8)):
        x = jnp.asarray(np.random.default_rng(0).random((1, *size, 2), np.float32))
        np.testing.assert_allclose(program.call(x), WORDS[word](x), rtol=0, atol=1e-6)


def test_a_plain_pool_is_one_operation():
    x = jnp.zeros((1, 9, 9, 2))
    with plain(True):
        trace = jax.make_jaxpr(WORDS["max_pool"])(x).jaxpr
    assert [equation.primitive.name for equation in trace.eqns] == ["reduce_window_max"]
