"""Mamba reads tokens in one direction, as its recurrence says."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from esrjax_plugins.parts.mamba import CausalConv, Mamba
from flax import nnx

from esrjax.network.naming import Naming
from esrjax.network.weights import cast, scattered, tensors

SAME = Naming({})


def drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def silu(x):
    return x / (1 + np.exp(-x))


def token_by_token(held, h, states):
    """The layer in NumPy from its tensors under PyTorch's names, for tokens `h (L, C)`."""
    x, z = np.split(h @ held["in_proj.weight"].T, 2, -1)
    taps = held["conv1d.weight"][:, 0]
    past = np.concatenate([np.zeros((taps.shape[1] - 1, x.shape[1])), x])
    a, state, outputs = -np.exp(held["A_log"]), 0, []
    for t, gate in enumerate(silu(z)):
        seen = past[t : t + taps.shape[1]]
        x = silu(held["conv1d.bias"] + (taps.T * seen).sum(0))
        step, b, c = np.split(held["x_proj.weight"] @ x, [-2 * states, -states])
        delta = np.logaddexp(held["dt_proj.weight"] @ step + held["dt_proj.bias"], 0)
        state = np.exp(delta[:, None] * a) * state + np.outer(delta * x, b)
        outputs.append(held["out_proj.weight"] @ ((state @ c + held["D"] * x) * gate))
    return np.stack(outputs)


def test_it_is_its_recurrence():
    with jax.enable_x64(True):
        net = scattered(cast(Mamba(6, states=5, rngs=nnx.Rngs(0)), jnp.float64), 0.3)
        h = drawn(2, 9, 6)
        found = jax.jit(net)(jnp.asarray(h))
    for tokens, output in zip(h, found, strict=True):
        np.testing.assert_allclose(
            output, token_by_token(tensors(net, SAME), tokens, 5), atol=1e-12
        )


def test_its_convolution_is_pytorchs_cut_to_the_past():
    ours, theirs = CausalConv(6, 4, rngs=nnx.Rngs(0)), torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in tensors(ours, SAME).items()})
    x = drawn(2, 9, 6).astype(np.float32)
    wanted = theirs(torch.tensor(x.swapaxes(1, 2)))[..., :9].detach().numpy().swapaxes(1, 2)
    np.testing.assert_allclose(ours(jnp.asarray(x)), wanted, rtol=0, atol=1e-6)


def test_it_starts_with_known_decays_and_small_steps():
    net = Mamba(48, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(np.exp(net.A_log[...])[7], np.arange(1, 17), rtol=1e-6)
    np.testing.assert_array_equal(net.D[...], np.ones(96))
    steps = np.logaddexp(net.dt_proj.bias[...], 0)
    assert 1e-3 <= steps.min() < 2e-3 and 5e-2 < steps.max() <= 1e-1 + 1e-6
    assert 0.9 / 3**0.5 < np.abs(net.dt_proj.weight[...]).max() <= 1 / 3**0.5
