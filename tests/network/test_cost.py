"""The organisers' counts, to the last digit, under every body."""

import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from esrjax import registry
from esrjax.network import ops
from esrjax.network.cost import IdleGlob, cost
from esrjax.network.layers import Conv2d, Linear
from esrjax.network.ops import Kernel
from esrjax.network.reparam import deploy

REPORTED = {  # params, macs, activations, convs
    "span": (150_688, 9_833_807_872, 41_680_896, 22),
    "spanv2": (139_104, 9_107_931_136, 51_380_224, 22),
}


def figures(cost):
    return cost.params, cost.macs, cost.activations, cost.convs


def thin(name):
    return nnx.eval_shape(lambda: deploy(registry.method(name).build()))


@pytest.mark.parametrize("name", REPORTED)
def test_the_official_figures(name):
    found = cost(thin(name))
    assert figures(found) == REPORTED[name]
    assert (found.params_honest, found.macs_honest) == (found.params, found.macs)


@pytest.mark.parametrize("body", ["auto", "reference", "kernel"])
@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_no_body_and_no_kernel_changes_a_count(monkeypatch, name, body):
    net = thin(name)
    monkeypatch.setattr(ops, "kernel", lambda name: Kernel(call=lambda x, *_: x, platform="cpu"))
    with ops.body(body):
        found = cost(net)
    assert figures(found) == REPORTED[name]
    assert "block_2.c1" in {piece.path for piece in found.work}


def test_the_train_form_costs_more():
    wide = cost(nnx.eval_shape(registry.method("span").build))
    assert wide.macs > REPORTED["span"][1] and wide.convs > REPORTED["span"][3]


class Net(nnx.Module):
    """A convolution, a product outside the words, statistics, and a dead convolution."""

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
def test_dead_work_is_no_mac_but_its_module_is_hooked(net):
    found = cost(net, side=8)
    assert found.macs == found.macs_honest == CONV + MIX + RAW
    assert (found.convs, found.activations) == (2, 64 * (4 + 6))
    assert found.params == (9 * 3 + 1) * 4 + (4 + 1) * 5 + 5 * 2 + (3 + 1) * 6
    assert found.params_honest == found.params - (3 + 1) * 6
    assert [(piece.path, piece.word, piece.macs, piece.needed) for piece in found.work] == [
        ("dead", "conv2d", DEAD, False),
        ("conv", "conv2d", CONV, True),
        ("mix", "linear", MIX, True),
        ("", "dot_general", RAW, True),
    ]


def test_what_the_counter_misses_stays_in_the_honest_figure():
    found = cost(Net(), side=8, uncounted={"mi?": "hand-written", "": "outside all modules"})
    assert (found.macs, found.macs_honest) == (CONV, CONV + MIX + RAW)


def test_what_is_counted_though_nobody_needs_it_is_no_honest_figure():
    found = cost(Net(), side=8, counted={"dea?": "returned beside the picture"})
    assert (found.macs, found.macs_honest) == (CONV + MIX + RAW + DEAD, CONV + MIX + RAW)


def test_an_idle_glob_is_an_error():
    with pytest.raises(IdleGlob) as caught:
        cost(Net(), side=8, uncounted={"mix": "fine", "mixer.*": "misspelt"})
    assert caught.value.problem == "the glob 'mixer.*' matches nothing"
    assert "conv, dead, mix" in caught.value.place


def test_costs_grow_with_the_area():
    small, large = cost(Net(), side=4), cost(Net(), side=8)
    assert (large.macs, large.activations) == (4 * small.macs, 4 * small.activations)


class Repeated(nnx.Module):
    """A part that a scan runs four times."""

    def __init__(self):
        self.part = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return lax.scan(lambda x, _: (self.part(x), None), x, length=4)[0]


class Remat(nnx.Module):
    """A part whose activations are made again on the way back."""

    def __init__(self):
        self.part = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda part, x: part(x))(self.part, x)


@pytest.mark.parametrize("build, times", [(Repeated, 4), (Remat, 1)])
def test_parts_are_found_inside_of_transformations(build, times):
    (piece,) = cost(build(), side=8).work
    assert (piece.path, piece.macs, piece.convs) == ("part", times * 64 * 81, times)


def test_nothing_is_computed():
    huge = nnx.eval_shape(lambda: registry.method("span").build(channels=4096))
    assert cost(huge, side=4096).params > 10**9
