"""DWMamba's wavelet, its sorted scan, its routing, and how it starts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.dwmamba import METHOD
from esrjax_plugins.parts import attentive
from esrjax_plugins.parts.attentive import Kind, SortedScan, best
from esrjax_plugins.parts.wavelet import haar, inverse_haar
from flax import nnx

from esrjax.model import open_method
from esrjax.network.naming import Naming
from esrjax.network.taps import taps
from esrjax.network.weights import tensors

SMALL = dict(channels=12, groups=1, blocks=2, heads=2, window=4, states=2, kinds=3, rank=2)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


# --- the wavelet -------------------------------------------------------------------------------


def test_the_wavelet_loses_nothing_and_keeps_lengths():
    x = drawn(2, 4, 6, 3)
    bands = haar(x)
    np.testing.assert_allclose(inverse_haar(*bands), x, atol=1e-6)
    np.testing.assert_allclose(sum(jnp.vdot(b, b) for b in bands), jnp.vdot(x, x), rtol=1e-6)


def test_the_bands_are_mean_right_below_and_diagonal():
    cell = jnp.asarray([[1.0, 2.0], [4.0, 8.0]])[None, :, :, None]
    found = [float(band[0, 0, 0, 0]) for band in haar(cell)]
    np.testing.assert_allclose(found, [15 / 2, (10 - 5) / 2, (12 - 3) / 2, (9 - 6) / 2])


# --- the scan ----------------------------------------------------------------------------------


class Asked(SortedScan):
    """A scan whose kinds are given: channel 0 of its input."""

    def seen(self, u, *context):
        return context[0]


def sorted_scan(prompts_move):
    net = Asked(6, states=2, kinds=3, rank=2, routed=3, rngs=nnx.Rngs(0))
    net.route, net.prompts_move = (lambda scores: scores), prompts_move
    net.eval()
    return net


@pytest.mark.parametrize("prompts_move", [True, False])
def test_tokens_are_scanned_by_kind_and_ties_in_raster_order(prompts_move):
    net, u, basis = sorted_scan(prompts_move), drawn(1, 3, 4, 6), drawn(2, 2)
    kinds = np.asarray([2, 0, 1, 0, 2, 2, 1, 0, 0, 1, 2, 0])
    scores = jax.nn.one_hot(kinds, 3).reshape(1, 3, 4, 3)
    order = np.concatenate([np.flatnonzero(kinds == kind) for kind in range(3)])
    z = net.in_proj(u)
    z = (z * jax.nn.sigmoid(net.CPE(z))).reshape(1, 12, -1)[:, order]
    prompts = (net.embeddingB.weight[...] @ basis)[kinds][None]
    scanned = net.selectiveScan(z, prompts[:, order] if prompts_move else prompts)
    wanted = np.zeros((1, 12, 6))
    wanted[:, order] = net.out_proj(net.out_norm(scanned))
    np.testing.assert_allclose(net(u, basis, scores).reshape(1, 12, 6), wanted, atol=1e-6)


def test_the_best_kind_is_one_hot_and_has_the_gradient_of_softmax():
    scores, weights = drawn(1, 5, 4), drawn(1, 5, 4)[:, ::-1]
    np.testing.assert_array_equal(best(scores), np.eye(4)[np.argmax(scores, -1)])
    slope = jax.grad(lambda scores: jnp.vdot(best(scores), weights))(scores)
    soft = jax.grad(lambda scores: jnp.vdot(jax.nn.softmax(scores), weights))(scores)
    np.testing.assert_allclose(slope, soft, atol=1e-6)


@pytest.mark.parametrize("noise", [False, True])
def test_kinds_are_drawn_in_training_and_where_it_is_asked_for(noise):
    kind, scores = Kind(noise), jnp.zeros((2, 300, 4)).at[..., 1].set(1e-3)
    chances = np.asarray(kind(scores)).mean((0, 1))
    np.testing.assert_allclose(chances, 0.25, atol=0.06)
    kind.eval()
    still = np.asarray(kind(scores))[..., 1].all()
    assert still == (not noise)


def test_noise_is_the_pictures_own():
    kind, scores = Kind(True), drawn(2, 50, 4) / 10
    np.testing.assert_array_equal(kind(scores), kind(scores))
    np.testing.assert_array_equal(kind(scores)[1:], kind(scores[1:]))
    assert (kind(scores) != kind(scores + 1e-3)).any()


# --- the network -------------------------------------------------------------------------------


def test_it_is_mirrored_with_the_edge_repeated_and_cropped():
    net = METHOD.build(**SMALL)
    net.eval()
    run, x = jax.jit(lambda x: net(x)), jnp.abs(drawn(1, 6, 7, 3))
    mirrored = jnp.concatenate([x, x[:, ::-1][:, :2]], 1)
    mirrored = jnp.concatenate([mirrored, mirrored[:, :, :-2:-1]], 2)
    np.testing.assert_allclose(run(x), run(mirrored)[:, :24, :28], atol=1e-6)


def test_it_starts_as_the_team_started_it():
    held = tensors(METHOD.build(**SMALL), Naming(METHOD.torch_names))
    layer = "layers.0.layers.1.ll_branch."
    for name in ("assm.hf_gate_route", "assm.hf_gate_cpe", "wqkv.bias", "assm.route.0.bias"):
        assert not held[layer + name].any(), name
    for name in ("scale1", "scale2"):
        np.testing.assert_allclose(held[layer + name], 1e-4)
    for name in ("wqkv.weight", "convffn1.fc1.weight", "win_mhsa.relative_position_bias_table"):
        np.testing.assert_allclose(held[layer + name].std(), 0.02, rtol=0.2)
    assert np.abs(held[layer + "assm.embeddingB.weight"]).max() <= 1 / 3
    assert held[layer + "assm.hf_gate_cpe"].shape == (1, 24, 1, 1)


def test_the_teacher_is_a_matter_of_sizes():
    teacher = nnx.eval_shape(lambda: METHOD.build(channels=132, groups=6, blocks=4))
    assert sum(1 for _, part in nnx.iter_modules(teacher) if isinstance(part, SortedScan)) == 24


def test_with_the_teams_noise_it_is_the_teams_output(reference, monkeypatch):
    golden = np.load(reference / "golden/dwmamba.npz")
    calls = itertools.count(1000)

    def injected(scores):
        uniform = np.random.RandomState(next(calls)).random_sample(scores.shape)
        uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
        return jnp.asarray(-np.log(-np.log(uniform)), jnp.float32)

    monkeypatch.setattr(attentive, "gumbel", injected)
    checkpoint = reference / "weights/team12_DWMamba.pth"
    net = open_method("dwmamba", checkpoint, {"noise": True}).net
    graph, state = nnx.split(net)
    run = jax.jit(lambda state, x: taps(nnx.merge(graph, state), x))
    y, parts = run(state, golden["x0"].transpose(0, 2, 3, 1))
    kinds = [parts[path].argmax(-1)[0] for path in parts if path.endswith("assm.kind")]
    np.testing.assert_array_equal(kinds, golden["route0_gumbel"])
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), golden["y0_gumbel"], rtol=0, atol=1e-5)
