"""The organisers' counts, to the last digit, under every implementation."""

import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from esrjax import registry
from esrjax.network import ops
from esrjax.network.cost import UnmatchedPattern, cost
from esrjax.network.layers import Conv2d, Linear
from esrjax.network.ops import Kernel
from esrjax.network.reparam import deploy

REPORTED = {  # params, macs, activations, convs
    "span": (150_688, 9_833_807_872, 41_680_896, 22),
    "spanv2": (139_104, 9_107_931_136, 51_380_224, 22),
}


def figures(cost):
    return cost.params, cost.macs, cost.activations, cost.convs


def abstract_deployed(name):
    return nnx.eval_shape(lambda: deploy(registry.get_entry(name).build()))


@pytest.mark.parametrize("name", REPORTED)
def test_cost_equals_the_official_figures(name):
    network_cost = cost(abstract_deployed(name))
    assert figures(network_cost) == REPORTED[name]
    assert (network_cost.params_full, network_cost.macs_full) == (
        network_cost.params,
        network_cost.macs,
    )


@pytest.mark.parametrize("implementation", ["auto", "reference", "kernel"])
@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_implementation_does_not_change_a_count(monkeypatch, name, implementation):
    net = abstract_deployed(name)
    monkeypatch.setattr(
        ops, "find_kernel", lambda name: Kernel(call=lambda x, *_: x, platform="cpu")
    )
    with ops.implementation(implementation):
        network_cost = cost(net)
    assert figures(network_cost) == REPORTED[name]
    assert "block_2.c1" in {op.path for op in network_cost.ops}


def test_train_form_costs_more():
    train_cost = cost(nnx.eval_shape(registry.get_entry("span").build))
    assert train_cost.macs > REPORTED["span"][1] and train_cost.convs > REPORTED["span"][3]


class Net(nnx.Module):
    """A convolution, a matmul that is no counted op, statistics, and an unneeded convolution."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = Conv2d(3, 4, rngs=rngs)
        self.mix = Linear(4, 5, rngs=rngs)
        self.dead = Conv2d(3, 6, 1, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(5))
        self.raw = nnx.Param(jnp.ones((5, 2)))

    def __call__(self, x):
        self.dead(x)
        y = self.mix(self.conv(x)) - self.mean[...][None, None, None]
        return y @ self.raw[...]


CONV, MIX, RAW, DEAD = (64 * n for n in (9 * 3 * 4, 4 * 5, 5 * 2, 3 * 6))


@pytest.mark.parametrize("net", [Net(), nnx.eval_shape(Net)], ids=["built", "abstract"])
def test_unneeded_op_has_activations_but_no_macs(net):
    network_cost = cost(net, image_size=8)
    assert network_cost.macs == network_cost.macs_full == CONV + MIX + RAW
    assert (network_cost.convs, network_cost.activations) == (2, 64 * (4 + 6))
    assert network_cost.params == (9 * 3 + 1) * 4 + (4 + 1) * 5 + 5 * 2 + (3 + 1) * 6
    assert network_cost.params_full == network_cost.params - (3 + 1) * 6
    assert [(op.path, op.op, op.macs_full, op.is_needed) for op in network_cost.ops] == [
        ("dead", "conv2d", DEAD, False),
        ("conv", "conv2d", CONV, True),
        ("mix", "linear", MIX, True),
        ("", "dot_general", RAW, True),
    ]


def test_excluded_op_stays_in_macs_full():
    network_cost = cost(
        Net(), image_size=8, excluded={"mi?": "hand-written", "": "outside all modules"}
    )
    assert (network_cost.macs, network_cost.macs_full) == (CONV, CONV + MIX + RAW)


def test_included_unneeded_op_is_not_in_macs_full():
    network_cost = cost(Net(), image_size=8, included={"dea?": "returned with the image"})
    assert (network_cost.macs, network_cost.macs_full) == (
        CONV + MIX + RAW + DEAD,
        CONV + MIX + RAW,
    )


def test_unmatched_pattern_is_reported():
    with pytest.raises(UnmatchedPattern) as caught:
        cost(Net(), image_size=8, excluded={"mix": "fine", "mixer.*": "misspelt"})
    assert "'mixer.*'" in caught.value.problem
    assert "conv, dead, mix" in caught.value.location


def test_macs_grow_with_the_area():
    small, large = cost(Net(), image_size=4), cost(Net(), image_size=8)
    assert (large.macs, large.activations) == (4 * small.macs, 4 * small.activations)


class Repeated(nnx.Module):
    """A submodule that a scan runs four times."""

    def __init__(self):
        self.conv = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return lax.scan(lambda x, _: (self.conv(x), None), x, length=4)[0]


class Remat(nnx.Module):
    """A submodule whose activations are recomputed in the backward pass."""

    def __init__(self):
        self.conv = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda conv, x: conv(x))(self.conv, x)


@pytest.mark.parametrize("build, repeats", [(Repeated, 4), (Remat, 1)])
def test_module_paths_are_known_inside_of_transformations(build, repeats):
    (op,) = cost(build(), image_size=8).ops
    assert (op.path, op.macs_full, op.convs) == ("conv", repeats * 64 * 81, repeats)


def test_nothing_is_computed():
    huge = nnx.eval_shape(lambda: registry.get_entry("span").build(channels=4096))
    assert cost(huge, image_size=4096).params > 10**9
