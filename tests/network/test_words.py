"""The words give PyTorch's numbers, and each platform the lowering that is fast there."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esrjax.network import words

IN_TORCH = (0, 3, 1, 2)  # images; of kernels it is (3, 2, 0, 1)
FEW = settings(max_examples=4, deadline=None, derandomize=True)


@dataclass(frozen=True, kw_only=True)
class Way:
    padding: tuple[int, int]
    stride: int
    dilation: int
    groups: int


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def channels(draw, form):
    """(in, out, groups) of a convolution of this form."""
    one, many = st.integers(1, 3), st.integers(2, 3)
    match form:
        case "plain":
            return draw(one), draw(one), 1
        case "depthwise":
            wide = draw(st.integers(2, 5))
            return wide, wide, wide
        case "depth multiplier":
            wide = draw(many)
            return wide, wide * draw(many), wide
        case "grouped":
            groups = draw(many)
            return groups * draw(many), groups * draw(one), groups


def torch_conv2d(x, w, b, cotangent, way):
    """The output of PyTorch, and its gradients by x and w, in our layout."""
    x = torch.tensor(x.transpose(IN_TORCH), requires_grad=True)
    w = torch.tensor(w.transpose(3, 2, 0, 1), requires_grad=True)
    b = None if b is None else torch.tensor(b)
    y = torch.nn.functional.conv2d(x, w, b, **asdict(way))
    y.backward(torch.tensor(cotangent.transpose(IN_TORCH)))
    y, by_x = (t.detach().numpy().transpose(0, 2, 3, 1) for t in (y, x.grad))
    return y, by_x, w.grad.numpy().transpose(2, 3, 1, 0)


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("form", ["plain", "depthwise", "depth multiplier", "grouped"])
@FEW
@given(data=st.data())
def test_conv2d_and_its_gradients_are_pytorchs(form, stride, dilation, data):
    wide, out, groups = data.draw(channels(form))
    kh, kw = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    way = Way(padding=padding, stride=stride, dilation=dilation, groups=groups)
    h, w = (1 + dilation * (k - 1) + data.draw(st.integers(0, 4)) for k in (kh, kw))
    x, kernel = drawn(0, 2, h, w, wide), drawn(1, kh, kw, wide // groups, out)
    bias = drawn(2, out) if data.draw(st.booleans()) else None

    @jax.jit
    def ours(x, kernel, bias, cotangent):
        conv = lambda x, kernel: words.conv2d(x, kernel, bias, **asdict(way))  # noqa: E731
        y, back = jax.vjp(conv, x, kernel)
        return y, *back(cotangent)

    h, w = (
        (n + 2 * p - dilation * (k - 1) - 1) // stride + 1
        for n, k, p in zip((h, w), (kh, kw), padding, strict=True)
    )
    cotangent = drawn(3, 2, h, w, out)
    with jax.enable_x64(True):
        found = ours(x, kernel, bias, cotangent)
    for mine, theirs in zip(found, torch_conv2d(x, kernel, bias, cotangent, way), strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


def lowered(platform, wide, groups):
    x, w = jnp.ones((1, 5, 5, wide)), jnp.ones((3, 3, wide // groups, wide))
    conv = lambda x, w: words.conv2d(x, w, groups=groups)  # noqa: E731
    return jax.jit(conv).trace(x, w).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("wide, groups", [(7, 7), (6, 3)])
def test_a_grouped_convolution_stays_one_on_cuda_and_is_none_on_cpu(wide, groups):
    grouped = f"feature_group_count = {groups}"
    assert grouped in lowered("cuda", wide, groups)
    assert grouped not in lowered("cpu", wide, groups)


def test_a_depthwise_convolution_on_cpu_is_no_convolution():
    assert "stablehlo.convolution" not in lowered("cpu", 7, 7)


def test_a_depthwise_convolution_on_cpu_is_fused_with_nothing_around_it():
    def conv(x, w):
        return jnp.concatenate([words.conv2d(x, w, groups=7)] * 2, -1)

    compiled = jax.jit(conv).lower(jnp.ones((1, 5, 5, 7)), jnp.ones((3, 3, 1, 7))).compile()
    assert " call(" in compiled.as_text()


@pytest.mark.parametrize("groups", [1, 6])
def test_conv1d_is_pytorchs(groups):
    x, w, b = drawn(0, 2, 9, 6), drawn(1, 4, 6 // groups, 6), drawn(2, 6)
    theirs = torch.nn.functional.conv1d(
        torch.tensor(x.swapaxes(1, 2)),
        torch.tensor(w.transpose(2, 1, 0)),
        torch.tensor(b),
        padding=2,
        groups=groups,
    )
    with jax.enable_x64(True):
        ours = words.conv1d(x, w, b, padding=2, groups=groups)
    np.testing.assert_allclose(ours, theirs.numpy().swapaxes(1, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4)])
@pytest.mark.parametrize("bias", [None, drawn(2, 3)])
def test_linear_is_pytorchs(lead, bias):
    x, w = drawn(0, *lead, 5), drawn(1, 5, 3)
    theirs = torch.nn.functional.linear(
        torch.tensor(x), torch.tensor(w.T), None if bias is None else torch.tensor(bias)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(words.linear(x, w, bias), theirs, rtol=0, atol=1e-10)


def test_matmul_is_pytorchs():
    x, y = drawn(0, 2, 3, 4, 5), drawn(1, 2, 3, 5, 6)
    with jax.enable_x64(True):
        ours = words.matmul(x, y)
    np.testing.assert_allclose(ours, torch.matmul(torch.tensor(x), torch.tensor(y)), atol=1e-10)


def test_einsum_is_pytorchs():
    x, y, equation = drawn(0, 2, 3, 4), drawn(1, 2, 5, 4), "nqc,nkc->nqk"
    with jax.enable_x64(True):
        ours = words.einsum(equation, x, y)
    theirs = torch.einsum(equation, torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4)])
def test_layer_norm_is_pytorchs(lead):
    x, scale, shift = 3 + drawn(0, *lead, 6), drawn(1, 6), drawn(2, 6)
    theirs = torch.nn.functional.layer_norm(
        torch.tensor(x), (6,), torch.tensor(scale), torch.tensor(shift), eps=1e-3
    )
    with jax.enable_x64(True):
        ours = words.layer_norm(x, scale, shift, eps=1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_pytorchs(groups):
    x, scale, shift = 3 + drawn(0, 2, 4, 5, 6), drawn(1, 6), drawn(2, 6)
    given = torch.tensor(x.transpose(IN_TORCH))
    theirs = torch.nn.functional.group_norm(given, groups, *map(torch.tensor, (scale, shift)))
    with jax.enable_x64(True):
        ours = words.group_norm(x, scale, shift, groups=groups)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [-1, 1])
def test_normalize_is_pytorchs_down_to_zero_and_so_is_its_gradient(axis):
    x = drawn(0, 2, 3, 4) * np.array([1, 1e-13, 0, 1e3])
    given = torch.tensor(x, requires_grad=True)
    wanted = torch.nn.functional.normalize(given, dim=axis)
    torch.sin(wanted).sum().backward()
    with jax.enable_x64(True):
        ours = words.normalize(jnp.asarray(x), axis)
        gradient = jax.grad(lambda x: jnp.sin(words.normalize(x, axis)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, wanted.detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, given.grad, rtol=1e-9, atol=1e-12)


def test_gelu_is_pytorchs_default():
    x = drawn(0, 50)
    with jax.enable_x64(True):
        ours = words.gelu(x)
    np.testing.assert_allclose(ours, torch.nn.functional.gelu(torch.tensor(x)), atol=1e-12)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_pixel_shuffle_has_pytorchs_order(r):
    x = np.arange(2 * 3 * 4 * 5 * r**2, dtype=np.float32).reshape(2, 3, 4, 5 * r**2)
    theirs = torch.nn.functional.pixel_shuffle(torch.tensor(x.transpose(IN_TORCH)), r)
    np.testing.assert_array_equal(words.pixel_shuffle(x, r), theirs.numpy().transpose(0, 2, 3, 1))
