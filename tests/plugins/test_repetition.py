"""Groups in turn and by a scan: the same network, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins import hat, mambairv2, swinir
from esrjax_plugins.parts import chance
from flax import nnx

from esrjax.network.cost import cost
from esrjax.network.taps import taps
from esrjax.network.weights import scattered
from esrjax.recognition import template
from esrjax.testing import QUICK

GROUPS = 3
SMALL = dict(channels=6, groups=GROUPS, blocks=1, heads=2, window=4)
NETWORKS = {
    "swinir": (swinir.METHOD, SMALL | dict(drop=0.5)),
    "hat": (hat.METHOD, SMALL | dict(drop=0.5, compress=3, squeeze=3, further=(2,))),
    "mambairv2": (mambairv2.METHOD, SMALL | dict(states=2, kinds=3, rank=2, further=())),
}

SLOW = pytest.mark.slow  # half a minute of compilation together
GRADIENTS = ["swinir", pytest.param("hat", marks=SLOW), pytest.param("mambairv2", marks=SLOW)]


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def built(name, **how):
    method, sizes = NETWORKS[name]
    return scattered(method.build(**sizes, **how))


def scans(jaxpr):
    """The lengths of all scans that run groups: those of as many turns."""
    lengths = [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]
    return [length for length in lengths if length == GROUPS]


def slopes(name, **how):
    """Of training, where depth is drawn with another rate in every group: the loss first."""
    graph, state = nnx.split(built(name, **how))
    loss = lambda state: nnx.merge(graph, state)(drawn(2, 4, 8, 3)).sum()  # noqa: E731
    assert scans(jax.make_jaxpr(loss)(state).jaxpr) == [GROUPS] * how["scan"]
    run = jax.value_and_grad(loss, allow_int=True)
    return jax.tree.leaves(jax.jit(run, compiler_options=QUICK)(state))


@pytest.mark.parametrize("name", GRADIENTS)
def test_scanned_groups_are_the_same_groups(name, monkeypatch):
    keys = lambda x: jax.random.split(jax.random.key(1), len(x))  # noqa: E731 # whatever the rounding
    monkeypatch.setattr(chance, "keys", keys)
    pairs = zip(*(slopes(name, scan=scan) for scan in (True, False)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", GRADIENTS[:2])
def test_what_is_made_again_in_a_scan_is_the_same(name):
    """Although it may differ in a bit: the draws do not hang on that."""
    pairs = zip(*(slopes(name, scan=True, remat=remat) for remat in (True, False)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_group_of_another_kind_is_by_itself():
    net = built("swinir", scan=True)
    net.layers[0].residual_group.blocks[0].drop_path.deterministic = True
    jaxpr = jax.make_jaxpr(lambda x: net(x))(drawn(1, 4, 4, 3)).jaxpr
    assert [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"] == [GROUPS - 1]


def test_groups_that_are_looked_at_are_not_scanned_and_others_are():
    net, x = built("hat", scan=True), drawn(1, 4, 8, 3)
    net.eval()

    def run(only=None):
        return jax.jit(lambda x: taps(net, x, only), compiler_options=QUICK)(x)

    every, heads = run(), run({"head_2x"})
    assert f"layers.{GROUPS - 1}.residual_group.overlap_attn" in every[1]
    np.testing.assert_allclose(heads[0], every[0], atol=1e-4)
    np.testing.assert_allclose(heads[1]["head_2x"], every[1]["head_2x"], atol=1e-4)
    looked = jax.make_jaxpr(lambda x: taps(net, x, {"head_2x"}))(x).jaxpr
    assert scans(looked) == [GROUPS]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_scan_costs_what_its_turns_cost(name):
    method, sizes = NETWORKS[name]
    counts = [cost(template(method, "deploy", sizes | {"scan": scan}), side=16) for scan in (0, 1)]
    assert counts[0].macs == counts[1].macs and counts[0].params == counts[1].params
