"""Conformance checks that every method must pass, and their results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import MissingExtra
from esrjax.method import Method
from esrjax.nn import functional, masking
from esrjax.nn.compilation import FAST_COMPILE
from esrjax.nn.cost import cost_of, mismatches
from esrjax.nn.hooks import heads, taps
from esrjax.nn.reparam import Reparam, deploy
from esrjax.nn.state_dict import (
    KeyMap,
    cast,
    load_state_dict,
    named_parameters,
    perturb_weights,
    to_state_dict,
)

Fixture = TypeVar("Fixture")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: What is checked, the first line of the check's docstring.
        error: Why it fails; None if it passes.
    """

    check: str
    error: str | None


def run_check(check: Callable[[Fixture], None], fixture: Fixture) -> CheckResult:
    """Call `check(fixture)`; any exception makes it fail, with the exception's first line."""
    name = (check.__doc__ or "").strip().split("\n")[0].rstrip(".")
    try:
        check(fixture)
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        return CheckResult(check=name, error=first_line)
    return CheckResult(check=name, error=None)


def assert_all_pass(subject: str, results: Iterable[CheckResult]) -> None:
    """Raise AssertionError with all failed checks, if there are any."""
    failures = [f"{result.check}: {result.error}" for result in results if result.error]
    assert not failures, f"{subject} fails these checks: " + "; ".join(failures)


# --------------------------------------------------------------------------------------------------
# Conformance checks that every method must pass.
# --------------------------------------------------------------------------------------------------


HParams = Mapping[str, Any]
FLOAT64_TOLERANCE = 1e-9  # absolute, for values in [0, 1]
FLOAT32_TOLERANCE = 1e-5  # absolute, for values in [0, 1]


@dataclass(frozen=True, kw_only=True)
class _MethodFixture:
    """What every check receives: the network in both forms, freshly initialized."""

    method: Method
    hparams: HParams
    train_net: nnx.Module
    deployed_net: nnx.Module
    side: int  # of test images, LR pixels

    def random_lr(self, batch: int = 1, dtype: Any = jnp.float32, h: int = 0, w: int = 0) -> Any:
        """Return random LR images (batch, h, w, 3), by default 3 pixels wider than high."""
        shape = (batch, h or self.side, w or self.side + 3, 3)
        noise = np.random.default_rng(0).random(shape) * self.method.data_range
        return jnp.asarray(noise, dtype)

    def call(self, net: nnx.Module, lr: Any) -> Any:
        """Return `net(lr)`, compiled once for all networks of the same graph definition."""
        return self._forward(*nnx.split(net), lr)

    @functools.cached_property
    def _forward(self) -> Callable[[Any, Any, Any], Any]:
        def forward(graphdef: Any, state: Any, lr: Any) -> Any:
            return nnx.merge(graphdef, state)(lr)

        return jax.jit(forward, static_argnums=0, compiler_options=FAST_COMPILE)


def check_method(method: Method, **hparams: Any) -> None:
    """Check that a method keeps the contract of plugins.

    Args:
        method: The method.
        **hparams: Hyperparameters of its network, by default `method.get_test_hparams()`: small
            ones make the checks fast. The reported figures are always compared with the cost of the
            default hyperparameters.

    Raises:
        AssertionError: With every check that fails.
        MissingExtra: If chex is not installed.
    """
    assert_all_pass("the method", run_checks(method, **hparams))


def run_checks(method: Method, **hparams: Any) -> tuple[CheckResult, ...]:
    """Run all checks and return their results; arguments as in `check_method`."""
    _check_chex_is_installed()
    hparams = hparams or dict(method.get_test_hparams())
    train_net = method.build(**hparams)
    train_net.eval()
    fixture = _MethodFixture(
        method=method,
        hparams=hparams,
        train_net=train_net,
        deployed_net=deploy(train_net),
        side=max(12, method.min_side),
    )
    return tuple(run_check(check, fixture) for check in CHECKS)


# --- checks: the first line of a docstring names the check --------------------------------------


def _output_is_valid(fixture: _MethodFixture) -> None:
    """SR is `scale` times as large as LR, float32 and finite, in both forms."""
    import chex

    lr = fixture.random_lr(batch=2)
    n, h, w, _ = lr.shape
    for net in (fixture.train_net, fixture.deployed_net):
        sr = fixture.call(net, lr)
        chex.assert_shape(sr, (n, fixture.method.scale * h, fixture.method.scale * w, 3))
        chex.assert_type(sr, jnp.float32)
        chex.assert_tree_all_finite(sr)


def _images_of_a_batch_are_independent(fixture: _MethodFixture) -> None:
    """The output for an image does not depend on the other images of the batch."""
    lr = fixture.random_lr(batch=2)
    other_lr = lr.at[0].set(lr[0, ::-1] / 2)
    net = fixture.deployed_net
    _assert_close(
        fixture, fixture.call(net, other_lr)[1:], fixture.call(net, lr)[1:], FLOAT32_TOLERANCE
    )


def _deploy_form_equals_train_form(fixture: _MethodFixture) -> None:
    """Deploy form equals train form in float64, image borders included."""
    with jax.enable_x64(True):
        train_net = perturb_weights(cast(fixture.train_net, jnp.float64))
        state_dict = to_state_dict(train_net, KeyMap({}))
        deployed_net = deploy(train_net)
        assert not any(isinstance(module, Reparam) for _, module in nnx.iter_modules(deployed_net))
        # Deploying again changes nothing, and deploying does not change the train form.
        _assert_equal(
            to_state_dict(deploy(deployed_net), KeyMap({})), to_state_dict(deployed_net, KeyMap({}))
        )
        _assert_equal(to_state_dict(train_net, KeyMap({})), state_dict)
        if not any(isinstance(module, Reparam) for _, module in nnx.iter_modules(train_net)):
            return  # nothing to fuse: both forms are the same
        lr = fixture.random_lr(dtype=jnp.float64)
        reference = train_net(lr)  # pyright: ignore[reportCallIssue] # networks are callable
        spread = float(jnp.ptp(reference)) / fixture.method.data_range
        _assert_close(fixture, deployed_net(lr), reference, FLOAT64_TOLERANCE * max(1.0, spread))  # pyright: ignore[reportCallIssue]


def _state_dict_round_trip_is_exact(fixture: _MethodFixture) -> None:
    """The round trip to a PyTorch state dict and back is bit-exact, in both forms."""
    key_map = KeyMap(fixture.method.torch_names)
    for net in (fixture.train_net, fixture.deployed_net):
        paths = [path for path, _ in named_parameters(net)]
        keys = [key_map.to_torch(path) for path in paths]
        assert len(set(keys)) == len(keys), "two parameters share one PyTorch key"
        assert [key_map.to_flax(key) for key in keys] == paths, "torch_names is not reversible"
        restored = load_state_dict(net, to_state_dict(net, key_map), key_map)
        _assert_equal(to_state_dict(restored, KeyMap({})), to_state_dict(net, KeyMap({})))


def _traces_once_per_size(fixture: _MethodFixture) -> None:
    """A second image of the same size is not traced again."""
    import chex

    graphdef, state = nnx.split(fixture.deployed_net)

    def forward(state: Any, lr: Any) -> Any:
        return nnx.merge(graphdef, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable

    # chex identifies functions by address, which an earlier, deleted function may have had.
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(forward, n=1))
    for lr in (fixture.random_lr(), fixture.random_lr() / 2):
        jax.eval_shape(jitted, state, lr)


def _all_params_have_gradients(fixture: _MethodFixture) -> None:
    """Every trainable parameter has a finite gradient that is not zero everywhere."""
    import chex

    graphdef, _, rest = nnx.split(fixture.train_net, nnx.Param, ...)
    lr = fixture.random_lr()

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def grads(params: Any) -> Any:
        def loss(params: Any) -> Any:
            sr, tapped = taps(nnx.merge(graphdef, params, rest), lr)
            outputs = (sr, *heads(tapped).values())
            return sum((jnp.sum(jnp.sin(y)) for y in outputs), jnp.zeros((), sr.dtype))

        return jax.grad(loss)(params)

    # The native lowering compiles fastest; that lowerings agree is tested with the functional ops.
    with functional.native_lowering(True):
        grads_by_seed = [
            grads(nnx.state(perturb_weights(fixture.train_net, seed=seed), nnx.Param))
            for seed in (1, 2, 3)
        ]
    chex.assert_tree_all_finite(grads_by_seed)
    # A ReLU may be inactive for one set of weights, hardly for all three.
    zero_grads = set.intersection(*map(_params_with_zero_grad, grads_by_seed))
    assert not zero_grads, f"no gradient reaches {', '.join(sorted(zero_grads)[:5])}"


def _params_with_zero_grad(grads: Any) -> set[str]:
    flat = nnx.to_flat_state(grads)
    return {".".join(map(str, path)) for path, leaf in flat if not np.any(np.asarray(leaf[...]))}


def _masked_padding_changes_nothing(fixture: _MethodFixture) -> None:
    """Masked padding does not change the output (unless needs_full_image)."""
    if fixture.method.needs_full_image:
        return
    lr = fixture.random_lr()
    h, w = lr.shape[1:3]
    padding = [(0, 0), (0, 7), (0, 5), (0, 0)]
    mask = jnp.pad(jnp.ones((h, w)), padding[1:3])
    with masking.valid_region(mask):
        padded_sr = fixture.deployed_net(jnp.pad(lr, padding))  # pyright: ignore[reportCallIssue] # networks are callable
    scale = fixture.method.scale
    sr = fixture.call(fixture.deployed_net, lr)
    _assert_close(fixture, padded_sr[:, : scale * h, : scale * w], sr, FLOAT32_TOLERANCE)


def _cost_equals_reported(fixture: _MethodFixture) -> None:
    """Parameters, MACs, activations and convolutions equal the reported figures."""
    method = fixture.method
    net = (
        nnx.eval_shape(lambda: deploy(method.build())) if fixture.hparams else fixture.deployed_net
    )
    cost = cost_of(method, net)
    problems = mismatches(cost, fixture.method.reported)
    assert not problems, "; ".join(problems)


CHECKS = (
    _output_is_valid,
    _images_of_a_batch_are_independent,
    _deploy_form_equals_train_form,
    _state_dict_round_trip_is_exact,
    _traces_once_per_size,
    _all_params_have_gradients,
    _masked_padding_changes_nothing,
    _cost_equals_reported,
)


# --- helpers -----------------------------------------------------------------------------------


def _assert_close(fixture: _MethodFixture, actual: Any, expected: Any, tolerance: float) -> None:
    import chex

    chex.assert_trees_all_close(
        actual, expected, rtol=0, atol=tolerance * fixture.method.data_range
    )


def _assert_equal(actual: Any, expected: Any) -> None:
    import chex

    chex.assert_trees_all_equal(actual, expected)


def _check_chex_is_installed() -> None:
    try:
        import chex  # noqa: F401 # pyright: ignore[reportUnusedImport] # only whether it is there
    except ImportError as error:
        raise MissingExtra(
            "chex is not installed",
            rule="the checks of a method use chex, an optional dependency",
            remedy='pip install "esrjax[dev]"',
        ) from error
