"""`check_method` says which check of a network fails, by how much, and what to do."""

import subprocess
import sys

import jax.numpy as jnp
import pytest
from flax import nnx

from esrjax.method import Method
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, param
from esrjax.nn.reparam import Reparam
from esrjax.testing import check_method, run_checks


class Net(nnx.Module):
    """Two convolutions and a pixel shuffle, with the contract kept."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_1 = Conv2d(3, 4, rngs=rngs)
        self.conv_2 = Conv2d(4, 12, rngs=rngs)

    def __call__(self, x):
        return pixel_shuffle(self.conv_2(self.conv_1(x)), 2)


class OneScale(Net):
    """A network that ignores its argument `scale`."""

    def __init__(self, *, rngs: nnx.Rngs, scale: int = 2):
        super().__init__(rngs=rngs)


class FlaxConvs(Net):
    """The same with flax's own convolutions, which mask nothing."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv_1 = nnx.Conv(3, 4, (3, 3), bias_init=nnx.initializers.ones, rngs=rngs)
        self.conv_2 = nnx.Conv(4, 12, (3, 3), rngs=rngs)


class PaddedByHand(Net):
    """A convolution without padding, of an image that `jnp.pad` pads."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.conv_2 = Conv2d(4, 12, padding=0, rngs=rngs)

    def __call__(self, x):
        padded = jnp.pad(self.conv_1(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
        return pixel_shuffle(self.conv_2(padded), 2)


class BatchMean(Net):
    """A network that subtracts the mean of the batch."""

    def __call__(self, x):
        return super().__call__(x - x.mean((0, 1, 2), keepdims=True))


class WrongBlock(Reparam):
    """A block whose fused layer lacks its factor."""

    def __init__(self, conv):
        self.conv = conv

    def __call__(self, x):
        return 1.5 * self.conv(x)

    def fuse(self):
        return self.conv


class WronglyFused(Net):
    """A network with such a block."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.conv_2 = WrongBlock(Conv2d(4, 12, rngs=rngs))


class UnusedParam(Net):
    """A network with a parameter that it does not use."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.unused = param(jnp.ones(3))


class NotFinite(Net):
    """A network whose output has one NaN."""

    def __call__(self, x):
        return super().__call__(x).at[0, 0, 0, 0].set(jnp.nan)


class HalfPrecision(Net):
    """A network whose output is not float32."""

    def __call__(self, x):
        return super().__call__(x).astype(jnp.bfloat16)


def failures(network, **fields):
    """Return the errors of the checks that fail, by check."""
    fields = {"scales": (2,), "team": "ours", "paper": "none", "license": "MIT", **fields}
    results = run_checks(Method(network=network, **fields))
    return {result.check: result.error for result in results if result.error}


def test_network_that_keeps_the_contract_passes():
    reported = {"params": 112 + 444, "convs": 2, "activations": 256**2 * 16}
    assert failures(Net, reported=reported) == {}


@pytest.mark.parametrize(
    "network, module",
    [(FlaxConvs, "'conv_2', a flax.nnx."), (PaddedByHand, "'conv_2', a esrjax.nn.layers.Conv2d")],
)
def test_unmasked_padding_is_located_and_masking_layers_are_named(network, module):
    ((check, error),) = failures(network).items()
    assert "padding" in check and f"first in {module}" in error
    assert "largest absolute difference" in error and "tolerance 1e-05" in error
    remedy = error.split("Remedy: ")[1]
    for name in ("esrjax.nn.layers.Conv2d", "esrjax.nn.masking.zero_pad", "needs_full_image"):
        assert name in remedy


def test_flax_convolutions_pass_in_a_method_that_is_never_padded():
    assert failures(FlaxConvs, needs_full_image=True) == {}


@pytest.mark.parametrize(
    "network, fields, check, problem, remedy",
    [
        (Net, {"scales": (3,)}, "SR is `scale`", "(2, 36, 45, 3)", "Method.scales"),
        (OneScale, {"scales": (2, 3)}, "SR is `scale`", "(1, 36, 45, 3)", "argument scale"),
        (HalfPrecision, {}, "SR is `scale`", "SR is bfloat16", "float32"),
        (NotFinite, {}, "SR is `scale`", "1 of 4320 values", "Method.min_side"),
        (BatchMean, {"needs_full_image": True}, "other images", "largest absolute", "axis 0"),
        (WronglyFused, {}, "Deploy form", "largest absolute difference", "`fuse`"),
        (
            Net,
            {"torch_names": {"conv_1.{leaf}": "conv_2.{leaf}"}},
            "round trip",
            "share one PyTorch key",
            "torch_names",
        ),
        (
            Net,
            {"torch_names": {"c.{leaf}": "conv_1.{leaf}", "conv_2.{leaf}": "c.{leaf}"}},
            "round trip",
            "conv_2.weight becomes c.weight",
            "torch_names",
        ),
        (UnusedParam, {}, "gradient", "reaches unused", "remove it"),
        (Net, {"reported": {"params": 5}}, "reported", "params is 556, reported 5", "reported"),
    ],
)
def test_failed_check_is_explained(network, fields, check, problem, remedy):
    (error,) = (error for name, error in failures(network, **fields).items() if check in name)
    assert problem in error
    assert remedy in error.split("Remedy: ")[1]


def test_check_method_raises_all_failures():
    method = Method(network=FlaxConvs, scales=(3,), team="ours", paper="none", license="MIT")
    with pytest.raises(AssertionError) as caught:
        check_method(method)
    assert "SR is `scale`" in str(caught.value) and "first in 'conv_2'" in str(caught.value)


def test_pytest_is_not_needed(crumbs):
    code = (
        "import sys; sys.modules['pytest'] = None; from esrjax import registry, testing;"
        "testing.check_method(registry.get_method('crumb')); print('passed')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "passed\n", result.stderr
