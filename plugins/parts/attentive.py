"""The layer of MambaIRv2: attention in windows, then one scan over tokens sorted by kind.

Source: MambaIRv2 (arXiv:2411.15269), section 3. Features are `(N, h, w, C)`, tokens `(N, L, C)`
in raster order.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.layers import Conv2d, LayerNorm, Linear, Sequential, parameter, uniform
from esrjax.network.words import gelu, linear, matmul, single

from .chance import keys
from .feed_forward import ConvFFN, GatedMLP
from .mamba import PromptedScan
from .window_attention import WindowAttention
from .windows import relative_positions


class AttentiveLayer(nnx.Module):
    """Window attention and a scan, each followed by a feed-forward, with weighted skips.

    side, shift: of the windows, pixels. mix: the kind of feed-forward. What it is called with
    after the features is passed on to the scan.
    """

    def __init__(
        self,
        channels: int,
        scan: "SortedScan",
        *,
        heads: int,
        side: int,
        shift: int,
        mix: type[ConvFFN | GatedMLP] = ConvFFN,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2, self.norm3, self.norm4 = (LayerNorm(channels) for _ in range(4))
        self.wqkv = Linear(channels, 3 * channels, rngs=rngs)
        self.win_mhsa = WindowAttention(channels, heads, side, shift, rngs=rngs)
        self.assm = scan
        self.convffn1, self.convffn2 = (mix(channels, scan.inner, rngs=rngs) for _ in "12")
        self.embeddingA = Embedding(scan.rank, scan.states, rngs=rngs)
        self.scale1, self.scale2 = (parameter(jnp.full(channels, 1e-4)) for _ in range(2))

    def __call__(self, t: Array, *context: Array) -> Array:
        a = self.win_mhsa(self.wqkv(self.norm1(t))) + t
        a = a + self.convffn1(self.norm2(a))
        t = t * self.scale1[...][None, None, None, :] + a
        b = self.assm(self.norm3(t), self.embeddingA.weight[...], *context) + t
        b = b + self.convffn2(self.norm4(b))
        return t * self.scale2[...][None, None, None, :] + b


class SortedScan(nnx.Module):
    """Sorts tokens by kind, so that like follows like, and scans them once.

    What a kind is asked for is its prompt, a row of `embeddingB · basis`. kinds, rank: of the
    prompts. routed: channels that the router sees. ratio: how much wider the scan is. noise: draw
    kinds outside of training too.
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
        ratio: int = 2,
        noise: bool = False,
        rngs: nnx.Rngs,
    ):
        inner, routed = ratio * channels, routed or channels
        hidden = routed // 3
        self.rank, self.states, self.inner = rank, states, inner
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
        still, fine = self.deterministic and not self.noise, single(scores)
        return best(fine if still else fine + gumbel(fine)).astype(scores.dtype)


@jax.custom_jvp
def best(scores: Array) -> Array:
    """1 for the best of the last axis, 0 for all others; with the gradient of softmax."""
    return jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=scores.dtype)


@best.defjvp
def _(scores: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return best(*scores), jax.jvp(jax.nn.softmax, scores, tangents)[1]


def gumbel(scores: Array) -> Array:
    """Gumbel noise for `scores (N, L, kinds)`, drawn anew for every picture."""

    def draw(key: Array, scores: Array) -> Array:
        return jax.random.gumbel(key, scores.shape, scores.dtype)

    return jax.vmap(draw)(keys(scores), scores)


def buffers(net: Any) -> dict[str, Any]:
    """What the official classes of such layers keep beside their weights."""
    return {"relative_position_index_SA": relative_positions(net.window)}


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
