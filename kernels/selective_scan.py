"""Chunked selective scan in two passes, in which every thread holds a channel and its states.

Tokens are cut into chunks that are scanned in parallel. The first pass starts every chunk from the
zero state and stores only its final state; a short scan outside of the kernel combines these into
the state before each chunk; the second pass starts from that and stores the outputs. Of the states,
only those at chunk boundaries are in device memory. Source: Mamba (arXiv:2312.00752), section
3.3.2, there with states in shared memory and one pass. Symbols: `D` channels, `S` states.
"""

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

NAME = "selective_scan"
CONFIG_SPACE = {
    "rows": (WARPGROUP_THREADS,),  # channels per tile
    "chunk_len": (256, 64, 128, 512),  # tokens per chunk
}


def call(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    *,
    config: Config | None = None,
    interpret: Any = None,
) -> Array:
    """Return the output of the op `selective_scan`, shaped as `x`.

    Args:
        x: Input `(N, L, D)`.
        delta: Step sizes `(N, L, D)`.
        a: State matrix `(D, S)`, negative.
        b: Input matrix `(N, L, S)`.
        c: Output matrix `(N, L, S)`.
        d: Skip `(D,)`.
        config: Tile sizes; by default the tuned ones.
        interpret: Parameters of the interpreter, which runs on any platform; None for the device.
    """
    _, tokens, channels = x.shape
    config = config or tuning.get_config(NAME, CONFIG_SPACE)
    tile = RowTile(rows=config["rows"], columns=a.shape[1], interpret=interpret)
    chunk_len = min(config["chunk_len"], tokens)
    # Padded tokens have delta = 0: the decay is 1 and the input 0, so they change no state. Padded
    # channels are computed and cut off.
    pad_tokens, pad_channels = -tokens % chunk_len, max(0, tile.rows - channels)
    x, delta = (
        jnp.pad(array, ((0, 0), (0, pad_tokens), (0, pad_channels))) for array in (x, delta)
    )
    b, c = (jnp.pad(array, ((0, 0), (0, pad_tokens), (0, 0))) for array in (b, c))
    a, d = jnp.pad(a, ((0, pad_channels), (0, 0))), jnp.pad(d, (0, pad_channels))
    chunk_states, delta_sums = _chunk_states(tile, chunk_len, x, delta, a, b)
    y = _outputs(tile, chunk_len, _carry_in(chunk_states, delta_sums, a), x, delta, a, b, c, d)
    return y[:, :tokens, :channels]


def _chunk_states(tile: RowTile, chunk_len: int, *args: Array) -> tuple[Array, Array]:
    """First pass: final states from zero `(N, chunks, D, S)` and sums of delta `(N, chunks, D)`.

    `args` are x, delta, a and b of `call`, padded.
    """
    batch, tokens, channels = args[0].shape
    grid_shape = (batch, tokens // chunk_len, channels)
    out_types = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((*grid_shape, args[2].shape[1]), grid_shape)
    ]

    def compute_tile(
        x: Any, delta: Any, a: Any, b: Any, chunk_states: Any, delta_sums: Any
    ) -> None:
        n, chunk, channel_slice = _locate(tile, grid_shape)
        a_tile = tile.load(a, channel_slice, slice(None))

        def step(t: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            state, delta_sum = carry
            state, delta_t = _step(
                tile, state, a_tile, x, delta, b, n, chunk * chunk_len + t, channel_slice
            )[:2]
            return state, delta_sum + delta_t

        state, delta_sum = lax.fori_loop(0, chunk_len, step, (tile.full(0), tile.full_column(0)))
        store(chunk_states.at[n, chunk, channel_slice, :], state)
        store(delta_sums.at[n, chunk, channel_slice], delta_sum)

    chunk_states, delta_sums = _run(tile, compute_tile, out_types, grid_shape, chunk_len, args)
    return chunk_states, delta_sums


def _carry_in(chunk_states: Array, delta_sums: Array, a: Array) -> Array:
    """Return the state before every chunk: `(N, chunks, D, S)`."""
    a32 = a.astype(jnp.float32)[None]

    def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk_state, delta_sum = chunk
        # the decay over a chunk is the product of its steps' decays, exp(delta_t · a)
        return jnp.exp(delta_sum[..., None] * a32) * state + chunk_state, state

    chunks = (chunk_states.swapaxes(0, 1), delta_sums.swapaxes(0, 1))
    return lax.scan(step, jnp.zeros_like(chunk_states[:, 0]), chunks)[1].swapaxes(0, 1)


def _outputs(tile: RowTile, chunk_len: int, carry_in: Array, *args: Array) -> Array:
    """Second pass: the outputs of all chunks from their carried-in states, of the shape of `x`.

    `args` are x, delta, a, b, c and d of `call`, padded.
    """
    batch, tokens, channels = args[0].shape
    grid_shape = (batch, tokens // chunk_len, channels)

    def compute_tile(
        carry_in: Any, x: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, y: Any
    ) -> None:
        n, chunk, channel_slice = _locate(tile, grid_shape)
        a_tile, d_tile = (
            tile.load(a, channel_slice, slice(None)),
            tile.load_column(d, channel_slice),
        )

        def step(t: Any, state: Array) -> Array:
            token = chunk * chunk_len + t
            state, _, x_t = _step(tile, state, a_tile, x, delta, b, n, token, channel_slice)
            readout = state * tile.broadcast_row(tile.load_row(c, n, token, slice(None)))
            y_t = (readout.sum(1) + d_tile * x_t).astype(y.dtype)
            store(y.at[n, token, channel_slice], y_t)
            return state

        lax.fori_loop(0, chunk_len, step, tile.load(carry_in, n, chunk, channel_slice, slice(None)))

    out_type = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
    return _run(tile, compute_tile, out_type, grid_shape, chunk_len, (carry_in, *args))


def _step(
    tile: RowTile,
    state: Array,
    a_tile: Array,
    x: Any,
    delta: Any,
    b: Any,
    n: Any,
    t: Any,
    channels: Any,
) -> tuple[Array, Array, Array]:
    """Return the state after token `t` `(rows, S)`, the token's delta and its x, both `(rows,)`."""
    delta_t, x_t = tile.load_column(delta, n, t, channels), tile.load_column(x, n, t, channels)
    b_t = tile.broadcast_row(tile.load_row(b, n, t, slice(None)))
    decay = jnp.exp(tile.broadcast_column(delta_t) * a_tile)
    return decay * state + tile.broadcast_column(delta_t * x_t) * b_t, delta_t, x_t


def _run(
    tile: RowTile,
    compute_tile: Any,
    out_type: Any,
    grid_shape: tuple[int, int, int],
    chunk_len: int,
    args: tuple[Array, ...],
) -> Any:
    batch, chunks, channels = grid_shape
    num_states = batch * chunks * chunk_len * channels * tile.columns
    run = make_kernel(
        compute_tile,
        args,
        flops=6 * num_states,
        transcendentals=num_states,
        out_type=out_type,
        grid=(batch * chunks * pallas().cdiv(channels, tile.rows),),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=tile.interpret,
    )
    return run(*args)


def _locate(tile: RowTile, grid_shape: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Return image, chunk and slice of channels of this program."""
    _, chunks, channels = grid_shape
    group, tile_index = jnp.divmod(lax.axis_index("tile"), pallas().cdiv(channels, tile.rows))
    n, chunk = jnp.divmod(group, chunks)
    return n, chunk, pallas().ds(tile_start(tile_index, tile.rows, channels), tile.rows)


def unsupported_reason(
    x: Array, delta: Array, a: Array, b: Array, c: Array, d: Array
) -> str | None:
    """Return None if the kernel supports the operands on this device, else the reason."""
    if a.shape[1] > MAX_COLUMNS:
        return f"it supports up to {MAX_COLUMNS} states per channel, not {a.shape[1]}"
    return tuning.unsupported_reason(x, delta, a, b, c, d)


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
)
