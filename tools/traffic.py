"""Prints the traffic budget of SPAN and SPANV2: what must move and be done, and how long at least.

A network is traced for one picture, and taken apart into operations that each read what they are
given from device memory and write what they give. Its least time is the sum over them of the longer
of two: bytes by bandwidth, operations by peak. Figures of an H200, dense.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from esrjax_kernels import room
from esrjax_kernels.course import HALO
from esrjax_kernels.walk import BLOCKS, MARGIN
from flax import nnx

from esrjax import registry
from esrjax.network import ops
from esrjax.network.reparam import deploy
from esrjax.network.words import PREFIX, word
from esrjax.network.work import COUNTED, work
from esrjax.testing.operands import shapes

BANDWIDTH = 4.8e12  # bytes a second
PEAKS = {"float32": (4, 494e12), "bfloat16": (2, 989e12)}  # bytes of a number; TF32, BF16 FLOP/s
BLOCKS_OF = {"span's block": ("spab", 28), "spanv2's block": ("gated_spab", 32)}
NAMES = ("span's block", "span", "spanv2's block", "spanv2")
SIDES = ((339, 510), (1080, 1920))
WHOLE = ("spab", "gated_spab")

PLAIN = "nothing"
SCHEMES = {  # what is not taken apart
    PLAIN: (),
    "gated residual": ("gated_residual",),
    "whole blocks": ("gated_residual", *WHOLE),
    "whole network": ("network",),
}
VIEWS = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "copy"}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """numbers: that it reads or writes. macs: its multiply-adds."""

    name: str
    numbers: float
    macs: float

    def seconds(self, dtype: str) -> float:
        """The least that it takes."""
        size, peak = PEAKS[dtype]
        return max(self.numbers * size / BANDWIDTH, 2 * self.macs / peak)


@cache
def operations(name: str, side: tuple[int, int], scheme: str) -> list[Operation]:
    """What a block, or a deployed network, does for one picture; `side` is (h, w)."""
    run, given = block(name, side) if name in BLOCKS_OF else network(name, side)
    with ops.body("reference"), blocks_whole(scheme):
        traced = jax.make_jaxpr(run)(*given)
    return list(taken_apart(traced.jaxpr, SCHEMES[scheme]))


def block(name: str, side: tuple[int, int]) -> tuple[Any, list[Any]]:
    operation, channels = BLOCKS_OF[name]
    return getattr(ops, operation), shapes(operation, (1, *side, channels), "float32")


def network(name: str, side: tuple[int, int]) -> tuple[Any, list[Any]]:
    graph, state = deployed(name)

    @word()
    def network(state: Any, lr: Any) -> Any:
        return nnx.merge(graph, state)(lr)

    return network, [state, jax.ShapeDtypeStruct((1, *side, 3), "float32")]


@cache
def deployed(name: str) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: deploy(registry.plain(name).build())))


@contextmanager
def blocks_whole(scheme: str) -> Iterator[None]:
    """Blocks are operations, as if a kernel served them."""
    before = ops.whole
    if set(WHOLE) <= set(SCHEMES[scheme]):
        ops.whole = lambda operation, operands, parts: operation(*operands)
    try:
        yield
    finally:
        ops.whole = before


def taken_apart(jaxpr: Any, kept: tuple[str, ...]) -> Iterator[Operation]:
    """The operations of a trace; those that only look at numbers otherwise are none."""
    for equation in needed(jaxpr):
        spoken = str(equation.params.get("name", ""))
        name = spoken.removeprefix(PREFIX)
        if spoken != name and name not in COUNTED and name not in kept and is_composed(equation):
            yield from taken_apart(equation.params["jaxpr"].jaxpr, kept)
        elif equation.primitive.name not in VIEWS:
            yield operation(name or equation.primitive.name, equation)


def needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    wanted, found = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in wanted for v in equation.outvars):
            wanted |= set(map(id, equation.invars))
            found.append(equation)
    return found[::-1]


def is_composed(equation: Any) -> bool:
    """A word of several operations, and not of one that moves numbers about."""
    return any(work(equation.params["jaxpr"].jaxpr)[0])


def operation(name: str, equation: Any) -> Operation:
    """An equation as one operation."""
    numbers = sum(math.prod(v.aval.shape) for v in (*equation.invars, *equation.outvars))
    macs = COUNTED[name](equation) if name in COUNTED else inner_macs(equation)
    if name not in WHOLE:
        return Operation(name=name, numbers=numbers, macs=macs)
    picture = equation.invars[0].aval
    size, channels = math.prod(picture.shape), picture.shape[-1]
    wide = room.filled(channels) / channels
    again = size * (wide * (overlap(HALO) + 1) - 2)  # read and written beyond what must be
    filling = 2 * size * (1 + wide) if wide > 1 else 0
    macs *= wide**2 * overlap(HALO / 3)
    return Operation(name=name, numbers=numbers + again + filling, macs=macs)


def inner_macs(equation: Any) -> int:
    inner = equation.params.get("jaxpr")
    return 0 if inner is None else sum(piece.macs for piece in work(inner.jaxpr)[0])


def overlap(above: float) -> float:
    """How often a pixel is read, or made, for `above` more lines on either side of a strip."""
    columns, lines = (sizes[0] for sizes in (BLOCKS["columns"], BLOCKS["lines"]))
    return columns / (columns - 2 * MARGIN) * (lines + 2 * above) / lines


def table() -> str:
    """The budget in Markdown."""
    heads = ["network, LR", "in one", "operations", "GMAC"]
    heads += [f"{kind} {what}" for kind in ("float32", "bfloat16") for what in ("MB", "least µs")]
    found = [row(name, side, scheme) for name in NAMES for side in SIDES for scheme in SCHEMES]
    rules = ["---", "---", *["---:"] * (len(heads) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *filter(None, found)))


def row(name: str, side: tuple[int, int], scheme: str) -> list[str]:
    """A line of the table; nothing where the scheme changes nothing for this network."""
    found = operations(name, side, scheme)
    if scheme != PLAIN and len(found) == len(operations(name, side, PLAIN)):
        return []
    numbers, macs = sum(each.numbers for each in found), sum(each.macs for each in found)
    h, w = side
    cells = [f"{name}, {h}x{w}", scheme, str(len(found)), f"{macs / 1e9:.1f}"]
    for dtype, (size, _) in PEAKS.items():
        least = sum(each.seconds(dtype) for each in found)
        cells += [f"{numbers * size / 1e6:,.0f}", f"{1e6 * least:,.0f}"]
    return cells


if __name__ == "__main__":
    print(table())
