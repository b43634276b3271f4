"""A block in deploy form is one operation, and tells it all that its layers know."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.parts.spab import SPAB
from esrjax_plugins.spanv2 import Block
from flax import nnx

from esrjax.network import canvas, ops
from esrjax.network.ops import Kernel
from esrjax.network.reparam import deploy
from esrjax.network.taps import taps
from esrjax.network.weights import scattered

MARK = 100
MASK = np.pad(np.ones((3, 4), np.float32), ((0, 2), (0, 2)))
BLOCKS = {"spab": SPAB, "gated_spab": Block}


@pytest.fixture
def installed(monkeypatch):
    """A kernel for each block, whose numbers are the reference's and a mark."""

    def call(operation):
        def marked(*operands):
            with ops.body("reference"):
                return operation(*operands) + MARK

        return marked

    kernels = {name: Kernel(call=call(getattr(ops, name)), platform="cpu") for name in BLOCKS}
    monkeypatch.setattr(ops, "kernel", kernels.get)


def block(name):
    return deploy(scattered(BLOCKS[name](3, rngs=nnx.Rngs(0))))


def features():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6, 3)), jnp.float32)


def output(found):
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_operation_gives_what_the_parts_give(installed, name, mask):
    net, exists = block(name), np.ones((5, 6)) if mask is None else mask
    with canvas.picture(jnp.asarray(exists, jnp.float32)):
        with ops.body("reference"):
            parts = output(net(features()))
        whole = output(net(features()))
    gap = np.abs(whole - MARK - parts) * exists[None, :, :, None]
    assert gap.max() < 1e-4 * np.abs(parts).max()


@pytest.mark.parametrize("name, operands", [("spab", 7), ("gated_spab", 6)])
def test_without_a_mask_none_is_told(monkeypatch, name, operands):
    told = set()
    kernel = Kernel(call=lambda *given: told.add(len(given)) or given[0], platform="cpu")
    monkeypatch.setattr(ops, "kernel", lambda name: kernel)
    block(name)(features())
    assert told == {operands}


def test_the_first_activation_stays_to_be_had(installed):
    _, activated = block("spab")(features())
    with ops.body("reference"):
        _, wanted = block("spab")(features())
    np.testing.assert_array_equal(activated, wanted)


def test_parts_are_seen_unless_a_kernel_runs(installed):
    net = block("gated_spab")
    with ops.body("reference"):
        assert set(taps(net, features())[1]) == {"c1", "c2", "c3"}
    assert taps(net, features())[1] == {}


def test_the_train_form_has_branches_and_is_no_operation(installed):
    train = scattered(SPAB(3, rngs=nnx.Rngs(0)))
    with ops.body("kernel"):
        assert train(features())[0].max() < MARK / 2
