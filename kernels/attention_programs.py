"""The kernels of window attention: output; gradients of queries and bias, of keys and values."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import tuning
from .attention_tiles import TILE, Shape, Tile, TileKernel, TileLoop
from .row_layout import store
from .tensor_cores import full_acc, padded_channels

LEAST = float(jnp.finfo(jnp.float32).min)  # initial maximum; finite, so that a mask may be -inf

SoftmaxState = tuple[Array, Array, Array]  # m_i (TILE,), l_i (TILE,), acc (TILE, d)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Operands of the op, padded to complete tiles; padded keys have the bias −inf.

    Attributes:
        q: Queries `(windows, heads, L, d)`, windows of all images.
        k: Keys `(windows, heads, K, d)`.
        v: Values `(windows, heads, K, d)`.
        bias: `(heads, L, K)`.
        mask: `(mask windows, L, K)`, or None.
        scale: Factor of `q kᵀ`.
        sm_programs: Programs per SM, among which the windows are divided.
    """

    q: Array
    k: Array
    v: Array
    bias: Array
    mask: Array | None
    scale: float
    sm_programs: int

    def shape(self, column_groups: int = 1) -> Shape:
        """Return the sizes for programs whose rows are queries."""
        windows, heads, rows, head_dim = self.q.shape
        tiles = heads * column_groups * (rows // TILE)
        groups = -(-self.sm_programs * tuning.num_sms() // tiles)
        return Shape(
            windows=windows,
            heads=heads,
            rows=rows,
            columns=self.k.shape[2],
            head_dim=head_dim,
            scale=self.scale,
            window_groups=min(groups, windows),
            column_groups=column_groups,
        )

    def score_terms(self) -> dict[str, Array]:
        """Return what is added to the scores, by the names of `TileLoop.refs`."""
        if self.mask is None:
            return {"bias": self.bias}
        is_masked = jnp.any(self.mask != 0, (1, 2)).astype(jnp.int32)
        return {"bias": self.bias, "mask": self.mask, "is_masked": is_masked}

    def swapped(self) -> "Operands":
        """Return the operands of the transposed scores: queries and keys change places."""
        mask = None if self.mask is None else self.mask.mT
        return replace(self, q=self.k, k=self.q, bias=self.bias.mT, mask=mask)


def pad_operands(
    q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None, *, sm_programs: int
) -> Operands:
    """Return the operands of the op `window_attention` as the kernels take them."""
    pad_queries, pad_keys = (-x.shape[3] % TILE for x in (q, k))
    padding = ((0, 0), (0, pad_queries), (0, pad_keys))
    bias = jnp.pad(bias, ((0, 0), (0, pad_queries), (0, 0)))
    return Operands(
        q=pad_heads(q),
        k=pad_heads(k),
        v=pad_heads(v),
        bias=jnp.pad(bias, ((0, 0), (0, 0), (0, pad_keys)), constant_values=-jnp.inf),
        mask=None if mask is None else jnp.pad(mask, padding),
        scale=q.shape[-1] ** -0.5,
        sm_programs=sm_programs,
    )


def pad_heads(x: Array) -> Array:
    """`(N, windows, heads, L, d) -> (N·windows, heads, L, d)`, L and d padded with zeros."""
    n, windows, heads, length, head_dim = x.shape
    pad_dim = padded_channels(head_dim) - head_dim
    x = x.reshape(n * windows, heads, length, head_dim)
    return jnp.pad(x, ((0, 0), (0, 0), (0, -length % TILE), (0, pad_dim)))


# --- output --------------------------------------------------------------------------------------


def forward_kernel(operands: Operands) -> TileKernel:
    """Return the kernel of the output and of `logsumexp` of the scores, `(windows, heads, L)`."""
    shape, q = operands.shape(), operands.q
    return TileKernel(
        name="window_attention",
        program=forward_program,
        shape=shape,
        row={"q": q},
        column={"k": operands.k},
        contracted={"v": operands.v},
        arrays=operands.score_terms(),
        outputs={
            "y": jax.ShapeDtypeStruct(q.shape, q.dtype),
            "logsumexp": jax.ShapeDtypeStruct(q.shape[:3], jnp.float32),
        },
        lhs=("probs_smem",),
        num_matmuls=2,
    )


def forward_program(loop: TileLoop) -> None:
    """Compute a tile of queries with the online softmax."""
    refs = loop.refs

    def init() -> SoftmaxState:
        m_i, l_i = (
            full_acc((TILE,), value, axis=1, interpret=loop.interpret) for value in (LEAST, 0)
        )
        return m_i, l_i, loop.zeros()

    def step(tile: Tile, state: SoftmaxState) -> SoftmaxState:
        m_i, l_i, acc = state
        scores = loop.scores(tile, "q", "k")
        m_new = jnp.maximum(m_i, jnp.max(scores, 1))
        alpha = jnp.exp(m_i - m_new)  # rescales what was summed with the old maximum
        probs = jnp.exp(scores - broadcast(m_new, TILE))
        acc = acc * broadcast(alpha, loop.shape.head_dim)
        acc = acc + loop.matmul_columns(probs, "probs_smem", tile, "v")
        return m_new, l_i * alpha + jnp.sum(probs, 1), acc

    def finish(tile: Tile, state: SoftmaxState) -> None:
        m_i, l_i, acc = state
        y = acc / broadcast(l_i, loop.shape.head_dim)
        index = tile.window, tile.head, tile.rows
        store(refs["y"].at[index], y.astype(refs["y"].dtype))
        store(refs["logsumexp"].at[index], m_i + jnp.log(l_i))

    loop.run(init, step, finish)


def broadcast(column: Array, columns: int) -> Array:
    """Broadcast `(TILE,)` to `(TILE, columns)`."""
    return lax.broadcast_in_dim(column, (TILE, columns), (0,))


# --- gradients -----------------------------------------------------------------------------------
# With P the softmax and g the cotangent of the output y, that of the scores is P·(g vᵀ − delta),
# where delta is the sum of g·y over the elements of a head (FlashAttention-2, Algorithm 2).


@dataclass(frozen=True, kw_only=True)
class Cotangents:
    """What both gradient kernels need beside the operands, padded; arrays or their types.

    Attributes:
        g: Cotangent of the output `(windows, heads, L, d)`.
        logsumexp: Of the scores `(windows, heads, L)`, float32.
        delta: Sum of `g · y` over the elements of a head `(windows, heads, L)`, float32.
    """

    g: Any
    logsumexp: Any
    delta: Any

    def vectors(self) -> dict[str, Any]:
        """Return the vectors by name."""
        return {"logsumexp": self.logsumexp, "delta": self.delta}


def query_grad_kernel(operands: Operands, cotangents: Cotangents) -> TileKernel:
    """Return the kernel of the gradients of queries and bias, partial sums in float32.

    They are to be added along the first axis: `dq (column groups, windows, heads, L, d)`, `dbias
    (window groups, heads, L, K)`. That of the bias is summed over windows in shared memory; many
    keys are divided among programs, so that it fits.
    """
    num_blocks = operands.k.shape[2] // TILE
    divisors = [n for n in range(1, num_blocks + 1) if num_blocks % n == 0]
    kernels = [_query_grad_kernel(operands, cotangents, groups) for groups in divisors]
    return next((kernel for kernel in kernels if kernel.fits()), kernels[-1])


def _query_grad_kernel(operands: Operands, cotangents: Cotangents, groups: int) -> TileKernel:
    shape = operands.shape(groups)
    return TileKernel(
        name="window_attention_query_grad",
        program=query_grad_program,
        shape=shape,
        row={"q": operands.q, "g": cotangents.g},
        column={"k": operands.k, "v": operands.v},
        contracted={"k": operands.k},
        arrays={**operands.score_terms(), **cotangents.vectors()},
        outputs={
            "dq": jax.ShapeDtypeStruct((groups, *operands.q.shape), jnp.float32),
            "dbias": jax.ShapeDtypeStruct((shape.window_groups, *operands.bias.shape), jnp.float32),
        },
        lhs=("dscores_smem",),
        sums=("dbias_smem",),
        num_matmuls=3,
    )


def query_grad_program(loop: TileLoop) -> None:
    """Compute the gradients of a tile of queries, and of their bias."""
    refs = loop.refs
    zeros = full_acc((TILE, TILE), 0, interpret=loop.interpret)
    for block in range(loop.shape.group_blocks):
        store(refs["dbias_smem"].at[block], zeros)

    def step(tile: Tile, dq: Array) -> Array:
        index = tile.window, tile.head, tile.rows
        logsumexp, delta = (
            broadcast(loop.load(refs[name], *index, axis=1), TILE)
            for name in ("logsumexp", "delta")
        )
        probs = jnp.exp(loop.scores(tile, "q", "k") - logsumexp)
        dscores = probs * (loop.products(tile, "g", "v") - delta)
        dbias = loop.load(refs["dbias_smem"], tile.block)
        store(refs["dbias_smem"].at[tile.block], dbias + dscores)
        return dq + loop.matmul_columns(dscores, "dscores_smem", tile, "k")

    def finish(tile: Tile, dq: Array) -> None:
        index = tile.column_group, tile.window, tile.head, tile.rows
        store(refs["dq"].at[index], dq * loop.shape.scale)

    loop.run(loop.zeros, step, finish)
    window_group, head, _, _ = loop.position
    for block in range(loop.shape.group_blocks):
        dbias = loop.load(refs["dbias_smem"], block)
        store(refs["dbias"].at[window_group, head, loop.rows(), loop.columns(block)], dbias)


def key_grad_kernel(operands: Operands, cotangents: Cotangents) -> TileKernel:
    """Return the kernel of the gradients of keys and values; its rows are keys."""
    swapped, g = operands.swapped(), cotangents.g
    k = jax.ShapeDtypeStruct(operands.k.shape, operands.k.dtype)
    return TileKernel(
        name="window_attention_key_grad",
        program=key_grad_program,
        shape=swapped.shape(),
        row={"k": operands.k, "v": operands.v},
        column={"q": operands.q, "g": g},
        contracted={"q": operands.q, "g": g},
        arrays={**swapped.score_terms(), **cotangents.vectors()},
        outputs={"dk": k, "dv": k},
        lhs=("probs_smem", "dscores_smem"),
        num_matmuls=4,
    )


def key_grad_program(loop: TileLoop) -> None:
    """Compute the gradients of a tile of keys and values from the transposed scores."""
    refs = loop.refs

    def step(tile: Tile, state: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = state
        index = tile.window, tile.head, tile.columns
        logsumexp, delta = (
            lax.broadcast_in_dim(loop.load(refs[name], *index, axis=0), (TILE, TILE), (1,))
            for name in ("logsumexp", "delta")
        )
        probs = jnp.exp(loop.scores(tile, "k", "q") - logsumexp)
        dv = dv + loop.matmul_columns(probs, "probs_smem", tile, "g")
        dscores = probs * (loop.products(tile, "v", "g") - delta)
        return dk + loop.matmul_columns(dscores, "dscores_smem", tile, "q"), dv

    def finish(tile: Tile, state: tuple[Array, Array]) -> None:
        dk, dv = state
        index = tile.window, tile.head, tile.rows
        store(refs["dk"].at[index], (dk * loop.shape.scale).astype(refs["dk"].dtype))
        store(refs["dv"].at[index], dv.astype(refs["dv"].dtype))

    loop.run(lambda: (loop.zeros(), loop.zeros()), step, finish)
