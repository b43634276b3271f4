"""Functional ops equal PyTorch's, and are lowered to the fast form of each platform."""

from dataclasses import asdict, dataclass

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esrjax.nn import functional
from esrjax.nn.compilation import loop_body
from esrjax.nn.functional import native_lowering

torch_functional = torch.nn.functional
pytestmark = pytest.mark.platform_lowering

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
        conv = lambda x, kernel: functional.conv2d(x, kernel, bias, **asdict(options))  # noqa: E731
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
    conv = lambda x, w: functional.conv2d(x, w, groups=groups)  # noqa: E731
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
        return jnp.concatenate([functional.conv2d(x, w, groups=7)] * 2, -1)

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
        ours = functional.conv1d(x, w, b, padding=2, groups=groups)
    np.testing.assert_allclose(ours, expected.numpy().swapaxes(1, 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("leading_dims", [(), (4,), (2, 3, 4)])
@pytest.mark.parametrize("bias", [None, random_array(2, 3)])
def test_linear_equals_pytorchs(leading_dims, bias):
    x, w = random_array(0, *leading_dims, 5), random_array(1, 5, 3)
    expected = torch.nn.functional.linear(
        torch.tensor(x), torch.tensor(w.T), None if bias is None else torch.tensor(bias)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(functional.linear(x, w, bias), expected, rtol=0, atol=1e-10)


def test_matmul_equals_pytorchs():
    x, y = random_array(0, 2, 3, 4, 5), random_array(1, 2, 3, 5, 6)
    with jax.enable_x64(True):
        ours = functional.matmul(x, y)
    np.testing.assert_allclose(ours, torch.matmul(torch.tensor(x), torch.tensor(y)), atol=1e-10)


def test_einsum_equals_pytorchs():
    x, y, equation = random_array(0, 2, 3, 4), random_array(1, 2, 5, 4), "nqc,nkc->nqk"
    with jax.enable_x64(True):
        ours = functional.einsum(equation, x, y)
    expected = torch.einsum(equation, torch.tensor(x), torch.tensor(y))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("leading_dims", [(), (4,), (2, 3, 4)])
def test_layer_norm_equals_pytorchs(leading_dims):
    x, weight, bias = 3 + random_array(0, *leading_dims, 6), random_array(1, 6), random_array(2, 6)
    expected = torch.nn.functional.layer_norm(
        torch.tensor(x), (6,), torch.tensor(weight), torch.tensor(bias), eps=1e-3
    )
    with jax.enable_x64(True):
        ours = functional.layer_norm(x, weight, bias, eps=1e-3)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_pytorchs(groups):
    x, weight, bias = 3 + random_array(0, 2, 4, 5, 6), random_array(1, 6), random_array(2, 6)
    torch_x = torch.tensor(x.transpose(IN_TORCH))
    expected = torch.nn.functional.group_norm(torch_x, groups, *map(torch.tensor, (weight, bias)))
    with jax.enable_x64(True):
        ours = functional.group_norm(x, weight, bias, num_groups=groups)
    np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [-1, 1])
def test_normalize_and_its_gradient_equal_pytorchs_down_to_zero(axis):
    x = random_array(0, 2, 3, 4) * np.array([1, 1e-13, 0, 1e3])
    torch_x = torch.tensor(x, requires_grad=True)
    torch_y = torch.nn.functional.normalize(torch_x, dim=axis)
    torch.sin(torch_y).sum().backward()
    with jax.enable_x64(True):
        ours = functional.normalize(jnp.asarray(x), axis)
        grad = jax.grad(lambda x: jnp.sin(functional.normalize(x, axis)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(ours, torch_y.detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(grad, torch_x.grad, rtol=1e-9, atol=1e-12)


def test_gelu_equals_pytorchs_default():
    x = random_array(0, 50)
    with jax.enable_x64(True):
        ours = functional.gelu(x)
    np.testing.assert_allclose(ours, torch.nn.functional.gelu(torch.tensor(x)), atol=1e-12)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_pixel_shuffle_has_pytorchs_order(r):
    x = np.arange(2 * 3 * 4 * 5 * r**2, dtype=np.float32).reshape(2, 3, 4, 5 * r**2)
    expected = torch.nn.functional.pixel_shuffle(torch.tensor(x.transpose(IN_TORCH)), r)
    np.testing.assert_array_equal(
        functional.pixel_shuffle(x, r), expected.numpy().transpose(0, 2, 3, 1)
    )


# --- Sums, maxima and softmax in their fast forms equal the plain ones, with their gradients ---


SIDES = pytest.mark.parametrize("n", [1, 9, 32, 33, 50])  # on both sides of MAX_DIRECT_SUM


def scaled_array(seed, *shape):
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
    assert_same_with_grads(functional.softmax, jax.nn.softmax, scaled_array(0, 2, 3, n))


@SIDES
def test_attention_equals_softmax_then_matmul(n):
    assert_same_with_grads(
        functional.attention_from_logits,
        lambda x, v: jax.nn.softmax(x) @ v,
        scaled_array(0, 2, 3, n),
        scaled_array(1, 2, n, 4),
    )


@SIDES
def test_sum_last_axis_equals_the_sum(n):
    assert_same_with_grads(
        functional.sum_last_axis, lambda x: x.sum(-1, keepdims=True), scaled_array(0, 2, 3, n)
    )


@pytest.mark.parametrize("h, w", [(1, 2), (5, 40), (40, 5)])
def test_spatial_mean_and_variance(h, w):
    x = 100 + scaled_array(0, 2, h, w, 3)
    assert_same_with_grads(functional.spatial_mean, lambda x: x.mean((1, 2), keepdims=True), x)
    assert_same_with_grads(
        functional.spatial_var, lambda x: x.var((1, 2), keepdims=True, ddof=1), x
    )


def test_large_logits_do_not_overflow_and_dtype_is_kept():
    logits = jnp.array([[1e4, 1e4 - 1, -1e4] * 20], jnp.bfloat16)
    probabilities = functional.softmax(logits)
    assert probabilities.dtype == jnp.bfloat16
    np.testing.assert_allclose(probabilities.astype(jnp.float32).sum(), 1, atol=0.02)
    attended = functional.attention_from_logits(logits, jnp.ones((60, 2), jnp.bfloat16))
    assert attended.dtype == jnp.bfloat16
    np.testing.assert_allclose(attended.astype(jnp.float32), 1, atol=0.02)


def lowered(platform, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def layer_norm(x):
    return functional.layer_norm(x, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def group_norm(x):
    return functional.group_norm(x[..., :16], jnp.ones(16), jnp.zeros(16))


@pytest.mark.parametrize(
    "function", [functional.softmax, functional.normalize, layer_norm, group_norm]
)
def test_cpu_code_has_no_reduce_window(function):
    x = jnp.ones((1, 8, 36, 48))
    assert "reduce-window" not in jax.jit(function).lower(x).compile().as_text()


@pytest.mark.parametrize("function", [functional.softmax, functional.sum_last_axis, layer_norm])
def test_other_platforms_get_a_plain_sum(function):
    x = jnp.ones((2, 48))
    assert "dot_general" in lowered("cpu", function, x)
    assert "dot_general" not in lowered("cuda", function, x)
    with functional.native_lowering(True):
        assert "dot_general" not in lowered("cpu", lambda x: function(x), x)


# --- Pooling and resizing equal PyTorch's with their gradients, at sizes that divide or not ---


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

    @jax.jit  # one program instead of one for every operation
    def output_and_grad(x):
        return ours(x), jax.grad(lambda x: jnp.sin(ours(x)).sum())(x)

    with jax.enable_x64(True):
        results = output_and_grad(jnp.asarray(x, x.dtype))
    return zip(results, torch_results, strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("old, new", SIZES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resize_equals_pytorchs(mode, old, new, dtype):
    for ours, theirs in outputs_and_grads(
        lambda x: getattr(functional, f"resize_{mode}")(x, size=new),
        lambda x: torch_functional.interpolate(x, new, mode=mode),
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
        jax.jit(lambda x: functional.resize_bicubic(x, new)),
        lambda x: torch_functional.interpolate(x, new, mode="bicubic", align_corners=False),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fraction", [(3, 4), (1, 2)])
def test_bicubic_resize_of_an_image_equals_pytorchs_in_float32(fraction):
    hr = np.random.default_rng(0).random((1, 256, 192, 3), np.float32)
    new = tuple(side * fraction[0] // fraction[1] for side in hr.shape[1:3])
    ours = functional.resize_bicubic(jnp.asarray(hr), new)
    theirs = torch_functional.interpolate(
        torch.tensor(hr.transpose(0, 3, 1, 2)), new, mode="bicubic"
    )
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("old", [(12, 8), (13, 11), (15, 16), (5, 7), (9, 1)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_adaptive_max_pool_equals_pytorchs(old, factor):
    new = tuple(max(1, side // factor) for side in old)
    for ours, theirs in outputs_and_grads(
        jax.jit(lambda x: functional.adaptive_max_pool(x, factor)),
        lambda x: torch_functional.adaptive_max_pool2d(x, new),
        old,
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (7, 4), (3, 1)])
def test_max_pool_leaves_out_incomplete_windows(kernel_size, stride):
    for ours, theirs in outputs_and_grads(
        lambda x: functional.max_pool(x, kernel_size, stride),
        lambda x: torch_functional.max_pool2d(x, kernel_size, stride),
        (13, 10),
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old", range(1, 70, 17))
def test_nearest_positions_are_computed_in_float32(old):
    line, sizes = np.arange(old, dtype=np.float32), range(1, 270, 13)

    @jax.jit
    def resize(line):
        image = line[None, None, :, None]
        return [functional.resize_nearest(image, size=(1, new))[0, 0, :, 0] for new in sizes]

    for new, ours in zip(sizes, resize(line), strict=True):
        theirs = torch_functional.interpolate(torch.tensor(line)[None, None], new, mode="nearest")
        np.testing.assert_array_equal(ours, theirs[0, 0])


def test_global_avg_pool_equals_pytorchs():
    for ours, theirs in outputs_and_grads(
        functional.global_avg_pool,
        lambda x: torch_functional.adaptive_avg_pool2d(x, 1),
        (5, 4),
        np.float64,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


OPS = {
    "adaptive_max_pool": lambda x: functional.adaptive_max_pool(x, 4),
    "resize_bilinear": lambda x: functional.resize_bilinear(
        x, size=(x.shape[1] * 3 - 1, x.shape[2] // 2)
    ),
    "max_pool": lambda x: functional.max_pool(x, 7, 4),
    "reflect_pad": lambda x: functional.reflect_pad(x, pad=3),
    "resize_nearest": lambda x: functional.resize_nearest(x, size=(x.shape[1] + 2, 2 * x.shape[2])),
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


@pytest.mark.parametrize(
    "kernel_size, padding, dilation, groups",
    [(3, 1, 1, 1), (1, 0, 1, 1), (5, 4, 2, 1), (3, 0, 1, 1), (3, 3, 1, 1), (3, 1, 1, 2)],
)
def test_gradients_of_a_convolution_in_a_loop_equal_those_outside(
    kernel_size, padding, dilation, groups
):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, 9, 8, 10)))
        w = jnp.asarray(rng.standard_normal((kernel_size, kernel_size, 10 // groups, 6)))

        def loss(x, w):
            y = functional.conv2d(
                x, w, padding=(padding, padding), dilation=dilation, groups=groups
            )
            return jnp.sin(y).sum()

        expected = jax.jit(jax.grad(loss, (0, 1)))(x, w)
        with loop_body(True):
            actual = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
        assert a.dtype == np.float64


def test_gradient_of_the_kernel_in_a_loop_is_summed_in_float32():
    x, w = jnp.ones((1, 64, 64, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    with loop_body(True):
        dw = jax.grad(lambda w: functional.conv2d(x, w).sum().astype(jnp.float32))(w)
    assert (dw.dtype, float(dw[0, 0, 0, 0])) == (jnp.bfloat16, 4096.0)
