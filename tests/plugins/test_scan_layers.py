"""Residual groups unrolled and by a scan: the same network, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins import hat, mambairv2, swinir
from esrjax_plugins.blocks import stochastic_depth
from flax import nnx

from esrjax.loading import abstract_network
from esrjax.nn.cost import cost
from esrjax.nn.hooks import taps
from esrjax.nn.state_dict import perturb_weights
from esrjax.testing import FAST_COMPILE

NUM_GROUPS = 3
SMALL = dict(channels=6, num_groups=NUM_GROUPS, depth=1, num_heads=2, window_size=4)
NETWORKS = {
    "swinir": (swinir.METHOD, SMALL | dict(drop_path_rate=0.5)),
    "hat": (
        hat.METHOD,
        SMALL | dict(drop_path_rate=0.5, compress_ratio=3, squeeze_factor=3, extra_scales=(2,)),
    ),
    "mambairv2": (
        mambairv2.METHOD,
        SMALL | dict(d_state=2, num_tokens=3, inner_rank=2, extra_scales=()),
    ),
}

SLOW = pytest.mark.slow  # half a minute of compilation together
GRADIENTS = ["swinir", pytest.param("hat", marks=SLOW), pytest.param("mambairv2", marks=SLOW)]


def random_array(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def make_network(name, **kwargs):
    method, hparams = NETWORKS[name]
    return perturb_weights(method.build(**hparams, **kwargs))


def group_scans(jaxpr):
    """Lengths of all scans over groups, that is scans of `NUM_GROUPS` iterations."""
    lengths = [
        equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"
    ]
    return [length for length in lengths if length == NUM_GROUPS]


def loss_and_grads(name, **kwargs):
    """Loss and gradients in training, where stochastic depth has another rate in every group."""
    graph, state = nnx.split(make_network(name, **kwargs))
    loss = lambda state: nnx.merge(graph, state)(random_array(2, 4, 8, 3)).sum()  # noqa: E731
    assert group_scans(jax.make_jaxpr(loss)(state).jaxpr) == [NUM_GROUPS] * kwargs["scan_layers"]
    value_and_grad = jax.value_and_grad(loss, allow_int=True)
    return jax.tree.leaves(jax.jit(value_and_grad, compiler_options=FAST_COMPILE)(state))


@pytest.mark.parametrize("name", GRADIENTS)
def test_scanned_groups_have_the_same_gradients(name, monkeypatch):
    keys = lambda x: jax.random.split(jax.random.key(1), len(x))  # independent of rounding  # noqa: E731
    monkeypatch.setattr(stochastic_depth, "image_keys", keys)
    pairs = zip(
        *(loss_and_grads(name, scan_layers=scan_layers) for scan_layers in (True, False)),
        strict=True,
    )
    for scanned, unrolled in pairs:
        np.testing.assert_allclose(scanned, unrolled, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", GRADIENTS[:2])
def test_remat_in_a_scan_has_the_same_gradients(name, monkeypatch):
    """Recomputed activations may differ in a bit, but the keys of stochastic depth are saved."""
    image_keys = stochastic_depth.image_keys  # the two programs may differ in a bit, too
    monkeypatch.setattr(stochastic_depth, "image_keys", lambda x: image_keys(jnp.round(x, 2)))
    pairs = zip(
        *(loss_and_grads(name, scan_layers=True, remat=remat) for remat in (True, False)),
        strict=True,
    )
    for rematerialized, saved in pairs:
        np.testing.assert_allclose(rematerialized, saved, rtol=1e-3, atol=1e-3)


def test_a_group_of_another_structure_is_not_scanned():
    net = make_network("swinir", scan_layers=True)
    net.layers[0].residual_group.blocks[0].drop_path.deterministic = True
    jaxpr = jax.make_jaxpr(lambda x: net(x))(random_array(1, 4, 4, 3)).jaxpr
    assert [
        equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan"
    ] == [NUM_GROUPS - 1]


def test_groups_are_scanned_unless_their_outputs_are_captured():
    net, x = make_network("hat", scan_layers=True), random_array(1, 4, 8, 3)
    net.eval()

    def run(only=None):
        return jax.jit(lambda x: taps(net, x, only), compiler_options=FAST_COMPILE)(x)

    all_taps, head_tap = run(), run({"head_2x"})
    assert f"layers.{NUM_GROUPS - 1}.residual_group.overlap_attn" in all_taps[1]
    np.testing.assert_allclose(head_tap[0], all_taps[0], atol=1e-4)
    np.testing.assert_allclose(head_tap[1]["head_2x"], all_taps[1]["head_2x"], atol=1e-4)
    jaxpr = jax.make_jaxpr(lambda x: taps(net, x, {"head_2x"}))(x).jaxpr
    assert group_scans(jaxpr) == [NUM_GROUPS]


@pytest.mark.parametrize("name", NETWORKS)
def test_cost_does_not_depend_on_scan_layers(name):
    method, hparams = NETWORKS[name]
    counts = [
        cost(
            abstract_network(method, "deploy", hparams | {"scan_layers": scan_layers}),
            image_size=16,
        )
        for scan_layers in (False, True)
    ]
    assert counts[0].macs == counts[1].macs and counts[0].params == counts[1].params
