"""Memory-traffic budget of SPAN and SPANV2: bytes, arithmetic and minimum time, as Markdown.

A network is traced for one image and split into operations, each of which reads its inputs from
device memory and writes its outputs to it. The minimum time of an operation is the longer of two:
its bytes at the memory bandwidth, its FLOPs at the peak. The minimum of the network is the sum over
its operations. Figures of an H200, dense.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from esrjax_kernels.fused_conv3 import COL_HALO, COLUMNS, ROW_HALO, balanced_rows
from esrjax_kernels.tensor_cores import padded_channels
from esrjax_kernels.tuning import H200_SMS
from flax import nnx

from esrjax import registry
from esrjax.nn import ops
from esrjax.nn.cost import MAC_RULES, count_ops
from esrjax.nn.functional import OP_PREFIX, counted_op
from esrjax.nn.reparam import deploy
from esrjax.testing.kernels import operand_shapes

BANDWIDTH = 4.8e12  # bytes per second
PEAKS = {"float32": (4, 494e12), "bfloat16": (2, 989e12)}  # bytes per value; TF32, BF16 FLOP/s
BLOCK_OPS = {"span block": ("spab", 28), "spanv2 block": ("gated_spab", 32)}  # op, channels
NAMES = ("span block", "span", "spanv2 block", "spanv2")
IMAGE_SIZES = ((339, 510), (1080, 1920))
FUSED_BLOCKS = ("spab", "gated_spab")

UNFUSED = "none"
FUSIONS = {  # ops that are single operations
    UNFUSED: (),
    "gated residual": ("gated_residual",),
    "blocks": ("gated_residual", *FUSED_BLOCKS),
    "network": ("network",),
}
VIEW_PRIMITIVES = {  # no traffic of their own
    "reshape",
    "broadcast_in_dim",
    "squeeze",
    "expand_dims",
    "convert_element_type",
    "copy",
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on arrays in device memory.

    Attributes:
        name: Name of the op or primitive.
        num_values: Values that it reads or writes.
        macs: Its multiply-adds.
    """

    name: str
    num_values: float
    macs: float

    def min_seconds(self, dtype: str) -> float:
        """Return its minimum time."""
        num_bytes, peak = PEAKS[dtype]
        return max(self.num_values * num_bytes / BANDWIDTH, 2 * self.macs / peak)


@cache
def list_operations(name: str, image_size: tuple[int, int], fusion: str) -> list[Operation]:
    """Return the operations of a block or a deployed network, for one LR image (h, w)."""
    fn, args = block_fn(name, image_size) if name in BLOCK_OPS else network_fn(name, image_size)
    with ops.implementation("reference"), fuse_blocks(fusion):
        jaxpr = jax.make_jaxpr(fn)(*args)
    return list(split_into_operations(jaxpr.jaxpr, FUSIONS[fusion]))


def block_fn(name: str, image_size: tuple[int, int]) -> tuple[Any, list[Any]]:
    """Return the op of a block and its abstract operands."""
    op_name, channels = BLOCK_OPS[name]
    return getattr(ops, op_name), operand_shapes(op_name, (1, *image_size, channels), "float32")


def network_fn(name: str, image_size: tuple[int, int]) -> tuple[Any, list[Any]]:
    """Return the forward pass of a deployed network and its abstract arguments."""
    graph, state = abstract_network(name)

    @counted_op()
    def network(state: Any, lr: Any) -> Any:
        return nnx.merge(graph, state)(lr)

    return network, [state, jax.ShapeDtypeStruct((1, *image_size, 3), "float32")]


@cache
def abstract_network(name: str) -> tuple[Any, Any]:
    """Return graph and abstract state of a network in deploy form."""
    return nnx.split(nnx.eval_shape(lambda: deploy(registry.get_method(name).build())))


@contextmanager
def fuse_blocks(fusion: str) -> Iterator[None]:
    """Trace blocks as single operations, as if a kernel supported them."""
    original = ops.has_kernel
    if set(FUSED_BLOCKS) <= set(FUSIONS[fusion]):
        ops.has_kernel = lambda fused_op, operands: True
    try:
        yield
    finally:
        ops.has_kernel = original


def split_into_operations(jaxpr: Any, fused_ops: tuple[str, ...]) -> Iterator[Operation]:
    """Yield the operations of a trace; views (reshapes and the like) are none."""
    for equation in needed_equations(jaxpr):
        label = str(equation.params.get("name", ""))
        name = label.removeprefix(OP_PREFIX)
        splittable = label != name and name not in MAC_RULES and name not in fused_ops
        if splittable and is_composite(equation):
            yield from split_into_operations(equation.params["jaxpr"].jaxpr, fused_ops)
        elif equation.primitive.name not in VIEW_PRIMITIVES:
            yield make_operation(name or equation.primitive.name, equation)


def needed_equations(jaxpr: Any) -> list[Any]:
    """Return the equations that the outputs depend on."""
    needed_ids, equations = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed_ids for v in equation.outvars):
            needed_ids |= set(map(id, equation.invars))
            equations.append(equation)
    return equations[::-1]


def is_composite(equation: Any) -> bool:
    """Whether an op consists of several counted operations, and does not only move values."""
    return any(count_ops(equation.params["jaxpr"].jaxpr)[0])


def make_operation(name: str, equation: Any) -> Operation:
    """Return an equation as one operation."""
    num_values = sum(math.prod(v.aval.shape) for v in (*equation.invars, *equation.outvars))
    macs = MAC_RULES[name](equation) if name in MAC_RULES else inner_macs(equation)
    if name not in FUSED_BLOCKS:
        return Operation(name=name, num_values=num_values, macs=macs)
    u = equation.invars[0].aval
    size, channels = math.prod(u.shape), u.shape[-1]
    padding_ratio = padded_channels(channels) / channels
    # values that are read and written in addition: the halo and padded channels
    extra_values = size * (padding_ratio * (halo_factor(u.shape, ROW_HALO) + 1) - 2)
    padding_values = 2 * size * (1 + padding_ratio) if padding_ratio > 1 else 0
    # the convolutions have 3, 2 and 1 rows more of input on either side, on average 2
    macs *= padding_ratio**2 * halo_factor(u.shape, 2)
    return Operation(name=name, num_values=num_values + extra_values + padding_values, macs=macs)


def inner_macs(equation: Any) -> int:
    """Return the multiply-adds of the jaxpr inside an equation, 0 if there is none."""
    jaxpr = equation.params.get("jaxpr")
    return 0 if jaxpr is None else sum(cost.macs_full for cost in count_ops(jaxpr.jaxpr)[0])


def halo_factor(shape: tuple[int, ...], halo_rows: int) -> float:
    """Return how often a pixel is read or computed, with `halo_rows` on either side of a strip.

    Args:
        shape: Shape of the block's input `(N, h, w, C)`.
        halo_rows: Rows.
    """
    rows = balanced_rows(*shape[:3], H200_SMS)
    return COLUMNS / (COLUMNS - 2 * COL_HALO) * (rows + 2 * halo_rows) / rows


def table() -> str:
    """Return the budget as a Markdown table."""
    columns = ["network, LR", "fused", "operations", "GMAC"]
    columns += [f"{dtype}, {unit}" for dtype in PEAKS for unit in ("MB", "min. µs")]
    rows = [
        table_row(name, image_size, fusion)
        for name in NAMES
        for image_size in IMAGE_SIZES
        for fusion in FUSIONS
    ]
    alignment = ["---", "---", *["---:"] * (len(columns) - 2)]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (columns, alignment, *filter(None, rows))
    )


def table_row(name: str, image_size: tuple[int, int], fusion: str) -> list[str]:
    """Return a row of the table, empty if the fusion changes nothing for this network."""
    ops_list = list_operations(name, image_size, fusion)
    if fusion != UNFUSED and len(ops_list) == len(list_operations(name, image_size, UNFUSED)):
        return []
    num_values = sum(operation.num_values for operation in ops_list)
    macs = sum(operation.macs for operation in ops_list)
    h, w = image_size
    cells = [f"{name}, {h}x{w}", fusion, str(len(ops_list)), f"{macs / 1e9:.1f}"]
    for dtype, (num_bytes, _) in PEAKS.items():
        min_s = sum(operation.min_seconds(dtype) for operation in ops_list)
        cells += [f"{num_values * num_bytes / 1e6:,.0f}", f"{1e6 * min_s:,.0f}"]
    return cells


if __name__ == "__main__":
    print(table())
