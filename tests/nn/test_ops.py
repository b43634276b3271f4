"""Choice between an op's reference and its kernel, and the references themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.errors import NotFound, PluginError, log_note
from esrjax.nn import ops
from esrjax.nn.layers import FusedBlock
from esrjax.nn.ops import Kernel, find_kernel, implementation

X = jnp.arange(4.0)


def reference_fn(x):
    """The reference of the op under test."""
    return 2 * x


def kernel_fn(x):
    """An implementation whose output differs from the reference's."""
    return 2 * x + 100


@pytest.fixture
def op():
    """A new op, which shares no trace with others."""
    return ops.op(lambda x: reference_fn(x))


@pytest.fixture
def install(monkeypatch):
    """Return a function that installs a kernel for every op."""
    return lambda **fields: monkeypatch.setattr(ops, "find_kernel", lambda name: Kernel(**fields))


def implementation_used(run, x=X):
    """Return which implementation computed the output of `run`."""
    return {0: "reference", 100: "kernel"}[float(run(x)[0])]


def test_auto_uses_the_reference_where_no_kernel_is_installed(op):
    assert implementation_used(op) == "reference"


def test_auto_uses_a_supported_kernel(op, install):
    install(call=kernel_fn, platform="cpu")
    assert implementation_used(op) == "kernel"


def test_auto_uses_the_reference_for_unsupported_arguments(op, install):
    install(
        call=kernel_fn, platform="cpu", unsupported_reason=lambda x: "odd" if x.size % 2 else None
    )
    assert (implementation_used(op, jnp.zeros(3)), implementation_used(op, jnp.zeros(4))) == (
        "reference",
        "kernel",
    )


def test_auto_uses_the_reference_on_another_platform(op, install):
    install(call=kernel_fn, platform="cuda")
    assert implementation_used(op) == "reference"


def test_one_trace_lowers_to_the_kernel_on_its_platform_only(op, install):
    install(call=jnp.sin, platform="cuda")
    traced = jax.jit(op).trace(X)
    text = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "sine" in text["cuda"]
    assert "sine" not in text["cpu"]


def test_implementation_reference_never_uses_a_kernel(op, install):
    install(call=kernel_fn, platform="cpu")
    with implementation("reference"):
        assert implementation_used(op) == "reference"


def test_implementation_kernel_uses_the_kernel(op, install):
    install(call=kernel_fn, platform="cpu")
    with implementation("kernel"):
        assert implementation_used(op) == "kernel"


@pytest.mark.parametrize(
    "kernel, reason",
    [
        (None, "none is installed"),
        (
            dict(
                call=kernel_fn, platform="cpu", unsupported_reason=lambda x: "it needs an odd size"
            ),
            "it needs an odd size",
        ),
        (dict(call=kernel_fn, platform="cuda"), "requires cuda, this is cpu"),
    ],
    ids=["none", "unsupported", "platform"],
)
def test_implementation_kernel_reports_why_there_is_none(install, kernel, reason):
    op = ops.op(reference_fn)
    if kernel:
        install(**kernel)
    with implementation("kernel"), pytest.raises(NotFound) as caught:
        op(X)
    assert caught.value.problem == f"No kernel can run op 'reference_fn': {reason}"
    assert '"auto"' in caught.value.remedy


def test_implementation_is_part_of_the_jit_cache_key(op, install):
    install(call=kernel_fn, platform="cpu")
    run = jax.jit(lambda x: op(x))
    with implementation("reference"):
        first = implementation_used(run)
    assert (first, implementation_used(run)) == ("reference", "kernel")
    with implementation("reference"):
        assert implementation_used(run) == "reference"


def test_unknown_implementation_is_reported(op):
    with (
        implementation("refrence"),
        pytest.raises(ValueError, match="'refrence': use auto, reference, kernel"),
    ):
        op(X)


@pytest.mark.parametrize("differentiable, gradient", [(False, 2.0), (True, 5.0)])
def test_gradient_is_the_references_unless_the_kernel_is_differentiable(
    op, install, differentiable, gradient
):
    install(call=lambda x: 5 * x + 100, platform="cpu", differentiable=differentiable)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: op(x).sum()))(X), np.full(4, gradient))
    assert implementation_used(op) == "kernel"


def test_kernel_need_not_be_differentiable_by_jax(op, install):
    host = lambda x: jax.pure_callback(lambda x: np.asarray(2 * x), x, x)  # noqa: E731
    install(call=host, platform="cpu")
    np.testing.assert_array_equal(jax.grad(lambda x: op(x).sum())(X), np.full(4, 2.0))


def test_op_without_an_entry_point_has_no_kernel():
    assert ops.find_kernel("no_such_operation") is None


def test_gated_residual_equals_its_formula():
    rng = np.random.default_rng(0)
    x, f = rng.standard_normal((2, 2, 3, 4, 5))
    w, b = rng.standard_normal((5, 5)), rng.standard_normal(5)
    with jax.enable_x64(True):
        y = ops.gated_residual(x, f, w[None, None], b)
    gate = np.einsum("nhwi,io->nhwo", f, w) + b
    np.testing.assert_allclose(y, (x + f) * gate, rtol=0, atol=1e-12)


def conv3x3(x, w, b=0):
    """Return a zero-padded 3x3 convolution, tap by tap."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, columns = x.shape[1:3]
    taps = [(i, j, padded[:, i : i + h, j : j + columns]) for i in range(3) for j in range(3)]
    return sum(np.einsum("nhwi,io->nhwo", shifted, w[i, j]) for i, j, shifted in taps) + b


MASK = np.pad(np.ones((2, 3)), ((0, 2), (0, 2)))


@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
@pytest.mark.parametrize("name", ["spab", "gated_spab"])
def test_block_equals_its_formula(name, mask):
    rng = np.random.default_rng(0)
    u, kernels, biases = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 3, 3, 3, 3)), 0
    valid = 1 if mask is None else mask[None, :, :, None]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    if name == "spab":
        biases = rng.standard_normal((3, 3))
        args = [operand for pair in zip(kernels, biases, strict=True) for operand in pair]
        activate = lambda x: x * sigmoid(x)  # noqa: E731
        epilogue = lambda r: (r + u) * (sigmoid(r) - 0.5)  # noqa: E731
    else:
        biases, (w, b) = np.zeros(3), (rng.standard_normal((3, 3)), rng.standard_normal(3))
        args = [*kernels, w[None, None], b]
        activate = lambda x: np.maximum(x, 0)  # noqa: E731
        epilogue = lambda f: (u + f) * (f @ w + b)  # noqa: E731
    r = u
    for layer in range(3):
        r = conv3x3(valid * r, kernels[layer], biases[layer])
        r = activate(r) if layer < 2 else r
    with jax.enable_x64(True):
        y = getattr(ops, name)(u, *args, *([] if mask is None else [mask]))
    np.testing.assert_allclose(y, epilogue(r), rtol=0, atol=1e-9)


class Block(FusedBlock):
    op = staticmethod(ops.op(reference_fn))

    def operands(self, u):
        return (u,)

    def forward(self, u):
        return kernel_fn(u) + 100


def test_fused_block_runs_its_layers_without_a_kernel(install):
    assert float(Block()(X)[0]) == 200
    install(call=kernel_fn, platform="cpu")
    assert implementation_used(Block()) == "kernel"
    with implementation("reference"):
        assert float(Block()(X)[0]) == 200


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_equals_its_formula(masked):
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


# --- Discovery of kernels: at most one for an op, and a broken package affects its own ops only ---


GOOD = """
from esrjax.nn.ops import Kernel

KERNEL = Kernel(call=lambda x, f, w, b: x, platform="cpu")
OTHER = 3
"""


@pytest.fixture
def install_entries(package):
    find_kernel.cache_clear()
    yield lambda name, source, entries: package(name, source, ops.KERNEL_GROUP, entries)
    find_kernel.cache_clear()


def test_kernel_of_another_package_is_found(install_entries):
    install_entries("theirs", GOOD, {"new_operation": "KERNEL"})
    assert find_kernel("new_operation").platform == "cpu"
    assert find_kernel("gated_residual").platform == "cuda"


def test_two_kernels_of_one_op_are_reported(install_entries, esrjax):
    install_entries("theirs", GOOD, {"gated_residual": "KERNEL"})
    with pytest.raises(PluginError) as caught:
        find_kernel("gated_residual")
    text = str(caught.value)
    assert "'gated_residual' is registered more than once" in text
    assert "esrjax_kernels.gated_residual:KERNEL" in text and "theirs 1.0 (fake_theirs" in text
    assert find_kernel("selective_scan").platform == "cuda"
    assert "more than once" in esrjax("doctor", "--json").json["kernels"]["gated_residual"]


@pytest.mark.parametrize(
    "source, attribute, reason",
    [
        ("1 / 0", "KERNEL", "importing it raised ZeroDivisionError: division by zero"),
        (GOOD, "OTHER", "it is a int"),
    ],
)
def test_broken_package_is_reported(install_entries, source, attribute, reason):
    install_entries("theirs", source, {"new_operation": attribute})
    with pytest.raises(PluginError) as caught:
        find_kernel("new_operation")
    assert reason in str(caught.value) and "of theirs 1.0" in str(caught.value)


def test_reference_runs_in_spite_of_ambiguous_kernels(install_entries):
    install_entries("theirs", GOOD, {"gated_residual": "KERNEL"})
    operands = [jnp.ones(shape) for shape in ((1, 2, 3, 7), (1, 2, 3, 7), (1, 1, 7, 7), (7,))]
    with ops.implementation("reference"):
        assert (ops.gated_residual(*operands) == 16).all()
    with ops.implementation("kernel"), pytest.raises(PluginError):
        ops.gated_residual(*operands)


@pytest.mark.parametrize(
    "source",
    ["1 / 0", "import sys; sys.exit()", GOOD.replace('"cpu"', '"cpu", unsupported_reason=None')],
)
def test_auto_runs_the_reference_in_spite_of_a_broken_kernel(install_entries, source, caplog):
    install_entries("theirs", source, {"new_operation": "KERNEL"})
    log_note.cache_clear()

    @ops.op
    def new_operation(x):
        return 2 * x

    assert implementation_used(new_operation) == "reference"
    assert "'new_operation'" in caplog.text and "reference" in caplog.text
