"""Mamba: tokens that are read in turn by a state space which chooses what it keeps."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network import ops
from esrjax.network.layers import Linear, parameter, uniform
from esrjax.network.words import conv1d, einsum


class CausalConv(nnx.Module):
    """Depthwise over tokens `(N, L, C)`; each sees itself and the `taps - 1` before it."""

    def __init__(self, wide: int, taps: int, *, rngs: nnx.Rngs):
        self.weight = parameter(uniform(rngs, (taps, 1, wide), taps), torch_axes=(2, 1, 0))
        self.bias = parameter(uniform(rngs, (wide,), taps))

    def __call__(self, x: Array) -> Array:
        w = self.weight[...]
        x = jnp.pad(x, ((0, 0), (len(w) - 1, 0), (0, 0)))
        return conv1d(x, w, self.bias[...], groups=x.shape[-1])


class Mamba(nnx.Module):
    """Reads tokens `(N, L, C) -> (N, L, C)` in one direction, `states` states a channel.

    The steps have rank ⌈C/16⌉. Source: Mamba (arXiv:2312.00752), section 3.4 and Algorithm 2.
    """

    def __init__(
        self,
        channels: int,
        *,
        states: int = 16,
        expand: int = 2,
        taps: int = 4,
        rngs: nnx.Rngs,
    ):
        inner, rank = expand * channels, -(-channels // 16)
        self.ends = (rank, rank + states)  # of the steps and of the inputs among the projections
        self.in_proj = Linear(channels, 2 * inner, bias=False, rngs=rngs)
        self.conv1d = CausalConv(inner, taps, rngs=rngs)
        self.x_proj = Linear(inner, rank + 2 * states, bias=False, rngs=rngs)
        self.dt_proj = Linear(rank, inner, rngs=rngs)
        self.dt_proj.weight[...] = uniform(rngs, (rank, inner), rank)
        self.dt_proj.bias[...] = small_steps(rngs, inner)
        self.A_log = parameter(decays(inner, states))
        self.D = parameter(jnp.ones(inner))
        self.out_proj = Linear(inner, channels, bias=False, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x, gate = jnp.split(self.in_proj(tokens), 2, -1)
        x = jax.nn.silu(self.conv1d(x))
        step, b, c = jnp.split(self.x_proj(x), self.ends, -1)
        delta = jax.nn.softplus(self.dt_proj(step))
        y = ops.selective_scan(x, delta, -jnp.exp(self.A_log[...]), b, c, self.D[...])
        return self.out_proj(y * jax.nn.silu(gate))


class PromptedScan(nnx.Module):
    """The scan alone: `x (N, L, D)`, read out with the help of `prompts (N, L, S)`.

    Source: MambaIRv2 (arXiv:2411.15269), section 3.2; names and shapes are those of its code.
    """

    def __init__(self, wide: int, states: int, *, rngs: nnx.Rngs):
        rank = -(-wide // 16)
        self.ends = (rank, rank + states)
        self.x_proj_weight = parameter(uniform(rngs, (1, rank + 2 * states, wide), wide))
        self.dt_projs_weight = parameter(uniform(rngs, (1, wide, rank), rank))
        self.dt_projs_bias = parameter(small_steps(rngs, wide)[None])
        self.A_logs = parameter(decays(wide, states))
        self.Ds = parameter(jnp.ones(wide))

    def __call__(self, x: Array, prompts: Array) -> Array:
        projected = einsum("nlc,oc->nlo", x, self.x_proj_weight[0])
        step, b, c = jnp.split(projected, self.ends, -1)
        step = einsum("nlr,cr->nlc", step, self.dt_projs_weight[0])
        delta = jax.nn.softplus(step + self.dt_projs_bias[...][None])
        a = -jnp.exp(self.A_logs[...])
        return ops.selective_scan(x, delta, a, b, c + prompts, self.Ds[...])


# --- how it starts -----------------------------------------------------------------------------


def decays(wide: int, states: int) -> Array:
    """`ln 1, ln 2, ...` for the states of every channel: `(wide, states)`."""
    return jnp.tile(jnp.log(jnp.arange(1, states + 1, dtype=jnp.float32)), (wide, 1))


def small_steps(rngs: nnx.Rngs, wide: int) -> Array:
    """What softplus turns into steps between 1e-3 and 1e-1, uniform in their logarithm."""
    low, high = math.log(1e-3), math.log(1e-1)
    steps = jnp.exp((high + low) / 2 + (high - low) / 2 * uniform(rngs, (wide,), 1))
    return steps + jnp.log(-jnp.expm1(-steps))
