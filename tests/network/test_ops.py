"""A kernel is a faster way to the reference's numbers, chosen in one place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.network import ops
from esrjax.network.ops import Kernel, NoKernel, body

X = jnp.arange(4.0)


def doubled(x):
    """The reference of the operation under test."""
    return 2 * x


def marked(x):
    """A body that nobody can mistake for the reference."""
    return 2 * x + 100


@pytest.fixture
def op():
    """A fresh operation: what it has traced dies with it."""
    return ops.op(lambda x: doubled(x))


@pytest.fixture
def install(monkeypatch):
    """Makes a kernel the one that is installed for every operation."""
    return lambda **said: monkeypatch.setattr(ops, "kernel", lambda name: Kernel(**said))


def used(run, x=X):
    """Which body gave the output of `run`."""
    return {0: "reference", 100: "kernel"}[float(run(x)[0])]


def test_auto_uses_the_reference_where_no_kernel_is_installed(op):
    assert used(op) == "reference"


def test_auto_uses_a_kernel_that_fits(op, install):
    install(call=marked, platform="cpu")
    assert used(op) == "kernel"


def test_auto_uses_the_reference_where_the_kernel_gives_a_reason(op, install):
    install(call=marked, platform="cpu", why_not=lambda x: "odd" if x.size % 2 else None)
    assert (used(op, jnp.zeros(3)), used(op, jnp.zeros(4))) == ("reference", "kernel")


def test_auto_uses_the_reference_on_another_platform(op, install):
    install(call=marked, platform="cuda")
    assert used(op) == "reference"


def test_one_trace_lowers_to_the_kernel_on_its_platform_alone(op, install):
    install(call=jnp.sin, platform="cuda")
    traced = jax.jit(op).trace(X)
    text = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "sine" in text["cuda"]
    assert "sine" not in text["cpu"]


def test_body_reference_is_never_a_kernel(op, install):
    install(call=marked, platform="cpu")
    with body("reference"):
        assert used(op) == "reference"


def test_body_kernel_is_the_kernel(op, install):
    install(call=marked, platform="cpu")
    with body("kernel"):
        assert used(op) == "kernel"


@pytest.mark.parametrize(
    "said, reason",
    [
        (None, "none is installed"),
        (dict(call=marked, platform="cpu", why_not=lambda x: "4 is odd to me"), "4 is odd to me"),
        (dict(call=marked, platform="cuda"), "it needs cuda, this is cpu"),
    ],
    ids=["none", "why_not", "platform"],
)
def test_body_kernel_says_why_there_is_none(install, said, reason):
    op = ops.op(doubled)
    if said:
        install(**said)
    with body("kernel"), pytest.raises(NoKernel) as caught:
        op(X)
    assert str(caught.value) == (
        f"no kernel can serve the operation 'doubled': {reason}\n"
        '  rule:   body "kernel" means a kernel or an error\n'
        '  remedy: use body "auto", which falls back to the reference'
    )


def test_the_body_is_part_of_the_jit_key(op, install):
    install(call=marked, platform="cpu")
    run = jax.jit(lambda x: op(x))
    with body("reference"):
        first = used(run)
    assert (first, used(run)) == ("reference", "kernel")
    with body("reference"):
        assert used(run) == "reference"


def test_an_unknown_body_is_refused(op):
    with (
        body("refrence"),
        pytest.raises(ValueError, match="auto, reference, kernel; not 'refrence'"),
    ):
        op(X)


@pytest.mark.parametrize("differentiable, gradient", [(False, 2.0), (True, 5.0)])
def test_the_gradient_is_the_references_unless_the_kernel_brings_its_own(
    op, install, differentiable, gradient
):
    install(call=lambda x: 5 * x + 100, platform="cpu", differentiable=differentiable)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: op(x).sum()))(X), np.full(4, gradient))
    assert used(op) == "kernel"


def test_a_kernel_without_a_gradient_need_not_be_traceable_backwards(op, install):
    host = lambda x: jax.pure_callback(lambda x: np.asarray(2 * x), x, x)  # noqa: E731
    install(call=host, platform="cpu")
    np.testing.assert_array_equal(jax.grad(lambda x: op(x).sum())(X), np.full(4, 2.0))


def test_an_operation_without_an_entry_point_has_no_kernel():
    assert ops.kernel("no_such_operation") is None


def test_gated_residual_is_its_formula():
    rng = np.random.default_rng(0)
    x, f = rng.standard_normal((2, 2, 3, 4, 5))
    w, b = rng.standard_normal((5, 5)), rng.standard_normal(5)
    with jax.enable_x64(True):
        y = ops.gated_residual(x, f, w[None, None], b)
    gate = np.einsum("nhwi,io->nhwo", f, w) + b
    np.testing.assert_allclose(y, (x + f) * gate, rtol=0, atol=1e-12)


def convolved(x, w, b=0):
    """A zero-padded 3x3 convolution, tap by tap."""
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, columns = x.shape[1:3]
    taps = [(i, j, wide[:, i : i + h, j : j + columns]) for i in range(3) for j in range(3)]
    return sum(np.einsum("nhwi,io->nhwo", seen, w[i, j]) for i, j, seen in taps) + b


MASK = np.pad(np.ones((2, 3)), ((0, 2), (0, 2)))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["spab", "gated_spab"])
def test_a_block_is_its_formula(name, mask):
    rng = np.random.default_rng(0)
    u, kernels, biases = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 3, 3, 3, 3)), 0
    exists = 1 if mask is None else mask[None, :, :, None]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    if name == "spab":
        biases = rng.standard_normal((3, 3))
        given = [each for pair in zip(kernels, biases, strict=True) for each in pair]
        activate = lambda x: x * sigmoid(x)  # noqa: E731
        close = lambda r: (r + u) * (sigmoid(r) - 0.5)  # noqa: E731
    else:
        biases, (w, b) = np.zeros(3), (rng.standard_normal((3, 3)), rng.standard_normal(3))
        given = [*kernels, w[None, None], b]
        activate = lambda x: np.maximum(x, 0)  # noqa: E731
        close = lambda f: (u + f) * (f @ w + b)  # noqa: E731
    found = u
    for number in range(3):
        found = convolved(exists * found, kernels[number], biases[number])
        found = activate(found) if number < 2 else found
    with jax.enable_x64(True):
        y = getattr(ops, name)(u, *given, *([] if mask is None else [mask]))
    np.testing.assert_allclose(y, close(found), rtol=0, atol=1e-9)


def test_a_whole_block_is_its_parts_where_no_kernel_serves(install):
    run = lambda: ops.whole(ops.op(doubled), (X,), lambda: marked(X) + 100)  # noqa: E731
    assert float(run()[0]) == 200
    install(call=marked, platform="cpu")
    assert used(lambda x: run()) == "kernel"
    with body("reference"):
        assert float(run()[0]) == 200


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_is_its_formula(masked):
    rng = np.random.default_rng(0)
    q, (k, v) = rng.standard_normal((2, 3, 2, 4, 5)), rng.standard_normal((2, 2, 3, 2, 6, 5))
    bias = rng.standard_normal((2, 4, 6))
    mask = np.where(rng.random((3, 4, 6)) < 0.3, -100.0, 0.0)
    with jax.enable_x64(True):
        y = ops.window_attention(q, k, v, bias, *([mask] if masked else []))
    logits = np.einsum("nwhqc,nwhkc->nwhqk", q, k) / 5**0.5 + bias
    weights = np.exp(logits + mask[:, None] if masked else logits)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(y, np.einsum("nwhqk,nwhkc->nwhqc", weights, v), rtol=0, atol=1e-12)
