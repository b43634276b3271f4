"""DWMamba's wavelet, sorted scan, routing and initialization."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import load_npz
from esrjax_plugins.blocks import attentive_ssm
from esrjax_plugins.blocks.attentive_ssm import ASSM, GumbelRouting, straight_through_argmax
from esrjax_plugins.blocks.common import haar, inverse_haar
from esrjax_plugins.dwmamba import METHOD
from flax import nnx

from esrjax.inference import open_method
from esrjax.nn.hooks import taps
from esrjax.nn.state_dict import KeyMap, to_state_dict

SMALL = dict(
    channels=12,
    num_groups=1,
    depth=2,
    num_heads=2,
    window_size=4,
    d_state=2,
    num_tokens=3,
    inner_rank=2,
)


def normal_array(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


# --- the wavelet -------------------------------------------------------------------------------


def test_wavelet_is_invertible_and_orthonormal():
    x = normal_array(2, 4, 6, 3)
    bands = haar(x)
    np.testing.assert_allclose(inverse_haar(*bands), x, atol=1e-6)
    np.testing.assert_allclose(sum(jnp.vdot(b, b) for b in bands), jnp.vdot(x, x), rtol=1e-6)


def test_the_bands_are_mean_right_below_and_diagonal():
    cell = jnp.asarray([[1.0, 2.0], [4.0, 8.0]])[None, :, :, None]
    bands = [float(band[0, 0, 0, 0]) for band in haar(cell)]
    np.testing.assert_allclose(bands, [15 / 2, (10 - 5) / 2, (12 - 3) / 2, (9 - 6) / 2])


# --- the scan ----------------------------------------------------------------------------------


class GivenClasses(ASSM):
    """An ASSM whose router logits are given as its context."""

    def router_input(self, u, *context):
        return context[0]


def make_assm(sort_prompts):
    net = GivenClasses(
        6, d_state=2, num_tokens=3, inner_rank=2, router_channels=3, rngs=nnx.Rngs(0)
    )
    net.route, net.sort_prompts = (lambda logits: logits), sort_prompts
    net.eval()
    return net


@pytest.mark.parametrize("sort_prompts", [True, False])
def test_tokens_are_scanned_by_class_and_ties_in_raster_order(sort_prompts):
    net, u, basis = make_assm(sort_prompts), normal_array(1, 3, 4, 6), normal_array(2, 2)
    classes = np.asarray([2, 0, 1, 0, 2, 2, 1, 0, 0, 1, 2, 0])
    logits = jax.nn.one_hot(classes, 3).reshape(1, 3, 4, 3)
    order = np.concatenate([np.flatnonzero(classes == token_class) for token_class in range(3)])
    z = net.in_proj(u)
    z = (z * jax.nn.sigmoid(net.CPE(z))).reshape(1, 12, -1)[:, order]
    prompts = (net.embeddingB.weight[...] @ basis)[classes][None]
    scanned = net.selectiveScan(z, prompts[:, order] if sort_prompts else prompts)
    expected = np.zeros((1, 12, 6))
    expected[:, order] = net.out_proj(net.out_norm(scanned))
    np.testing.assert_allclose(net(u, basis, logits).reshape(1, 12, 6), expected, atol=1e-6)


def test_straight_through_argmax_has_the_gradient_of_softmax():
    logits, weights = normal_array(1, 5, 4), normal_array(1, 5, 4)[:, ::-1]
    np.testing.assert_array_equal(straight_through_argmax(logits), np.eye(4)[np.argmax(logits, -1)])
    grad = jax.grad(lambda logits: jnp.vdot(straight_through_argmax(logits), weights))(logits)
    softmax_grad = jax.grad(lambda logits: jnp.vdot(jax.nn.softmax(logits), weights))(logits)
    np.testing.assert_allclose(grad, softmax_grad, atol=1e-6)


@pytest.mark.parametrize("eval_noise", [False, True])
def test_classes_are_sampled_in_training_and_with_eval_noise(eval_noise):
    routing, logits = GumbelRouting(eval_noise), jnp.zeros((2, 300, 4)).at[..., 1].set(1e-3)
    frequencies = np.asarray(routing(logits)).mean((0, 1))
    np.testing.assert_allclose(frequencies, 0.25, atol=0.06)
    routing.eval()
    is_deterministic = np.asarray(routing(logits))[..., 1].all()
    assert is_deterministic == (not eval_noise)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    routing, logits = GumbelRouting(True), normal_array(2, 50, 4) / 10
    np.testing.assert_array_equal(routing(logits), routing(logits))
    np.testing.assert_array_equal(routing(logits)[1:], routing(logits[1:]))
    assert (routing(logits) != routing(logits + 1e-3)).any()


# --- the network -------------------------------------------------------------------------------


def test_input_is_padded_symmetrically_and_output_cropped():
    net = METHOD.build(**SMALL)
    net.eval()
    run, x = jax.jit(lambda x: net(x)), jnp.abs(normal_array(1, 6, 7, 3))
    padded = jnp.concatenate([x, x[:, ::-1][:, :2]], 1)
    padded = jnp.concatenate([padded, padded[:, :, :-2:-1]], 2)
    np.testing.assert_allclose(run(x), run(padded)[:, :24, :28], atol=1e-6)


def test_initialization_is_the_official_one():
    state_dict = to_state_dict(METHOD.build(**SMALL), KeyMap(METHOD.torch_names))
    layer = "layers.0.layers.1.ll_branch."
    for name in ("assm.hf_gate_route", "assm.hf_gate_cpe", "wqkv.bias", "assm.route.0.bias"):
        assert not state_dict[layer + name].any(), name
    for name in ("scale1", "scale2"):
        np.testing.assert_allclose(state_dict[layer + name], 1e-4)
    for name in ("wqkv.weight", "convffn1.fc1.weight", "win_mhsa.relative_position_bias_table"):
        np.testing.assert_allclose(state_dict[layer + name].std(), 0.02, rtol=0.2)
    assert np.abs(state_dict[layer + "assm.embeddingB.weight"]).max() <= 1 / 3
    assert state_dict[layer + "assm.hf_gate_cpe"].shape == (1, 24, 1, 1)


def test_teacher_is_the_network_with_other_hparams():
    teacher = nnx.eval_shape(lambda: METHOD.build(channels=132, num_groups=6, depth=4))
    assert sum(1 for _, module in nnx.iter_modules(teacher) if isinstance(module, ASSM)) == 24


def test_output_with_injected_noise_is_the_official_one(reference, monkeypatch):
    golden = load_npz(reference / "golden/dwmamba.npz")
    calls = itertools.count(1000)

    def injected_noise(logits):
        uniform = np.random.RandomState(next(calls)).random_sample(logits.shape)
        uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
        return jnp.asarray(-np.log(-np.log(uniform)), jnp.float32)

    monkeypatch.setattr(attentive_ssm, "gumbel", injected_noise)
    checkpoint = reference / "weights/team12_DWMamba.pth"
    net = open_method("dwmamba", checkpoint, {"eval_noise": True}).net
    graph, state = nnx.split(net)
    forward = jax.jit(lambda state, x: taps(nnx.merge(graph, state), x))
    y, outputs = forward(state, golden["x0"].transpose(0, 2, 3, 1))
    classes = [
        outputs[path].argmax(-1)[0] for path in outputs if path.endswith("assm.gumbel_routing")
    ]
    np.testing.assert_array_equal(classes, golden["route0_gumbel"])
    np.testing.assert_allclose(y.transpose(0, 3, 1, 2), golden["y0_gumbel"], rtol=0, atol=1e-5)
