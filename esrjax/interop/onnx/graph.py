"""`GraphBuilder`, which collects ONNX nodes and constants and lowers symbolic dimensions.

While a network is traced for export, heights and widths are symbols: a shape contains expressions
such as `4*h` or `max(floordiv(w, 8), 1)`. In the ONNX graph they are computed from the shape of the
input when the model runs.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.errors import ExportError
from esrjax.interop.onnx.sessions import import_library
from esrjax.nn.masking import Dim

OPSET = 18  # of ONNX operators

Constant = NDArray[Any]
Value = Any  # name of a value in the graph, or a `Constant`

# A `jax.core.JaxprEqn`, which is not public API: it has primitive, params, invars, outvars.
Eqn = Any

BINARY_OPS: Mapping[type[ast.operator], str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}


def int64(*values: int) -> Constant:
    """Return an int64 vector, as ONNX operators take axes and shapes."""
    return np.asarray(values, np.int64)


def value_info(name: str, dtype: Any, dims: Sequence[int | str | None]) -> Any:
    """Return the declaration of an input or output; a dimension is a size, a symbol or unknown."""
    return import_library("onnx").helper.make_tensor_value_info(name, _elem_type(dtype), dims)


def _elem_type(dtype: Any) -> int:
    return import_library("onnx").helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class GraphBuilder:
    """An ONNX graph under construction.

    Args:
        symbols: Symbolic dimensions by name, each as a value of the graph and one of its axes:
            `{"h": ("lr", 2)}`.
        parent: The graph that contains this one as the body of a loop. Names and constants are
            shared with it.

    Attributes:
        nodes: ONNX nodes in topological order.
        constants: Pairs of ONNX tensor and NumPy array, by dtype, shape and value.
    """

    def __init__(self, symbols: Mapping[str, tuple[str, int]], parent: GraphBuilder | None = None):
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {} if parent is None else parent.constants
        self._symbols = symbols
        self._dim_values: dict[str, str] = {}
        self._count = [0] if parent is None else parent._count

    def subgraph(self) -> GraphBuilder:
        """Return a builder for the body of a loop, which can read the values of this graph."""
        return GraphBuilder(self._symbols, self)

    def add(self, op_type: str, *inputs: Value, num_outputs: int = 1, **attributes: Any) -> Any:
        """Append a node.

        Args:
            op_type: ONNX operator.
            *inputs: Its inputs; arrays become constants.
            num_outputs: Number of its outputs.
            **attributes: Its attributes.

        Returns:
            The name of its output, or a list of names if there are several.
        """
        helper = import_library("onnx").helper
        output_names = [self.unique_name(op_type) for _ in range(num_outputs)]
        input_names = [self.name_of(value) for value in inputs]
        self.nodes.append(helper.make_node(op_type, input_names, output_names, **attributes))
        return output_names[0] if num_outputs == 1 else output_names

    def cast(self, x: Value, dtype: Any) -> Value:
        """Append a conversion to a NumPy or JAX dtype."""
        return self.add("Cast", x, to=_elem_type(dtype))

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """Append a reshape; one dimension may be -1."""
        return self.add("Reshape", x, self.shape_vector(shape))

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        """Append a permutation of axes."""
        return self.add("Transpose", x, perm=list(axes))

    def unique_name(self, prefix: str) -> str:
        """Return a name that no value of the graph has yet."""
        self._count[0] += 1
        return f"{prefix.lower()}_{self._count[0]}"

    def name_of(self, value: Value) -> str:
        """Return the name of a value; an array becomes a constant."""
        if isinstance(value, str):
            return value
        value = np.asarray(value)
        key = f"{value.dtype}{value.shape}{value.tobytes() if value.size < 64 else id(value)}"
        if key not in self.constants:
            name = self.unique_name("constant")
            tensor = import_library("onnx").numpy_helper.from_array(value, name)
            self.constants[key] = (tensor, value)  # keeps the array alive: its id is the key
        return self.constants[key][0].name

    def shape_vector(self, dims: Sequence[Dim]) -> Value:
        """Return dimensions as an int64 vector; a constant if all are static."""
        if all(isinstance(dim, int) for dim in dims):
            return int64(*dims)
        return self.add("Concat", *map(self.dim_vector, dims), axis=0)

    def dim_vector(self, dim: Dim) -> Value:
        """Return one dimension as an int64 vector of length 1."""
        if isinstance(dim, int):
            return int64(dim)
        # JAX has no public access to the terms of a symbolic dimension, but prints it as a Python
        # expression, for example `max(4*floordiv(h - 7, 4), 1)`, with powers as h^2.
        return self._expression(ast.parse(str(dim).replace("^", "**"), mode="eval").body)

    def _expression(self, node: ast.expr) -> Value:
        """Return an expression's value, computed once."""
        key = ast.unparse(node)
        if key not in self._dim_values:
            self._dim_values[key] = self._add_expression(node)
        return self._dim_values[key]

    def _add_expression(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int(value)):
                return int64(value)
            case ast.Name(id=symbol):
                value, axis = self._symbols[symbol]
                return self.add("Shape", value, start=axis, end=axis + 1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._expression(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
                return self.add("Pow", self._expression(left), int64(power))
            case ast.BinOp(left=left, op=op, right=right):
                sides = self._expression(left), self._expression(right)
                return self.add(BINARY_OPS[type(op)], *sides)
            case ast.Call(func=ast.Name(id=function), args=[left, right]):
                return self._call(function, self._expression(left), self._expression(right))
            case _:
                raise NotImplementedError(f"symbolic dimension {ast.unparse(node)}")

    def _call(self, function: str, left: Value, right: Value) -> Value:
        if function in ("max", "min"):
            return self.add(function.capitalize(), left, right)
        # Python's `//` and `%` floor. ONNX's integer Mod does, too (the sign is the divisor's), but
        # Div truncates: subtracting the remainder first makes the division exact.
        remainder = self.add("Mod", left, right)
        if function == "mod":
            return remainder
        return self.add("Div", self.add("Sub", left, remainder), right)


def unsupported(description: str, eqn: Eqn) -> ExportError:
    """Return the error for an equation that has no ONNX equivalent here."""
    return ExportError(
        f"{description} is not supported in ONNX export",
        rule="a network is exported operation by operation, for images of any size",
        location=str(eqn.source_info.name_stack) or "the network itself",
        remedy="use --format stablehlo, which supports every operation of JAX",
    )
