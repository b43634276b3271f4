"""Attentive layers of MambaIRv2 and DWMamba: window attention, then one scan over sorted tokens.

Source: MambaIRv2 (arXiv:2411.15269), section 3. Features are `(N, h, w, C)`; tokens `(N, L, C)` are
their pixels in raster order, `L = h·w`. Names are those of the released code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from esrjax.nn import ops
from esrjax.nn.functional import at_least_f32, einsum, gelu, linear, matmul
from esrjax.nn.layers import Conv2d, LayerNorm, Linear, Sequential, param, uniform_init

from .feed_forward import ConvFFN, GatedMLP
from .mamba import a_log_init, dt_bias_init
from .stochastic_depth import image_keys
from .window_attention import WindowAttention, relative_position_index


class AttentiveLayer(nnx.Module):
    """Window attention and an ASSM, each followed by a feed-forward, with learned skip scales.

    Maps `t (N, h, w, C)` to the same shape. `context`, the arguments after `t`, is passed on to the
    ASSM; MambaIRv2 has none. The skip scales (one per channel) start at 1e-4.

    Args:
        channels: `C`.
        assm: The attentive state-space module.
        num_heads: Heads of the window attention.
        window_size: Side of the windows in pixels.
        shift_size: Cyclic shift of the windows in pixels.
        ffn: Class of the two feed-forwards.
    """

    def __init__(
        self,
        channels: int,
        assm: "ASSM",
        *,
        num_heads: int,
        window_size: int,
        shift_size: int,
        ffn: type[ConvFFN | GatedMLP] = ConvFFN,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(channels) for _ in range(4))
        self.wqkv = Linear(channels, 3 * channels, rngs=rngs)
        self.win_mhsa = WindowAttention(channels, num_heads, window_size, shift_size, rngs=rngs)
        self.assm = assm
        self.convffn1, self.convffn2 = (ffn(channels, assm.d_inner, rngs=rngs) for _ in "12")
        self.embeddingA = Embedding(assm.inner_rank, assm.d_state, rngs=rngs)
        self.scale1, self.scale2 = (param(np.full(channels, 1e-4)) for _ in range(2))

    def __call__(self, t: Array, *context: Array) -> Array:
        a = self.win_mhsa(self.wqkv(self.norm1(t))) + t
        a = a + self.convffn1(self.norm2(a))
        t = t * self.scale1[...][None, None, None, :] + a
        b = self.assm(self.norm3(t), self.embeddingA.weight[...], *context) + t
        b = b + self.convffn2(self.norm4(b))
        return t * self.scale2[...][None, None, None, :] + b


class ASSM(nnx.Module):
    """Attentive state-space module: one selective scan over tokens sorted by their routed class.

    A router assigns each token to one of `num_tokens` classes; sorting brings similar tokens
    together. The class selects a prompt, a row of the prompt table `embeddingB · embeddingA`, which
    is added to the scan's readout (in Mamba's notation `C`, not the number of channels). Maps
    `u (N, h, w, C)` to the same shape, given `basis (inner_rank, d_state)`, the weight of the
    layer's `embeddingA`. Source: MambaIRv2 (arXiv:2411.15269), section 3.2.

    Args:
        channels: Channels `C` of the features.
        d_state: States of each channel of the scan.
        num_tokens: Number of classes, that is of rows of the prompt table.
        inner_rank: Rank of the prompt table.
        router_channels: Channels of the router's input; by default `C`.
        mlp_ratio: Channels of the scan (`d_inner`) as a multiple of `C`.
        eval_noise: Sample classes with Gumbel noise in evaluation too, as the released code does.
    """

    # Whether prompts are sorted with their tokens. MambaIRv2 sorts the tokens only, so position i
    # of the sorted sequence gets the prompt of the i-th token in raster order. Trained weights
    # depend on it; DWMamba sorts both.
    sort_prompts = False

    def __init__(
        self,
        channels: int,
        *,
        d_state: int,
        num_tokens: int,
        inner_rank: int,
        router_channels: int | None = None,
        mlp_ratio: int = 2,
        eval_noise: bool = False,
        rngs: nnx.Rngs,
    ):
        d_inner, router_channels = mlp_ratio * channels, router_channels or channels
        hidden = router_channels // 3
        self.inner_rank, self.d_state, self.d_inner = inner_rank, d_state, d_inner
        self.route = Sequential(
            [
                Linear(router_channels, hidden, rngs=rngs),
                gelu,
                Linear(hidden, num_tokens, rngs=rngs),
            ]
        )
        self.gumbel_routing = GumbelRouting(eval_noise)
        self.embeddingB = Embedding(num_tokens, inner_rank, rngs=rngs)
        self.in_proj = Sequential([Conv2d(channels, d_inner, 1, rngs=rngs)])
        self.CPE = Sequential([Conv2d(d_inner, d_inner, groups=d_inner, rngs=rngs)])
        self.selectiveScan = SelectiveScan(d_inner, d_state, rngs=rngs)
        self.out_norm = LayerNorm(d_inner)
        self.out_proj = Linear(d_inner, channels, rngs=rngs)

    def __call__(self, u: Array, basis: Array, *context: Array) -> Array:
        classes = self.gumbel_routing(tokens(self.route(self.router_input(u, *context))))
        prompts = linear(classes, matmul(self.embeddingB.weight[...], basis))
        order = jnp.argsort(classes.argmax(-1), stable=True)
        z = self.in_proj(u)
        z = gather_tokens(tokens(z * jax.nn.sigmoid(self.gate_input(z, *context))), order)
        prompts = gather_tokens(prompts, order) if self.sort_prompts else prompts
        y = self.out_proj(self.out_norm(self.selectiveScan(z, prompts)))
        return gather_tokens(y, jnp.argsort(order)).reshape(u.shape)

    def router_input(self, u: Array, *context: Array) -> Array:
        """Return what the router classifies: `(N, h, w, router_channels)`."""
        return u

    def gate_input(self, z: Array, *context: Array) -> Array:
        """Return the gate of `z (N, h, w, d_inner)` before the sigmoid, of the same shape."""
        return self.CPE(z)


class HFGuidedASSM(ASSM):
    """ASSM whose router and gate also receive the high bands, times a learned scale per channel.

    These scales (`hf_gate_route`, `hf_gate_cpe`) are zero at first. Called with `u (N, h, w, C)`,
    the basis of the prompts and the merged high bands `(N, h, w, hf_channels)`.
    """

    sort_prompts = True

    def __init__(self, channels: int, hf_channels: int, *, rngs: nnx.Rngs, **kwargs: Any):
        super().__init__(channels, router_channels=2 * channels, rngs=rngs, **kwargs)
        self.hf_align = Sequential(
            [
                Conv2d(hf_channels, hf_channels, groups=hf_channels, rngs=rngs),
                jax.nn.silu,
                Conv2d(hf_channels, channels, 1, rngs=rngs),
            ]
        )
        self.cpe_hf_proj = Conv2d(hf_channels, 2 * channels, 1, rngs=rngs)
        self.hf_gate_route = param(np.zeros(channels))
        self.hf_gate_cpe = param(np.zeros((1, 1, 1, 2 * channels)), torch_axes=(0, 3, 1, 2))

    def router_input(self, u: Array, *context: Array) -> Array:
        (hf,) = context
        gate = self.hf_gate_route[...][None, None, None, :]
        return jnp.concatenate([u, self.hf_align(hf) * gate], -1)

    def gate_input(self, z: Array, *context: Array) -> Array:
        (hf,) = context
        return self.CPE(z) + self.cpe_hf_proj(hf) * self.hf_gate_cpe[...]


class SelectiveScan(nnx.Module):
    """The selective scan of MambaIRv2: `x (N, L, d_inner)` and prompts to `(N, L, d_inner)`.

    `prompts (N, L, d_state)` are added to the readout `C`. Source: MambaIRv2 (arXiv:2411.15269),
    section 3.2; parameter names and shapes are those of its code, with a leading axis of one
    direction.
    """

    def __init__(self, d_inner: int, d_state: int, *, rngs: nnx.Rngs):
        dt_rank = -(-d_inner // 16)
        self.split_points = (dt_rank, dt_rank + d_state)
        self.x_proj_weight = param(uniform_init(rngs, (1, dt_rank + 2 * d_state, d_inner), d_inner))
        self.dt_projs_weight = param(uniform_init(rngs, (1, d_inner, dt_rank), dt_rank))
        self.dt_projs_bias = param(dt_bias_init(rngs, d_inner)[None])
        self.A_logs = param(a_log_init(d_inner, d_state))
        self.Ds = param(np.ones(d_inner))

    def __call__(self, x: Array, prompts: Array) -> Array:
        projected = einsum("nlc,oc->nlo", x, self.x_proj_weight[0])
        dt, b, c = jnp.split(projected, self.split_points, -1)
        dt = einsum("nlr,cr->nlc", dt, self.dt_projs_weight[0])
        delta = jax.nn.softplus(dt + self.dt_projs_bias[...][None])
        a = -jnp.exp(self.A_logs[...])
        return ops.selective_scan(x, delta, a, b, c + prompts, self.Ds[...])


class GumbelRouting(nnx.Module):
    """One-hot class of every token from router logits: `(N, L, num_tokens) -> (N, L, num_tokens)`.

    Classes are the argmax of the logits, in training with Gumbel noise added; with `eval_noise`
    also in evaluation, as in the released code. The gradient is that of softmax (straight-through).
    """

    def __init__(self, eval_noise: bool):
        self.eval_noise, self.deterministic = eval_noise, False

    def __call__(self, logits: Array) -> Array:
        noisy = at_least_f32(logits)
        if self.eval_noise or not self.deterministic:
            noisy += gumbel(noisy)
        return straight_through_argmax(noisy).astype(logits.dtype)


@jax.custom_jvp
def straight_through_argmax(logits: Array) -> Array:
    """Return the one-hot argmax of the last axis, with the gradient of softmax."""
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=logits.dtype)


@straight_through_argmax.defjvp
def _(logits: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return straight_through_argmax(*logits), jax.jvp(jax.nn.softmax, logits, tangents)[1]


def gumbel(logits: Array) -> Array:
    """Return Gumbel noise of the shape of `logits (N, L, num_tokens)`, with a key per image."""

    def sample(key: Array, logits: Array) -> Array:
        return jax.random.gumbel(key, logits.shape, logits.dtype)

    return jax.vmap(sample)(image_keys(logits), logits)


def torch_buffers(net: Any) -> dict[str, Any]:
    """Return the constant buffers that the official class stores in checkpoints."""
    return {"relative_position_index_SA": relative_position_index(net.window_size)}


class Embedding(nnx.Module):
    """A table `(num_rows, channels)`, initialized uniformly in ±1 / num_rows."""

    def __init__(self, num_rows: int, channels: int, *, rngs: nnx.Rngs):
        self.weight = param(uniform_init(rngs, (num_rows, channels), num_rows**2))


def tokens(x: Array) -> Array:
    """`(N, h, w, C) -> (N, h·w, C)`."""
    return x.reshape(len(x), -1, x.shape[-1])


def gather_tokens(tokens: Array, index: Array) -> Array:
    """Return `tokens[n, index[n, i]]` at position `i` of image `n`: `(N, L, C)`."""
    return jax.vmap(lambda tokens, index: tokens[index])(tokens, index)
