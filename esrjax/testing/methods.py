"""Conformance checks that every method must pass, and the results of checks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import UserError, list_some
from esrjax.method import Method
from esrjax.nn import functional, masking
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.compilation import FAST_COMPILE
from esrjax.nn.cost import cost_of, mismatches
from esrjax.nn.hooks import heads, taps
from esrjax.nn.layers import shapes_only
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
FLOAT64_TOLERANCE = 1e-9  # absolute, for values in [0, 1]
FLOAT32_TOLERANCE = 1e-5  # absolute, for values in [0, 1]
PLAIN_KEYS = KeyMap({})  # torch keys that equal the Flax paths


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: What is checked, the first line of the check's docstring.
        error: Why it fails, and a remedy, in one line; None if it passes.
    """

    check: str
    error: str | None


def run_check(check: Callable[[Fixture], None], remedy: str, fixture: Fixture) -> CheckResult:
    """Call `check(fixture)`; any exception makes it fail, with the exception's first line.

    Args:
        check: The check; the first line of its docstring is its name.
        remedy: What the author of the plugin or kernel can do where it fails.
        fixture: The argument of the check.
    """
    name = (check.__doc__ or "").strip().split("\n")[0].rstrip(".")
    try:
        check(fixture)
    except Exception as error:
        problem = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        remedy = error.remedy if isinstance(error, UserError) else remedy
        return CheckResult(check=name, error=f"{problem}. Remedy: {remedy}")
    return CheckResult(check=name, error=None)


def assert_all_pass(subject: str, results: Iterable[CheckResult]) -> None:
    """Raise AssertionError with all failed checks, if there are any."""
    failures = [f"{result.check}: {result.error}" for result in results if result.error]
    assert not failures, f"{subject} fails these checks: " + "; ".join(failures)


# --- checks of a method --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _MethodFixture:
    """What every check receives: the network in both forms, freshly initialized."""

    method: Method
    hparams: Mapping[str, Any]
    train_net: nnx.Module
    deployed_net: nnx.Module
    side: int  # of test images, LR pixels

    @property
    def scale(self) -> int:
        """Upscaling factor of the networks."""
        return self.method.scale_of(self.hparams)

    def random_lr(self, batch: int = 1, dtype: Any = jnp.float32) -> Any:
        """Return random LR images (batch, h, w, 3), 3 pixels wider than high."""
        noise = np.random.default_rng(0).random((batch, self.side, self.side + 3, 3))
        return jnp.asarray(noise * self.method.data_range, dtype)

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
        AssertionError: With every check that fails, by how much, and a remedy.
    """
    assert_all_pass("the method", run_checks(method, **hparams))


def run_checks(method: Method, **hparams: Any) -> tuple[CheckResult, ...]:
    """Run all checks and return their results; arguments as in `check_method`."""
    hparams = hparams or dict(method.get_test_hparams())
    train_net = _build_for_eval(method, **hparams)
    fixture = _MethodFixture(
        method=method,
        hparams=hparams,
        train_net=train_net,
        deployed_net=deploy(train_net),
        side=max(12, method.min_side),
    )
    return tuple(run_check(check, remedy, fixture) for check, remedy in CHECKS.items())


def _build_for_eval(method: Method, **hparams: Any) -> nnx.Module:
    net = method.build(**hparams)
    net.eval()
    return net


def _output_is_valid(fixture: _MethodFixture) -> None:
    """SR is `scale` times as large as LR, float32 and finite, in both forms."""
    lr = fixture.random_lr(batch=2)
    n, h, w, _ = lr.shape
    for net in (fixture.train_net, fixture.deployed_net):
        sr = fixture.call(net, lr)
        chex.assert_shape(sr, (n, fixture.scale * h, fixture.scale * w, 3))
        assert sr.dtype == jnp.float32, f"SR is {sr.dtype}"
        num_invalid = int(jnp.sum(~jnp.isfinite(sr)))
        assert not num_invalid, f"{num_invalid} of {sr.size} values are NaN or infinite"
    _check_other_scales(fixture)


def _check_other_scales(fixture: _MethodFixture) -> None:
    """Check the size of SR for the scales that the fixture's networks do not have, abstractly."""
    method, lr = fixture.method, fixture.random_lr()
    _, h, w, _ = lr.shape
    method.check_hparams({})  # the default scale is one of Method.scales
    for scale in sorted({*method.scales} - {fixture.scale}):
        build = functools.partial(_build_for_eval, method, **{**fixture.hparams, "scale": scale})
        with functional.native_lowering(True):  # traced fastest
            sr = jax.eval_shape(functools.partial(_build_and_call, build), lr)
        chex.assert_shape(sr, (1, scale * h, scale * w, 3))


def _build_and_call(build: Callable[[], Any], lr: Any) -> Any:
    with shapes_only():
        net = build()
    return net(lr)


def _images_of_a_batch_are_independent(fixture: _MethodFixture) -> None:
    """The output for an image does not depend on the other images of the batch."""
    lr = fixture.random_lr(batch=2)
    other_lr = lr.at[0].set(lr[0, ::-1] / 2)
    sr, other_sr = (fixture.call(fixture.deployed_net, images)[1:] for images in (lr, other_lr))
    tolerance = FLOAT32_TOLERANCE * fixture.method.data_range
    difference = _difference(other_sr, sr, tolerance)
    assert not difference, difference


def _deploy_form_equals_train_form(fixture: _MethodFixture) -> None:
    """Deploy form equals train form in float64, image borders included."""
    with jax.enable_x64(True):
        train_net: Any = perturb_weights(cast(fixture.train_net, jnp.float64))
        weights = to_state_dict(train_net, PLAIN_KEYS)
        deployed_net: Any = deploy(train_net)
        assert not _has_reparam(deployed_net), "the deploy form still contains blocks to fuse"
        # Deploying again changes nothing, and deploying does not change the train form.
        _assert_same_weights(deploy(deployed_net), to_state_dict(deployed_net, PLAIN_KEYS))
        _assert_same_weights(train_net, weights)
        if not _has_reparam(train_net):
            return  # nothing to fuse: both forms are the same
        lr = fixture.random_lr(dtype=jnp.float64)
        reference = train_net(lr)
        tolerance = FLOAT64_TOLERANCE * max(fixture.method.data_range, float(jnp.ptp(reference)))
        difference = _difference(deployed_net(lr), reference, tolerance)
        assert not difference, difference


def _has_reparam(net: nnx.Module) -> bool:
    return any(isinstance(module, Reparam) for _, module in nnx.iter_modules(net))


def _state_dict_round_trip_is_exact(fixture: _MethodFixture) -> None:
    """The round trip to a PyTorch state dict and back is bit-exact, in both forms."""
    key_map = KeyMap(fixture.method.torch_names)
    for net in (fixture.train_net, fixture.deployed_net):
        paths = [path for path, _ in named_parameters(net)]
        keys = [key_map.to_torch(path) for path in paths]
        assert len(set(keys)) == len(keys), "two parameters share one PyTorch key"
        restored_paths = [key_map.to_flax(key) for key in keys]
        assert restored_paths == paths, "torch_names is not reversible: " + list_some(
            f"{a} becomes {b}" for a, b in zip(paths, restored_paths, strict=True) if a != b
        )
        restored = load_state_dict(net, to_state_dict(net, key_map), key_map)
        _assert_same_weights(restored, to_state_dict(net, PLAIN_KEYS))


def _traces_once_per_size(fixture: _MethodFixture) -> None:
    """A second image of the same size is not traced again."""
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
    graphdef, _, rest = nnx.split(fixture.train_net, nnx.Param, ...)
    lr = fixture.random_lr()

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def grad(params: Any) -> Any:
        def loss(params: Any) -> Any:
            sr, tapped = taps(nnx.merge(graphdef, params, rest), lr)
            outputs = (sr, *heads(tapped).values())
            return sum((jnp.sum(jnp.sin(y)) for y in outputs), jnp.zeros((), sr.dtype))

        return jax.grad(loss)(params)

    grads: dict[str, list[Any]] = {}  # by path, of three sets of weights
    # The native lowering compiles fastest; that lowerings agree is tested with the functional ops.
    with functional.native_lowering(True):
        for seed in (1, 2, 3):
            params = nnx.state(perturb_weights(fixture.train_net, seed=seed), nnx.Param)
            for path, leaf in nnx.to_flat_state(grad(params)):
                grads.setdefault(".".join(map(str, path)), []).append(np.asarray(leaf[...]))
    not_finite = sorted(path for path, leaves in grads.items() if not np.isfinite(leaves).all())
    assert not not_finite, f"the gradient is not finite for {list_some(not_finite)}"
    # A ReLU may be inactive for one set of weights, hardly for all three.
    zero = sorted(path for path, leaves in grads.items() if not np.any(leaves))
    assert not zero, f"no gradient reaches {list_some(zero)}"


def _masked_padding_changes_nothing(fixture: _MethodFixture) -> None:
    """Masked padding does not change the output (unless needs_full_image)."""
    if fixture.method.needs_full_image:
        return
    net: Any = fixture.deployed_net
    lr = fixture.random_lr(batch=2)  # the shape for which the network is compiled already
    padding = [(0, 0), (0, 7), (0, 5), (0, 0)]
    padded_lr, mask = jnp.pad(lr, padding), jnp.pad(jnp.ones(lr.shape[1:3]), padding[1:3])
    with masking.valid_region(mask):
        padded_sr = net(padded_lr)
    sr, tolerance = fixture.call(net, lr), FLOAT32_TOLERANCE * fixture.method.data_range
    difference = _difference(padded_sr[:, : sr.shape[1], : sr.shape[2]], sr, tolerance)
    if difference:
        with masking.valid_region(mask):
            _, padded_outputs = taps(net, padded_lr)
        difference += _first_changed_module(net, taps(net, lr)[1], padded_outputs)
    assert not difference, difference


def _first_changed_module(
    net: nnx.Module, outputs: Mapping[str, Any], padded_outputs: Mapping[str, Any]
) -> str:
    """Return a text that names the first module whose images differ; empty if there is none."""
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(net)}
    for path in outputs:
        leaves = zip(*map(jax.tree.leaves, (outputs[path], padded_outputs[path])), strict=True)
        for y, padded_y in leaves:
            tolerance = FLOAT32_TOLERANCE * max(1.0, float(jnp.abs(y).max()))
            if y.ndim == 4 and _difference(padded_y[:, : y.shape[1], : y.shape[2]], y, tolerance):
                cls = type(modules[path])
                return f", first in {path!r}, a {cls.__module__}.{cls.__name__}"
    return ""


def _cost_equals_reported(fixture: _MethodFixture) -> None:
    """Parameters, MACs, activations and convolutions equal the reported figures."""
    method = fixture.method
    net = fixture.deployed_net
    if fixture.hparams:
        net = nnx.eval_shape(lambda: deploy(_build_for_eval(method)))
    problems = mismatches(cost_of(method, net), method.reported)
    assert not problems, "; ".join(problems)


CHECKS: Mapping[Callable[[_MethodFixture], None], str] = {  # each with its remedy
    _output_is_valid: "return float32 SR images (N, scale·h, scale·w, 3) for LR images "
    "(N, h, w, 3), for every one of Method.scales, by the network's argument scale where there are "
    "several; correct Method.scales, or Method.min_side if the image is too small",
    _images_of_a_batch_are_independent: "compute statistics of each image by itself, over axes 1 "
    "and 2 of (N, h, w, C) and not over axis 0",
    _deploy_form_equals_train_form: "correct `fuse` of the Reparam blocks; a chain of convolutions "
    "fuses exactly only if its input is padded once, before the first (esrjax.nn.reparam.Affine)",
    _state_dict_round_trip_is_exact: "give every parameter a PyTorch key of its own in "
    "Method.torch_names, and torch_axes where its layout differs (esrjax.nn.layers.param)",
    _traces_once_per_size: "let __call__ depend on shapes and hyperparameters alone, not on state "
    "that it changes",
    _all_params_have_gradients: "use the parameter in __call__ or remove it, use no stop_gradient, "
    "and keep 0/0, sqrt(0) and log(0) out of the gradient",
    _masked_padding_changes_nothing: "use esrjax.nn.layers.Conv2d instead of flax.nnx.Conv, and "
    "esrjax.nn.masking.zero_pad instead of jnp.pad: these mask what lies outside of the image, so "
    "that it acts as zero padding; if the output depends on the whole image, set "
    "Method.needs_full_image",
    _cost_equals_reported: "correct Method.reported, or list in Method.cost_options "
    "the modules that the organisers' counter treats differently",
}


# --- differences ---------------------------------------------------------------------------------


def _difference(actual: Any, expected: Any, tolerance: float) -> str:
    """Return where arrays differ most, and by how much; empty if by no more than the tolerance."""
    actual, expected = (np.asarray(array, np.float64) for array in (actual, expected))
    if actual.shape != expected.shape:
        return f"the shape is {actual.shape} instead of {expected.shape}"
    errors = np.nan_to_num(np.abs(actual - expected), nan=np.inf, posinf=np.inf)
    index = np.unravel_index(errors.argmax(), errors.shape) if errors.size else ()
    if errors.max(initial=0) <= tolerance:
        return ""
    return (
        f"the largest absolute difference is {errors[index]:.2g} at index {tuple(map(int, index))} "
        f"({actual[index]:.6g} instead of {expected[index]:.6g}), the tolerance {tolerance:.2g}"
    )


def _assert_same_weights(net: nnx.Module, expected: StateDict) -> None:
    actual = to_state_dict(net, PLAIN_KEYS)
    other_paths = sorted(actual.keys() ^ expected.keys())
    assert not other_paths, f"these parameters are in one of the two only: {list_some(other_paths)}"
    for path, value in expected.items():
        difference = _difference(actual[path], value, 0)
        assert not difference, f"in parameter {path}, {difference}"
