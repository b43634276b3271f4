"""What operations, and some words, become in ONNX.

Pictures are NHWC in the trace and NCHW in ONNX; the transpositions between them are left to
ONNX Runtime's optimiser, which lets most of them meet and vanish.
"""

from collections.abc import Callable, Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np

from esrjax.bridge.onnx import places
from esrjax.bridge.onnx.graph import Equation, Graph, Known, Value, not_in_onnx

Rule = Callable[..., Any]  # (graph, equation, *inputs) -> its output, or a list of them

NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


# --- pixel by pixel ----------------------------------------------------------------------------


def _operator(name: str, **attributes: Any) -> Rule:
    return lambda graph, equation, *given: graph.add(name, *given, **attributes)


def _one(equation: Equation) -> Known:
    return np.ones((), equation.outvars[0].aval.dtype)


def _power(graph: Graph, equation: Equation, x: Value) -> Value:
    return graph.add("Pow", x, np.asarray(equation.params["y"], equation.invars[0].aval.dtype))


def _clamp(graph: Graph, equation: Equation, low: Value, x: Value, high: Value) -> Value:
    return graph.add("Min", graph.add("Max", x, low), high)


def _select(graph: Graph, equation: Equation, which: Value, *cases: Value) -> Value:
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise not_in_onnx("a choice among more than two", equation)
    return graph.add("Where", which, cases[1], cases[0])


# --- over many pixels --------------------------------------------------------------------------


def _reduction(name: str) -> Rule:
    def rule(graph: Graph, equation: Equation, x: Value) -> Value:
        axes = sorted(equation.params["axes"], reverse=True)
        for axis in axes:  # in turn: one long sum in float32 loses digits
            x = graph.add(name, x, np.asarray([axis], np.int64), keepdims=0)
        return x

    return rule


def _squeeze(graph: Graph, equation: Equation, x: Value) -> Value:
    return graph.add("Squeeze", x, np.asarray(equation.params["dimensions"], np.int64))


def _convolution(graph: Graph, equation: Equation, x: Value, w: Value) -> Value:
    said = equation.params
    layout = said["dimension_numbers"]
    if (layout.lhs_spec, layout.rhs_spec) != ((0, 3, 1, 2), (3, 2, 0, 1)) or any(
        step != 1 for step in said["lhs_dilation"]
    ):
        raise not_in_onnx("this layout of a convolution", equation)
    before, after = zip(*said["padding"], strict=True)
    kernel = w.transpose(3, 2, 0, 1) if isinstance(w, np.ndarray) else None
    made = graph.add(
        "Conv",
        graph.add("Transpose", x, perm=NCHW),
        graph.add("Transpose", w, perm=[3, 2, 0, 1]) if kernel is None else kernel,
        group=said["feature_group_count"],
        pads=[*before, *after],
        strides=list(said["window_strides"]),
        dilations=list(said["rhs_dilation"]),
    )
    return graph.add("Transpose", made, perm=NHWC)


def _max_pool(graph: Graph, equation: Equation, x: Value) -> Value:
    said = equation.params
    _, *window, _ = said["window_dimensions"]
    _, *steps, _ = said["window_strides"]
    small = graph.add("Transpose", x, perm=NCHW)
    small = graph.add("MaxPool", small, kernel_shape=window, strides=steps)
    return graph.add("Transpose", small, perm=NHWC)


def _product(graph: Graph, equation: Equation, x: Value, y: Value) -> Value:
    (over_x, over_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    high, wide = (len(variable.aval.shape) for variable in equation.invars)
    if (over_x, over_y, batch_x) == ((high - 1,), (0,), ()) and wide == 2:
        return graph.add("MatMul", x, y)
    lead = tuple(range(high - 2))
    if (
        high == wide
        and (over_x, over_y) == ((high - 1,), (high - 2,))
        and batch_x == batch_y == lead
    ):
        return graph.add("MatMul", x, y)
    letters = iter(ascii_lowercase)
    of_x = [next(letters) for _ in range(high)]
    of_y = [next(letters) for _ in range(wide)]
    for one, other in (*zip(over_x, over_y, strict=True), *zip(batch_x, batch_y, strict=True)):
        of_y[other] = of_x[one]
    free = [of_x[i] for i in range(high) if i not in (*over_x, *batch_x)]
    free += [of_y[i] for i in range(wide) if i not in (*over_y, *batch_y)]
    made = "".join([*(of_x[i] for i in batch_x), *free])
    return graph.add("Einsum", x, y, equation=f"{''.join(of_x)},{''.join(of_y)}->{made}")


def _argmax(graph: Graph, equation: Equation, x: Value) -> Value:
    (axis,) = equation.params["axes"]
    return places.cast(graph, equation, graph.add("ArgMax", x, axis=axis, keepdims=0))


def _sort(graph: Graph, equation: Equation, keys: Value, *others: Value) -> list[Value]:
    """By the first operand; of equals the earlier comes first."""
    axis = equation.params["dimension"]
    count = graph.extent(equation.invars[0].aval.shape[axis])
    made, order = graph.add("TopK", keys, count, outputs=2, axis=axis, largest=0)
    return [made, *(graph.add("GatherElements", other, order, axis=axis) for other in others)]


def _pixel_shuffle(graph: Graph, equation: Equation, x: Value) -> Value:
    wide, narrow = (v.aval.shape[-1] for v in (equation.invars[0], equation.outvars[0]))
    r = round((wide / narrow) ** 0.5)
    large = graph.add("Transpose", x, perm=NCHW)
    large = graph.add("DepthToSpace", large, blocksize=r, mode="CRD")
    return graph.add("Transpose", large, perm=NHWC)


def _mirror(graph: Graph, equation: Equation, x: Value) -> Value:
    old, new = (v.aval.shape for v in (equation.invars[0], equation.outvars[0]))
    ring = [(after - before) // 2 for before, after in zip(old, new, strict=True)]
    return graph.add("Pad", x, graph.shape([*ring, *ring]), mode="reflect")


WORDS: Mapping[str, Rule] = {"mirror": _mirror, "pixel_shuffle": _pixel_shuffle}

RULES: Mapping[str, Rule] = {
    **{
        name: _operator(name.capitalize())
        for name in "abs add and ceil cos div erf exp floor log max min mul neg not or pow sign "
        "sin sqrt sub tanh".split()
    },
    "add_any": _operator("Add"),
    "argmax": _argmax,
    "broadcast_in_dim": places.broadcast,
    "clamp": _clamp,
    "concatenate": places.concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": places.cast,
    "copy": _operator("Identity"),
    "dim_as_value": places.extent_as_value,
    "dot_general": _product,
    "eq": _operator("Equal"),
    "gather": places.gather,
    "ge": _operator("GreaterOrEqual"),
    "gt": _operator("Greater"),
    "integer_pow": _power,
    "iota": places.iota,
    "le": _operator("LessOrEqual"),
    "log1p": lambda graph, equation, x: graph.add("Log", graph.add("Add", x, _one(equation))),
    "logistic": _operator("Sigmoid"),
    "lt": _operator("Less"),
    "name": _operator("Identity"),
    "ne": lambda graph, equation, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "pad": places.pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _max_pool,
    "rem": _operator("Mod", fmod=1),
    "reshape": places.reshape,
    "rev": places.reverse,
    "rsqrt": lambda graph, equation, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": _select,
    "slice": places.slice,
    "sort": _sort,
    "split": places.split,
    "square": lambda graph, equation, x: graph.add("Mul", x, x),
    "squeeze": _squeeze,
    "stack": places.stack,
    "stop_gradient": _operator("Identity"),
    "transpose": places.transpose,
}
