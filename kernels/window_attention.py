"""Window attention `softmax(q kᵀ/√d + bias + mask) v` without storing the scores.

Every thread holds queries and loops over blocks of keys with the running maximum `m_i`, sum `l_i`
and output `acc` of the online softmax (Milakov and Gimelshein, arXiv:1805.02867; FlashAttention,
arXiv:2205.14135, loops likewise). Only queries, keys, values, bias, mask and the output are in
device memory; the reference also writes and reads L·K scores for every window and head. Matmuls are
float32 without tensor cores. Windows with fewer queries than a tile has rows (8 x 8: 64 of 128)
leave threads idle.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.nn.ops import Kernel

from . import tuning
from .row_layout import (
    MAX_COLUMNS,
    WARPGROUP_THREADS,
    RowTile,
    make_kernel,
    pallas,
    store,
    tile_start,
)
from .tuning import Config

NAME = "window_attention"
CONFIG_SPACE = {
    "rows": (WARPGROUP_THREADS, 2 * WARPGROUP_THREADS),  # queries per tile
    "block_k": (8, 4, 16),  # keys between two updates of the running maximum
}

SoftmaxState = tuple[Array, Array, Array]  # m_i (rows,), l_i (rows,), acc (rows, d)


def call(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    mask: Array | None = None,
    *,
    config: Config | None = None,
    interpret: Any = None,
) -> Array:
    """Return the output of the op `window_attention`, shaped as `q`.

    Args:
        q: Queries `(N, windows, heads, L, d)`.
        k: Keys `(N, windows, heads, K, d)`.
        v: Values `(N, windows, heads, K, d)`.
        bias: Position bias `(heads, L, K)`.
        mask: Additive mask `(windows, L, K)`, or None.
        config: Tile sizes; by default the tuned ones.
        interpret: Parameters of the interpreter, which runs on any platform; None for the device.
    """
    _, num_windows, num_heads, num_queries, head_dim = q.shape
    config = config or tuning.get_config(NAME, CONFIG_SPACE)
    tile = RowTile(rows=config["rows"], columns=head_dim, interpret=interpret)
    pad_rows = max(0, tile.rows - num_queries)  # if there is less than one tile
    score_terms = [bias] if mask is None else [bias, mask]
    score_terms = [_transpose_pad(term, pad_rows) for term in score_terms]
    q_rows = jnp.pad(_merge_batch(q), ((0, 0), (0, pad_rows), (0, 0)))
    num_tiles = pallas().cdiv(num_queries, tile.rows)
    operands = (q_rows, _merge_batch(k), _merge_batch(v), *score_terms)
    num_scores = len(q_rows) * q_rows.shape[1] * k.shape[3]
    run = make_kernel(
        lambda *refs: _compute_tile(
            tile, (num_tiles, num_windows, num_heads), config["block_k"], *refs
        ),
        operands,
        flops=4 * num_scores * head_dim,
        transcendentals=num_scores,
        out_type=jax.ShapeDtypeStruct(q_rows.shape, q.dtype),
        grid=(len(q_rows) * num_tiles,),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=interpret,
    )
    return run(*operands)[:, :num_queries].reshape(q.shape)


def _merge_batch(x: Array) -> Array:
    """`(N, windows, heads, L, d)` to `(N·windows·heads, L, d)`."""
    return x.reshape(-1, *x.shape[-2:])


def _transpose_pad(term: Array, pad_rows: int) -> Array:
    """`(…, L, K) -> (…, K, L + pad_rows)`: adjacent threads load adjacent queries."""
    return jnp.pad(term.mT, ((0, 0), (0, 0), (0, pad_rows)))


def _compute_tile(
    tile: RowTile, grid_shape: tuple[int, int, int], block_k: int, *refs: Any
) -> None:
    """Compute one tile of queries of one head of one window.

    `grid_shape` is the number of tiles, windows and heads.
    """
    q, k, v, *score_terms, y = refs
    num_tiles, num_windows, num_heads = grid_shape
    group, tile_index = jnp.divmod(lax.axis_index("tile"), num_tiles)
    num_queries, num_keys = q.shape[1], k.shape[1]
    query_slice = pallas().ds(tile_start(tile_index, tile.rows, num_queries), tile.rows)
    q_tile = tile.load(q, group, query_slice, slice(None)) * tile.columns**-0.5
    # The bias is indexed by head, the mask by window. Without a mask there is one term only, hence
    # not strict.
    term_index = (lax.rem(group, num_heads), lax.rem(lax.div(group, num_heads), num_windows))
    terms = list(zip(score_terms, term_index, strict=False))

    def attend(start: Any, count: int, state: SoftmaxState) -> SoftmaxState:
        """Return the state after `count` more keys."""
        m_i, l_i, acc = state
        scores = [
            _score(tile, q_tile, k, group, start + i, terms, query_slice) for i in range(count)
        ]
        m_new = _max([m_i, *scores])
        alpha = jnp.exp(m_i - m_new)  # rescales what was summed with the old maximum
        l_i, acc = l_i * alpha, acc * tile.broadcast_column(alpha)
        for i, score in enumerate(scores):
            p = jnp.exp(score - m_new)
            v_row = tile.load_row(v, group, start + i, slice(None))
            l_i = l_i + p
            acc = acc + tile.broadcast_column(p) * tile.broadcast_row(v_row)
        return m_new, l_i, acc

    state = (tile.full_column(-jnp.inf), tile.full_column(0), tile.full(0))
    state = lax.fori_loop(
        0, num_keys // block_k, lambda i, carry: attend(i * block_k, block_k, carry), state
    )
    if num_keys % block_k:
        state = attend(num_keys - num_keys % block_k, num_keys % block_k, state)
    _, l_i, acc = state
    store(y.at[group, query_slice, :], (acc / tile.broadcast_column(l_i)).astype(y.dtype))


def _score(
    tile: RowTile, q_tile: Array, k: Any, group: Any, key: Any, terms: list[Any], query_slice: Any
) -> Array:
    """Return `q k + bias + mask` of one key for all queries: `(rows,)`."""
    k_row = tile.load_row(k, group, key, slice(None))
    score = (q_tile * tile.broadcast_row(k_row)).sum(1)
    for term, index in terms:
        score = score + tile.load_column(term, index, key, query_slice)
    return score


def _max(scores: Sequence[Array]) -> Array:
    maximum, *rest = scores
    for score in rest:
        maximum = jnp.maximum(maximum, score)
    return maximum


def unsupported_reason(
    q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None
) -> str | None:
    """Return None if the kernel supports the operands on this device, else the reason."""
    head_dim = q.shape[-1]
    if head_dim > MAX_COLUMNS:
        return f"it supports head dimensions up to {MAX_COLUMNS}, not {head_dim}"
    return tuning.unsupported_reason(q, k, v, bias, *([] if mask is None else [mask]))


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
)
