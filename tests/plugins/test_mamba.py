"""Mamba's layer equals its recurrence, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
from esrjax_plugins.blocks.mamba import CausalConv1d, Mamba
from flax import nnx
from optional import torch

from esrjax.nn.state_dict import KeyMap, cast, perturb_weights, to_state_dict

NO_RENAMES = KeyMap({})


def normal_array(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def silu(x):
    return x / (1 + np.exp(-x))


def token_by_token(state_dict, h, d_state):
    """The layer in NumPy from a PyTorch state dict, for tokens `h (L, C)`."""
    x, z = np.split(h @ state_dict["in_proj.weight"].T, 2, -1)
    kernel = state_dict["conv1d.weight"][:, 0]
    padded = np.concatenate([np.zeros((kernel.shape[1] - 1, x.shape[1])), x])
    A, state, outputs = -np.exp(state_dict["A_log"]), 0, []
    for t, gate in enumerate(silu(z)):
        window = padded[t : t + kernel.shape[1]]
        x = silu(state_dict["conv1d.bias"] + (kernel.T * window).sum(0))
        dt, b, c = np.split(state_dict["x_proj.weight"] @ x, [-2 * d_state, -d_state])
        delta = np.logaddexp(state_dict["dt_proj.weight"] @ dt + state_dict["dt_proj.bias"], 0)
        state = np.exp(delta[:, None] * A) * state + np.outer(delta * x, b)
        outputs.append(state_dict["out_proj.weight"] @ ((state @ c + state_dict["D"] * x) * gate))
    return np.stack(outputs)


def test_layer_equals_the_recurrence_token_by_token():
    with jax.enable_x64(True):
        net = perturb_weights(cast(Mamba(6, d_state=5, rngs=nnx.Rngs(0)), jnp.float64), 0.3)
        h = normal_array(2, 9, 6)
        outputs = jax.jit(net)(jnp.asarray(h))
    for tokens, output in zip(h, outputs, strict=True):
        np.testing.assert_allclose(
            output, token_by_token(to_state_dict(net, NO_RENAMES), tokens, 5), atol=1e-12
        )


def test_causal_convolution_equals_pytorchs_truncated():
    conv, torch_conv = (
        CausalConv1d(6, 4, rngs=nnx.Rngs(0)),
        torch.nn.Conv1d(6, 6, 4, groups=6, padding=3),
    )
    torch_conv.load_state_dict(
        {k: torch.tensor(v) for k, v in to_state_dict(conv, NO_RENAMES).items()}
    )
    x = normal_array(2, 9, 6).astype(np.float32)
    expected = torch_conv(torch.tensor(x.swapaxes(1, 2)))[..., :9].detach().numpy().swapaxes(1, 2)
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=0, atol=1e-6)


def test_initialization_of_decays_and_step_sizes():
    net = Mamba(48, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.exp(net.A_log[...])[7], np.arange(1, 17), rtol=1e-6)
    np.testing.assert_array_equal(net.D[...], np.ones(96))
    dt = np.logaddexp(net.dt_proj.bias[...], 0)
    assert 1e-3 <= dt.min() < 2e-3 and 5e-2 < dt.max() <= 1e-1 + 1e-6
    assert 0.9 / 3**0.5 < np.abs(net.dt_proj.weight[...]).max() <= 1 / 3**0.5
