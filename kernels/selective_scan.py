"""The scan of state spaces in two walks: every lane holds a channel and its states.

Tokens are cut into segments that run side by side. The first walk starts every segment from
nothing and keeps only what it ends with; a short scan outside hands each segment the state of
those before it; the second walk starts from there and writes the outputs. States never lie in
device memory but at the ends of segments. Source: Mamba (arXiv:2312.00752), section 3.3.2, there
with states in shared memory and one walk.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.network.ops import Kernel

from . import devices
from .devices import Block
from .lanes import LANES, WIDEST, Lanes, first, mosaic, pallas

NAME = "selective_scan"
BLOCKS = {"rows": (LANES,), "tokens": (256, 64, 128, 512)}  # channels of a tile; of a segment


def call(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    *,
    block: Block | None = None,
    interpret: Any = None,
) -> Array:
    """The operation's value; with parameters of the interpreter, on any platform."""
    _, tokens, wide = x.shape
    block = block or devices.block(NAME, BLOCKS)
    lanes = Lanes(rows=block["rows"], columns=a.shape[1], interpret=interpret)
    cut = min(block["tokens"], tokens)
    late, short = -tokens % cut, max(0, lanes.rows - wide)
    x, delta = (jnp.pad(each, ((0, 0), (0, late), (0, short))) for each in (x, delta))
    b, c = (jnp.pad(each, ((0, 0), (0, late), (0, 0))) for each in (b, c))
    a, d = jnp.pad(a, ((0, short), (0, 0))), jnp.pad(d, (0, short))
    ends, spans = _ends(lanes, cut, x, delta, a, b)
    y = _outputs(lanes, cut, _handed(ends, spans, a), x, delta, a, b, c, d)
    return y[:, :tokens, :wide]


def _ends(lanes: Lanes, cut: int, *args: Array) -> tuple[Array, Array]:
    """What each segment makes of nothing `(N, segments, D, S)`, the sums of its steps without S."""
    batch, tokens, wide = args[0].shape
    parts = (batch, tokens // cut, wide)
    out = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*parts, args[2].shape[1]), parts)
    ]

    def tile(x: Any, delta: Any, a: Any, b: Any, ends: Any, spans: Any) -> None:
        n, segment, here = _place(lanes, parts)
        rates = lanes.load(a, here, slice(None))

        def walk(t: Any, carried: tuple[Array, Array]) -> tuple[Array, Array]:
            state, span = carried
            state, step = _next(lanes, state, rates, x, delta, b, n, segment * cut + t, here)[:2]
            return state, span + step

        state, span = lax.fori_loop(0, cut, walk, (lanes.full(0), lanes.full_column(0)))
        ends[n, segment, here, :] = state
        spans[n, segment, here] = span

    ends, spans = _run(lanes, tile, out, parts)(*args)
    return ends, spans


def _handed(ends: Array, spans: Array, a: Array) -> Array:
    """The state before every segment: `(N, segments, D, S)`."""
    rates = a.astype(jnp.float32)[None]

    def follow(state: Array, segment: tuple[Array, Array]) -> tuple[Array, Array]:
        end, span = segment
        return jnp.exp(span[..., None] * rates) * state + end, state

    segments = (ends.swapaxes(0, 1), spans.swapaxes(0, 1))
    return lax.scan(follow, jnp.zeros_like(ends[:, 0]), segments)[1].swapaxes(0, 1)


def _outputs(lanes: Lanes, cut: int, handed: Array, *args: Array) -> Array:
    """The outputs of all segments, each from the state that it is handed: as `x`."""
    batch, tokens, wide = args[0].shape
    parts = (batch, tokens // cut, wide)

    def tile(handed: Any, x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, y: Any) -> None:
        n, segment, here = _place(lanes, parts)
        rates, past = lanes.load(a, here, slice(None)), lanes.load_column(d, here)

        def walk(t: Any, state: Array) -> Array:
            token = segment * cut + t
            state, _, seen = _next(lanes, state, rates, x, delta, b, n, token, here)
            read = state * lanes.spread_row(lanes.load_row(c, n, token, slice(None)))
            y[n, token, here] = (read.sum(1) + past * seen).astype(y.dtype)
            return state

        lax.fori_loop(0, cut, walk, lanes.load(handed, n, segment, here, slice(None)))

    return _run(lanes, tile, jax.ShapeDtypeStruct(args[0].shape, args[0].dtype), parts)(
        handed, *args
    )


def _next(
    lanes: Lanes, state: Array, rates: Array, x: Any, delta: Any, b: Any, n: Any, t: Any, here: Any
) -> tuple[Array, Array, Array]:
    """The state after token `t`, the token's step, and what it brings."""
    step, seen = lanes.load_column(delta, n, t, here), lanes.load_column(x, n, t, here)
    row = lanes.spread_row(lanes.load_row(b, n, t, slice(None)))
    kept = jnp.exp(lanes.spread_column(step) * rates)
    return kept * state + lanes.spread_column(step * seen) * row, step, seen


def _run(lanes: Lanes, tile: Any, out: Any, parts: tuple[int, int, int]) -> Any:
    batch, segments, wide = parts
    return mosaic().kernel(
        tile,
        out_type=out,
        grid=(batch * segments * pallas().cdiv(wide, lanes.rows),),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=lanes.interpret,
    )


def _place(lanes: Lanes, parts: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Picture, segment and channels of this tile."""
    _, segments, wide = parts
    group, tile = jnp.divmod(lax.axis_index("tile"), pallas().cdiv(wide, lanes.rows))
    n, segment = jnp.divmod(group, segments)
    return n, segment, pallas().ds(first(tile, lanes.rows, wide), lanes.rows)


def why_not(x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array) -> str | None:
    """None where the kernel serves; else device, types or sizes that it does not."""
    if a.shape[1] > WIDEST:
        return f"it takes up to {WIDEST} states a channel, these are {a.shape[1]}"
    return devices.why_not(x, delta, a, b, c, d)


KERNEL = Kernel(call=call, why_not=why_not, unproved=lambda: devices.unproved(NAME))
