"""Functional ops equal PyTorch's, and are lowered to the fast form of each platform."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esrjax.network import words

IN_TORCH = (0, 3, 1, 2)  # axes of images in PyTorch's layout; of kernels (3, 2, 0, 1)
FEW = settings(max_examples=4, deadline=None, derandomize=True)


@dataclass(frozen=True, kw_only=True)
class ConvOptions:
    padding: tuple[int, int]
    stride: int
    dilation: int
    groups: int


def random_array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def channels(draw, conv_type):
    """Draw (in, out, groups) of a convolution of this type."""
    few, many = st.integers(1, 3), st.integers(2, 3)
    match conv_type:
        case "dense":
            return draw(few), draw(few), 1
        case "depthwise":
            in_channels = draw(st.integers(2, 5))
            return in_channels, in_channels, in_channels
        case "depth multiplier":
            in_channels = draw(many)
            return in_channels, in_channels * draw(many), in_channels
        case "grouped":
            groups = draw(many)
            return groups * draw(many), groups * draw(few), groups


def torch_conv2d(x, w, b, cotangent, options):
    """Return the output of PyTorch and its gradients by x and w, as NHWC and HWIO."""
    x = torch.tensor(x.transpose(IN_TORCH), requires_grad=True)
    # Contiguous: PyTorch's gradient of some strided convolutions refuses other layouts.
    w = torch.tensor(np.ascontiguousarray(w.transpose(3, 2, 0, 1)), requires_grad=True)
    b = None if b is None else torch.tensor(b)
    y = torch.nn.functional.conv2d(x, w, b, **asdict(options))
    y.backward(torch.tensor(cotangent.transpose(IN_TORCH)))
    y, dx = (t.detach().numpy().transpose(0, 2, 3, 1) for t in (y, x.grad))
    return y, dx, w.grad.numpy().transpose(2, 3, 1, 0)


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("conv_type", ["dense", "depthwise", "depth multiplier", "grouped"])
@FEW
@given(data=st.data())
def test_conv2d_and_its_gradients_equal_pytorchs(conv_type, stride, dilation, data):
    in_channels, out_channels, groups = data.draw(channels(conv_type))
    kh, kw = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    options = ConvOptions(padding=padding, stride=stride, dilation=dilation, groups=groups)
    h, w = (1 + dilation * (k - 1) + data.draw(st.integers(0, 4)) for k in (kh, kw))
    x, kernel = (
        random_array(0, 2, h, w, in_channels),
        random_array(1, kh, kw, in_channels // groups, out_channels),
    )
    bias = random_array(2, out_channels) if data.draw(st.booleans()) else None

    @jax.jit
    def ours(x, kernel, bias, cotangent):
        conv = lambda x, kernel: words.conv2d(x, kernel, bias, **asdict(options))  # noqa: E731
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(cotangent)

    h, w = (
        (n + 2 * p - dilation * (k - 1) - 1) // stride + 1
        for n, k, p in zip((h, w), (kh, kw), padding, strict=True)
    )
    cotangent = random_array(3, 2, h, w, out_channels)
    with jax.enable_x64(True):
        ours_with_grads = ours(x, kernel, bias, cotangent)
    for actual, expected in zip(
        ours_with_grads, torch_conv2d(x, kernel, bias, cotangent, options), strict=True
    ):
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


def lowered_text(platform, in_channels, groups):
    x, w = jnp.ones((1, 5, 5, in_channels)), jnp.ones((3, 3, in_channels // groups, in_channels))
    conv = lambda x, w: words.conv2d(x, w, groups=groups)  # noqa: E731
    return jax.jit(conv).trace(x, w).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("in_channels, groups", [(7, 7), (6, 3)])
def test_grouped_convolution_is_lowered_as_such_on_cuda_only(in_channels, groups):
    grouped = f"feature_group_count = {groups}"
    assert grouped in lowered_text("cuda", in_channels, groups)
    assert grouped not in lowered_text("cpu", in_channels, groups)


def test_depthwise_convolution_on_cpu_is_lowered_without_convolution():
    assert "stablehlo.convolution" not in lowered_text("cpu", 7, 7)


def test_depthwise_convolution_on_cpu_is_not_fused():
    def conv(x, w):
        return jnp.concatenate([words.conv2d(x, w, groups=7)] * 2, -1)

    compiled = jax.jit(conv).lower(jnp.ones((1, 5, 5, 7)), jnp.ones((3, 3, 1, 7))).compile()
    assert " call(" in compiled.as_text()


@pytest.mark.parametrize("groups", [1, 6])
def test_conv1d_equals_pytorchs(groups):
    x, w, b = random_array(0, 2, 9, 6), random_array(1, 4, 6 // groups, 6), random_array(2, 6)
    expected = torch.nn.functional.conv1d(
        torch.tensor(x.swapaxes(1, 2)),
        torch.tensor(w.transpose(2, 1, 0)),
        torch.tensor(b),
        padding=2,
        groups=groups,
    )
    with jax.enable_x64(True):
        ours = words.conv1d(x, w, b, padding=2, groups=groups)
    np.testing.assert_allclose(ours, expected.numpy().swapaxes(1, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("leading_dims", [(), (4,), (2, 3, 4)])
@pytest.mark.parametrize("bias", [None, random_array(2, 3)])
def test_linear_equals_pytorchs(leading_dims, bias):
    x, w = random_array(0, *leading_dims, 5), random_array(1, 5, 3)
    expected = torch.nn.functional.linear(
        torch.tensor(x), torch.tensor(w.T), None if bias is None else torch.tensor(bias)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(words.linear(x, w, bias), expected, rtol=0, atol=1e-10)


def test_matmul_equals_pytorchs():
    x, y = random_array(0, 2, 3, 4, 5), random_array(1, 2, 3, 5, 6)
    with jax.enable_x64(True):
        ours = words.matmul(x, y)
    np.testing.assert_allclose(ours, torch.matmul(torch.tensor(x), torch.tensor(y)), atol=1e-10)


def test_einsum_equals_pytorchs():
    x, y, equation = random_array(0, 2, 3, 4), random_array(1, 2, 5, 4), "nqc,nkc->nqk"
    with jax.enable_x64(True):
        ours = words.einsum(equation, x, y)
    expected = torch.einsum(equation, torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("leading_dims", [(), (4,), (2, 3, 4)])
def test_layer_norm_equals_pytorchs(leading_dims):
    x, weight, bias = 3 + random_array(0, *leading_dims, 6), random_array(1, 6), random_array(2, 6)
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x), (6,), torch.tensor(weight), torch.tensor(bias), eps=1e-3
    )
    with jax.enable_x64(True):
        ours = words.layer_norm(x, weight, bias, eps=1e-3)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_pytorchs(groups):
    x, weight, bias = 3 + random_array(0, 2, 4, 5, 6), random_array(1, 6), random_array(2, 6)
    torch_x = torch.tensor(x.transpose(IN_TORCH))
    expected = torch.nn.functional.group_norm(torch_x, groups, *map(torch.tensor, (weight, bias)))
    with jax.enable_x64(True):
        ours = words.group_norm(x, weight, bias, num_groups=groups)
    np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [-1, 1])
def test_normalize_and_its_gradient_equal_pytorchs_down_to_zero(axis):
    x = random_array(0, 2, 3, 4) * np.array([1, 1e-13, 0, 1e3])
    torch_x = torch.tensor(x, requires_grad=True)
    torch_y = torch.nn.functional.normalize(torch_x, dim=axis)
    torch.sin(torch_y).sum().backward()
    with jax.enable_x64(True):
        ours = words.normalize(jnp.asarray(x), axis)
        grad = jax.grad(lambda x: jnp.sin(words.normalize(x, axis)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, torch_y.detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, torch_x.grad, rtol=1e-9, atol=1e-12)


def test_gelu_equals_pytorchs_default():
    x = random_array(0, 50)
    with jax.enable_x64(True):
        ours = words.gelu(x)
    np.testing.assert_allclose(ours, torch.nn.functional.gelu(torch.tensor(x)), atol=1e-12)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_pixel_shuffle_has_pytorchs_order(r):
    x = np.arange(2 * 3 * 4 * 5 * r**2, dtype=np.float32).reshape(2, 3, 4, 5 * r**2)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(x.transpose(IN_TORCH)), r)
    np.testing.assert_array_equal(words.pixel_shuffle(x, r), expected.numpy().transpose(0, 2, 3, 1))
