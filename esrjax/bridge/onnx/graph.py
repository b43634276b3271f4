"""An ONNX graph in the making, from a trace whose extents may be symbols."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.bridge.onnx.runtime import require
from esrjax.errors import UserError
from esrjax.network.extent import Extent

OPSET = 18

Known = NDArray[Any]
Value = Any  # the name of a value in the graph, or a `Known` array

# jax's own types of traces are not public; an equation has primitive, params, invars, outvars.
Equation = Any

OPERATORS: Mapping[type[ast.operator], str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}


class NotInOnnx(UserError):
    """The trace holds what has no counterpart in ONNX here."""


class Graph:
    """Nodes and constants in order. symbols: of extents -> (a value of the graph, its axis)."""

    def __init__(self, symbols: Mapping[str, tuple[str, int]], above: Graph | None = None):
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {} if above is None else above.constants
        self._symbols = symbols
        self._above = above
        self._made: dict[str, str] = {}
        self._count = [0] if above is None else above._count

    def inner(self) -> Graph:
        """The graph of a loop's body, which sees the values of this one."""
        return Graph(self._symbols, self)

    def add(self, operator: str, *given: Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node's output, or the list of its outputs."""
        helper = require("onnx").helper
        made = [self.fresh(operator) for _ in range(outputs)]
        names = [self.name(value) for value in given]
        self.nodes.append(helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def fresh(self, stem: str) -> str:
        """A name that nothing has yet."""
        self._count[0] += 1
        return f"{stem.lower()}_{self._count[0]}"

    def name(self, value: Value) -> str:
        """The name of a value; a known array becomes a constant."""
        if isinstance(value, str):
            return value
        value = np.asarray(value)
        key = f"{value.dtype}{value.shape}{value.tobytes() if value.size < 64 else id(value)}"
        if key not in self.constants:
            name = self.fresh("constant")
            tensor = require("onnx").numpy_helper.from_array(value, name)
            self.constants[key] = (tensor, value)  # kept alive, for its id is its key
        return self.constants[key][0].name

    # --- extents ---------------------------------------------------------------------------

    def shape(self, extents: Sequence[Extent]) -> Value:
        """The extents as a vector of int64; a known one where all are."""
        if all(isinstance(extent, int) for extent in extents):
            return np.asarray(extents, np.int64)
        return self.add("Concat", *map(self.extent, extents), axis=0)

    def extent(self, extent: Extent) -> Value:
        """The extent as a vector of one int64."""
        if isinstance(extent, int):
            return np.asarray([extent], np.int64)
        return self._expression(ast.parse(str(extent).replace("^", "**"), mode="eval").body)

    def _expression(self, node: ast.expr) -> Value:
        """A symbol is said in Python's terms: `max(4*floordiv(h - 7, 4), 1)`."""
        key = ast.unparse(node)
        if key not in self._made:
            self._made[key] = self._calculated(node)
        return self._made[key]

    def _calculated(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int(value)):
                return np.asarray([value], np.int64)
            case ast.Name(id=symbol):
                value, axis = self._symbols[symbol]
                return self.add("Shape", value, start=axis, end=axis + 1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._expression(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
                return self.add("Pow", self._expression(left), np.asarray([power], np.int64))
            case ast.BinOp(left=left, op=operator, right=right):
                sides = self._expression(left), self._expression(right)
                return self.add(OPERATORS[type(operator)], *sides)
            case ast.Call(func=ast.Name(id=function), args=[left, right]):
                return self._called(function, self._expression(left), self._expression(right))
            case _:
                raise NotImplementedError(f"the extent {ast.unparse(node)}")

    def _called(self, function: str, left: Value, right: Value) -> Value:
        if function in ("max", "min"):
            return self.add(function.capitalize(), left, right)
        rest = self.add("Mod", left, right)
        if function == "mod":
            return rest
        return self.add("Div", self.add("Sub", left, rest), right)  # Div alone rounds to zero


def not_in_onnx(what: str, equation: Equation) -> NotInOnnx:
    """The error for one equation."""
    return NotInOnnx(
        f"{what} has no counterpart in ONNX here",
        rule="a network is exported operation by operation, for pictures of any size",
        place=str(equation.source_info.name_stack) or "the network itself",
        remedy="export it with --format stablehlo, which holds everything that JAX runs",
    )
