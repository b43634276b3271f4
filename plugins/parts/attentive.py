"""The layer of MambaIRv2: attention in windows, then one scan over tokens sorted by kind.

Source: MambaIRv2 (arXiv:2411.15269), section 3. Features are `(N, h, w, C)`, tokens `(N, L, C)`
in raster order.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.network import ops
from esrjax.network.layers import Conv2d, LayerNorm, Linear, Sequential, normal, parameter, uniform
from esrjax.network.words import gelu, linear, matmul

from . import windows
from .feed_forward import ConvFFN
from .mamba import PromptedScan


class AttentiveLayer(nnx.Module):
    """Window attention and a scan, each followed by a feed-forward, with weighted skips.

    side, shift: of the windows, pixels. What it is called with after the features is passed on
    to the scan.
    """

    def __init__(
        self,
        channels: int,
        scan: "SortedScan",
        *,
        heads: int,
        side: int,
        shift: int,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(channels) for _ in range(4))
        self.wqkv = Linear(channels, 3 * channels, rngs=rngs)
        self.win_mhsa = WindowAttention(channels, heads, side, shift, rngs=rngs)
        self.assm = scan
        self.convffn1, self.convffn2 = (ConvFFN(channels, 2 * channels, rngs=rngs) for _ in "12")
        self.embeddingA = Embedding(scan.rank, scan.states, rngs=rngs)
        self.scale1, self.scale2 = (parameter(jnp.full(channels, 1e-4)) for _ in range(2))

    def __call__(self, t: Array, *context: Array) -> Array:
        a = self.win_mhsa(self.wqkv(self.norm1(t))) + t
        a = a + self.convffn1(self.norm2(a))
        t = t * self.scale1[...][None, None, None, :] + a
        b = self.assm(self.norm3(t), self.embeddingA.weight[...], *context) + t
        b = b + self.convffn2(self.norm4(b))
        return t * self.scale2[...][None, None, None, :] + b


class WindowAttention(nnx.Module):
    """`qkv (N, h, w, 3·C) -> (N, h, w, C)`: in windows of `side` pixels, rolled by `shift`."""

    def __init__(self, channels: int, heads: int, side: int, shift: int, *, rngs: nnx.Rngs):
        self.heads, self.side, self.shift = heads, side, shift
        table = normal(rngs, ((2 * side - 1) ** 2, heads), 0.02)
        self.relative_position_bias_table = parameter(table)
        self.proj = Linear(channels, channels, rngs=rngs)

    def __call__(self, qkv: Array) -> Array:
        high, wide = qkv.shape[1:3]
        side, shift = self.side, self.shift
        qkv = jnp.roll(qkv, (-shift, -shift), (1, 2))
        parts = jnp.split(windows.tiles(qkv, side, side), 3, -1)
        q, k, v = (windows.heads(part, self.heads) for part in parts)
        table = self.relative_position_bias_table[...]
        bias = table[windows.relative_positions(side)].transpose(2, 0, 1)
        mask = windows.shift_mask(high, wide, side, shift) if shift else None
        mask = None if mask is None else jnp.asarray(mask, qkv.dtype)
        y = self.proj(windows.from_heads(ops.window_attention(q, k, v, bias, mask)))
        return jnp.roll(windows.from_tiles(y, side, side, high, wide), (shift, shift), (1, 2))


class SortedScan(nnx.Module):
    """Sorts tokens by kind, so that like follows like, and scans them once.

    What a kind is asked for is its prompt, a row of `embeddingB · basis`. kinds, rank: of the
    prompts. routed: channels that the router sees. noise: draw kinds outside of training too.
    """

    prompts_move = False  # with their tokens; in MambaIRv2 they stay, so that others meet them

    def __init__(
        self,
        channels: int,
        *,
        states: int,
        kinds: int,
        rank: int,
        routed: int | None = None,
        noise: bool = False,
        rngs: nnx.Rngs,
    ):
        inner, routed = 2 * channels, routed or channels
        hidden = routed // 3
        self.rank, self.states = rank, states
        self.route = Sequential(
            [Linear(routed, hidden, rngs=rngs), gelu, Linear(hidden, kinds, rngs=rngs)]
        )
        self.kind = Kind(noise)
        self.embeddingB = Embedding(kinds, rank, rngs=rngs)
        self.in_proj = Sequential([Conv2d(channels, inner, 1, rngs=rngs)])
        self.CPE = Sequential([Conv2d(inner, inner, groups=inner, rngs=rngs)])
        self.selectiveScan = PromptedScan(inner, states, rngs=rngs)
        self.out_norm = LayerNorm(inner)
        self.out_proj = Linear(inner, channels, rngs=rngs)

    def __call__(self, u: Array, basis: Array, *context: Array) -> Array:
        kinds = self.kind(tokens(self.route(self.seen(u, *context))))
        prompts = linear(kinds, matmul(self.embeddingB.weight[...], basis))
        order = jnp.argsort(kinds.argmax(-1), stable=True)
        z = self.in_proj(u)
        z = moved(tokens(z * jax.nn.sigmoid(self.gate(z, *context))), order)
        prompts = moved(prompts, order) if self.prompts_move else prompts
        y = self.out_proj(self.out_norm(self.selectiveScan(z, prompts)))
        return moved(y, jnp.argsort(order)).reshape(u.shape)

    def seen(self, u: Array, *context: Array) -> Array:
        """What the router sees: `(N, h, w, routed)`."""
        return u

    def gate(self, z: Array, *context: Array) -> Array:
        """What gates the scan's input, before the sigmoid: as `z (N, h, w, 2·C)`."""
        return self.CPE(z)


class Kind(nnx.Module):
    """The kind of every token, one-hot, from scores: `(N, L, kinds) -> (N, L, kinds)`.

    The best score wins, in training after Gumbel noise has moved them; with `noise` always, as in
    the released code. Its gradient is that of softmax.
    """

    def __init__(self, noise: bool):
        self.noise, self.deterministic = noise, False

    def __call__(self, scores: Array) -> Array:
        still = self.deterministic and not self.noise
        return best(scores if still else scores + gumbel(scores))


@jax.custom_jvp
def best(scores: Array) -> Array:
    """1 for the best of the last axis, 0 for all others; with the gradient of softmax."""
    return jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=scores.dtype)


@best.defjvp
def _(scores: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return best(*scores), jax.jvp(jax.nn.softmax, scores, tangents)[1]


def gumbel(scores: Array) -> Array:
    """Gumbel noise for `scores (N, L, kinds)`, drawn anew for every picture.

    The key is made of the scores themselves: networks keep no state of chance, and the same
    picture meets the same noise, whatever was upscaled before or beside it.
    """

    def draw(scores: Array) -> Array:
        seed = lax.bitcast_convert_type(scores.sum().astype(jnp.float32), jnp.uint32)
        return jax.random.gumbel(jax.random.key(seed), scores.shape, scores.dtype)

    return jax.vmap(draw)(lax.stop_gradient(scores))


class Embedding(nnx.Module):
    """A table, at first uniform in ±1 / rows."""

    def __init__(self, rows: int, wide: int, *, rngs: nnx.Rngs):
        self.weight = parameter(uniform(rngs, (rows, wide), rows**2))


def tokens(x: Array) -> Array:
    """`(N, h, w, C) -> (N, h·w, C)`."""
    return x.reshape(len(x), -1, x.shape[-1])


def moved(tokens: Array, order: Array) -> Array:
    """Token `order[n, i]` of every picture at place `i`."""
    return jax.vmap(lambda tokens, order: tokens[order])(tokens, order)


def start_small(net: nnx.Module, rngs: nnx.Rngs) -> None:
    """Give every linear layer of `net` small weights and no bias."""
    for _, part in nnx.iter_modules(net):
        if isinstance(part, Linear):
            part.weight.set_value(normal(rngs, part.weight.shape, 0.02))
            if part.bias is not None:
                part.bias.set_value(jnp.zeros_like(part.bias[...]))
