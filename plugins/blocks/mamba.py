"""Mamba: selective state-space layers over token sequences `(N, L, C)`.

Symbols are those of Mamba (arXiv:2312.00752) and of the released code: `d_inner` channels of the
scan, `d_state` states per channel, `dt_rank` the rank of the step sizes, `d_conv` the length of the
causal convolution.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.nn import ops
from esrjax.nn.functional import conv1d
from esrjax.nn.layers import Linear, param, uniform_init


class CausalConv1d(nnx.Module):
    """Causal depthwise convolution over tokens `(N, L, C)`.

    Output `t` depends on inputs `t − kernel_size + 1` to `t`.
    """

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.weight = param(
            uniform_init(rngs, (kernel_size, 1, channels), kernel_size), torch_axes=(2, 1, 0)
        )
        self.bias = param(uniform_init(rngs, (channels,), kernel_size))

    def __call__(self, x: Array) -> Array:
        w = self.weight[...]
        x = jnp.pad(x, ((0, 0), (len(w) - 1, 0), (0, 0)))
        return conv1d(x, w, self.bias[...], groups=x.shape[-1])


class Mamba(nnx.Module):
    """Mamba layer: `(N, L, C) -> (N, L, C)`, scanned in one direction.

    The step sizes have rank ⌈C / 16⌉. Source: Mamba (arXiv:2312.00752), section 3.4, Algorithm 2.

    Args:
        channels: `C` (`d_model`).
        d_state: States per channel of the scan.
        expand: `d_inner / C`.
        d_conv: Length of the causal convolution.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        rngs: nnx.Rngs,
    ):
        d_inner, dt_rank = expand * channels, -(-channels // 16)
        self.split_points = (dt_rank, dt_rank + d_state)  # of dt, B and C in x_proj's output
        self.in_proj = Linear(channels, 2 * d_inner, bias=False, rngs=rngs)
        self.conv1d = CausalConv1d(d_inner, d_conv, rngs=rngs)
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False, rngs=rngs)
        self.dt_proj = Linear(dt_rank, d_inner, rngs=rngs)
        self.dt_proj.weight[...] = uniform_init(rngs, (dt_rank, d_inner), dt_rank)
        self.dt_proj.bias[...] = dt_bias_init(rngs, d_inner)
        self.A_log = param(a_log_init(d_inner, d_state))
        self.D = param(np.ones(d_inner))
        self.out_proj = Linear(d_inner, channels, bias=False, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x, gate = jnp.split(self.in_proj(tokens), 2, -1)
        x = jax.nn.silu(self.conv1d(x))
        dt, b, c = jnp.split(self.x_proj(x), self.split_points, -1)
        delta = jax.nn.softplus(self.dt_proj(dt))
        y = ops.selective_scan(x, delta, -jnp.exp(self.A_log[...]), b, c, self.D[...])
        return self.out_proj(y * jax.nn.silu(gate))


# --- initialization ---


def a_log_init(d_inner: int, d_state: int) -> NDArray[np.float64]:
    """Return `ln 1, ln 2, ..., ln d_state` for every channel: `(d_inner, d_state)` (S4D-real)."""
    return np.tile(np.log(np.arange(1, d_state + 1)), (d_inner, 1))


def dt_bias_init(rngs: nnx.Rngs, d_inner: int) -> Array:
    """Return `(d_inner,)` biases whose softplus is log-uniform in [1e-3, 1e-1]."""
    log_min, log_max = math.log(1e-3), math.log(1e-1)
    dt = jnp.exp(
        (log_max + log_min) / 2 + (log_max - log_min) / 2 * uniform_init(rngs, (d_inner,), 1)
    )
    return dt + jnp.log(-jnp.expm1(-dt))  # the inverse of softplus
