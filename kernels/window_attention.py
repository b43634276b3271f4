"""`softmax(q kᵀ/√d + bias + mask) v` in windows, without a matrix of scores anywhere.

Every lane holds queries and walks over the keys, a few at a time, with the running maximum and
sum of the online softmax (Milakov and Gimelshein, arXiv:1805.02867; FlashAttention,
arXiv:2205.14135, walks likewise). Device memory sees queries, keys, values and the result; the
reference also writes and reads L·K scores for every window and head. Products are in float32
without tensor cores. Windows of fewer queries than a tile has rows (8 x 8: 64 of 128) leave lanes
idle.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.network.ops import Kernel

from . import devices
from .devices import Block
from .lanes import LANES, WIDEST, Lanes, first, mosaic, pallas

NAME = "window_attention"
BLOCKS = {  # queries of a tile; keys between two corrections of the running maximum
    "rows": (LANES, 2 * LANES),
    "keys": (8, 4, 16),
}

State = tuple[Array, Array, Array]  # maximum (rows,), sum (rows,), weighted values (rows, d)


def call(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    mask: Array | None = None,
    *,
    block: Block | None = None,
    interpret: Any = None,
) -> Array:
    """The operation's value; with parameters of the interpreter, on any platform."""
    _, windows, heads, queries, depth = q.shape
    block = block or devices.block(NAME, BLOCKS)
    lanes = Lanes(rows=block["rows"], columns=depth, interpret=interpret)
    short = max(0, lanes.rows - queries)  # rows that fill the only tile
    added = [bias] if mask is None else [bias, mask]
    added = [_columns(scores, short) for scores in added]
    q_rows = jnp.pad(_rows(q), ((0, 0), (0, short), (0, 0)))
    tiles = pallas().cdiv(queries, lanes.rows)
    run = mosaic().kernel(
        lambda *refs: _tile(lanes, (tiles, windows, heads), block["keys"], *refs),
        out_type=jax.ShapeDtypeStruct(q_rows.shape, q.dtype),
        grid=(len(q_rows) * tiles,),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=interpret,
    )
    return run(q_rows, _rows(k), _rows(v), *added)[:, :queries].reshape(q.shape)


def _rows(x: Array) -> Array:
    """`(N, windows, heads, L, d)` to `(N·windows·heads, L, d)`."""
    return x.reshape(-1, *x.shape[-2:])


def _columns(scores: Array, short: int) -> Array:
    """`(…, L, K)` to `(…, K, L)`: neighbouring lanes read neighbouring queries."""
    return jnp.pad(scores.mT, ((0, 0), (0, 0), (0, short)))


def _tile(lanes: Lanes, sizes: tuple[int, int, int], step: int, *refs: Any) -> None:
    """One tile of queries of one head of one window; sizes: tiles, windows, heads."""
    q, k, v, *added, y = refs
    tiles, windows, heads = sizes
    group, tile = jnp.divmod(lax.axis_index("tile"), tiles)
    queries, keys = q.shape[1], k.shape[1]
    here = pallas().ds(first(tile, lanes.rows, queries), lanes.rows)
    query = lanes.load(q, group, here, slice(None)) * lanes.columns**-0.5
    owners = (lax.rem(group, heads), lax.rem(lax.div(group, heads), windows))
    sources = list(zip(added, owners, strict=False))

    def attend(start: Any, count: int, state: State) -> State:
        """The state after `count` more keys."""
        best, total, values = state
        scores = [_score(lanes, query, k, group, start + i, sources, here) for i in range(count)]
        top = _maximum([best, *scores])
        fade = jnp.exp(best - top)
        total, values = total * fade, values * lanes.spread_column(fade)
        for i, score in enumerate(scores):
            weight = jnp.exp(score - top)
            value = lanes.load_row(v, group, start + i, slice(None))
            total = total + weight
            values = values + lanes.spread_column(weight) * lanes.spread_row(value)
        return top, total, values

    state = (lanes.full_column(-jnp.inf), lanes.full_column(0), lanes.full(0))
    state = lax.fori_loop(0, keys // step, lambda i, at: attend(i * step, step, at), state)
    if keys % step:
        state = attend(keys - keys % step, keys % step, state)
    _, total, values = state
    y[group, here, :] = (values / lanes.spread_column(total)).astype(y.dtype)


def _score(
    lanes: Lanes, query: Array, k: Any, group: Any, key: Any, sources: list[Any], here: Any
) -> Array:
    """`q k + bias + mask` of one key, by query."""
    row = lanes.load_row(k, group, key, slice(None))
    score = (query * lanes.spread_row(row)).sum(1)
    for scores, owner in sources:
        score = score + lanes.load_column(scores, owner, key, here)
    return score


def _maximum(columns: Sequence[Array]) -> Array:
    top, *rest = columns
    for column in rest:
        top = jnp.maximum(top, column)
    return top


def why_not(q: Array, k: Array, v: Array, bias: Array, mask: Array | None = None) -> str | None:
    """None where the kernel serves; else device, types or sizes that it does not."""
    depth = q.shape[-1]
    if depth > WIDEST:
        return f"it takes heads of up to {WIDEST} elements, these have {depth}"
    return devices.why_not(q, k, v, bias, *([] if mask is None else [mask]))


KERNEL = Kernel(call=call, why_not=why_not, unproved=lambda: devices.unproved(NAME))
