"""A block in deploy form is one fused operation, which receives all parameters of its layers."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks.spab import SPAB
from esrjax_plugins.spanv2 import GatedSPAB
from flax import nnx

from esrjax.nn import masking, ops
from esrjax.nn.hooks import taps
from esrjax.nn.ops import Kernel
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import perturb_weights

OFFSET = 100
MASK = np.pad(np.ones((3, 4), np.float32), ((0, 2), (0, 2)))
BLOCK_CLASSES = {"spab": SPAB, "gated_spab": GatedSPAB}


@pytest.fixture
def marking_kernels(monkeypatch):
    """Kernels for both blocks that return the reference's output plus an offset."""

    def call(operation):
        def with_offset(*operands):
            with ops.implementation("reference"):
                return operation(*operands) + OFFSET

        return with_offset

    kernels = {
        name: Kernel(call=call(getattr(ops, name)), platform="cpu") for name in BLOCK_CLASSES
    }
    monkeypatch.setattr(ops, "find_kernel", kernels.get)


def make_block(name):
    return deploy(perturb_weights(BLOCK_CLASSES[name](3, rngs=nnx.Rngs(0))))


def random_features():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6, 3)), jnp.float32)


def first_output(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
@pytest.mark.parametrize("name", BLOCK_CLASSES)
def test_fused_operation_equals_the_layers(marking_kernels, name, mask):
    net, is_valid = make_block(name), np.ones((5, 6)) if mask is None else mask
    with masking.valid_region(jnp.asarray(is_valid, jnp.float32)):
        with ops.implementation("reference"):
            unfused = first_output(net(random_features()))
        fused = first_output(net(random_features()))
    diff = np.abs(fused - OFFSET - unfused) * is_valid[None, :, :, None]
    assert diff.max() < 1e-4 * np.abs(unfused).max()


@pytest.mark.parametrize("name, expected", [("spab", 7), ("gated_spab", 6)])
def test_operation_receives_no_mask_by_default(monkeypatch, name, expected):
    num_operands = set()
    kernel = Kernel(call=lambda *args: num_operands.add(len(args)) or args[0], platform="cpu")
    monkeypatch.setattr(ops, "find_kernel", lambda name: kernel)
    make_block(name)(random_features())
    assert num_operands == {expected}


def test_first_activation_is_returned_with_a_kernel(marking_kernels):
    _, activated = make_block("spab")(random_features())
    with ops.implementation("reference"):
        _, expected = make_block("spab")(random_features())
    np.testing.assert_array_equal(activated, expected)


def test_layers_are_captured_unless_a_kernel_runs(marking_kernels):
    net = make_block("gated_spab")
    with ops.implementation("reference"):
        assert set(taps(net, random_features())[1]) == {"c1", "c2", "c3"}
    assert taps(net, random_features())[1] == {}


def test_train_form_does_not_use_the_fused_operation(marking_kernels):
    train = perturb_weights(SPAB(3, rngs=nnx.Rngs(0)))
    with ops.implementation("kernel"):
        assert train(random_features())[0].max() < OFFSET / 2
