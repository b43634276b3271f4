"""Lowerings of JAX primitives, and of some functional ops, to ONNX nodes.

Images are NHWC in JAX and NCHW in ONNX. Each lowering that needs NCHW transposes there and back;
ONNX Runtime's optimizer cancels most of these transposes.
"""

from collections.abc import Callable, Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np

from esrjax.bridge.onnx import places
from esrjax.bridge.onnx.graph import Constant, Eqn, GraphBuilder, Value, unsupported

Lowering = Callable[..., Any]  # (graph, eqn, *operands) -> output or list of outputs

NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


# --- elementwise -------------------------------------------------------------------------------


def _elementwise(name: str, **attributes: Any) -> Lowering:
    return lambda graph, eqn, *operands: graph.add(name, *operands, **attributes)


def _ones(eqn: Eqn) -> Constant:
    return np.ones((), eqn.outvars[0].aval.dtype)


def _integer_pow(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.add("Pow", x, np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype))


def _clamp(graph: GraphBuilder, eqn: Eqn, low: Value, x: Value, high: Value) -> Value:
    return graph.add("Min", graph.add("Max", x, low), high)


def _select_n(graph: GraphBuilder, eqn: Eqn, predicate: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise unsupported("A choice among more than two arrays", eqn)
    # select_n(False, a, b) is a, Where(False, a, b) is b
    return graph.add("Where", predicate, cases[1], cases[0])


# --- reductions, convolutions, matmuls ---------------------------------------------------------


def _reduction(name: str) -> Lowering:
    def lowering(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
        axes = sorted(eqn.params["axes"], reverse=True)
        for axis in axes:  # one by one: a single long float32 sum is less accurate
            x = graph.add(name, x, np.asarray([axis], np.int64), keepdims=0)
        return x

    return lowering


def _squeeze(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.add("Squeeze", x, np.asarray(eqn.params["dimensions"], np.int64))


def _conv_general_dilated(graph: GraphBuilder, eqn: Eqn, x: Value, w: Value) -> Value:
    params = eqn.params
    layout = params["dimension_numbers"]
    if (layout.lhs_spec, layout.rhs_spec) != ((0, 3, 1, 2), (3, 2, 0, 1)) or any(
        dilation != 1 for dilation in params["lhs_dilation"]
    ):
        raise unsupported("This layout or lhs_dilation of a convolution", eqn)
    low, high = zip(*params["padding"], strict=True)
    kernel = w.transpose(3, 2, 0, 1) if isinstance(w, np.ndarray) else None
    y = graph.add(
        "Conv",
        graph.add("Transpose", x, perm=NCHW),
        graph.add("Transpose", w, perm=[3, 2, 0, 1]) if kernel is None else kernel,
        group=params["feature_group_count"],
        pads=[*low, *high],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
    )
    return graph.add("Transpose", y, perm=NHWC)


def _reduce_window_max(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    params = eqn.params
    _, *window, _ = params["window_dimensions"]
    _, *strides, _ = params["window_strides"]
    y = graph.add("Transpose", x, perm=NCHW)
    y = graph.add("MaxPool", y, kernel_shape=window, strides=strides)
    return graph.add("Transpose", y, perm=NHWC)


def _dot_general(graph: GraphBuilder, eqn: Eqn, x: Value, y: Value) -> Value:
    (contract_x, contract_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    x_ndim, y_ndim = (len(variable.aval.shape) for variable in eqn.invars)
    if (contract_x, contract_y, batch_x) == ((x_ndim - 1,), (0,), ()) and y_ndim == 2:
        return graph.add("MatMul", x, y)
    batch_dims = tuple(range(x_ndim - 2))
    if (
        x_ndim == y_ndim
        and (contract_x, contract_y) == ((x_ndim - 1,), (x_ndim - 2,))
        and batch_x == batch_y == batch_dims
    ):
        return graph.add("MatMul", x, y)
    letters = iter(ascii_lowercase)
    x_labels = [next(letters) for _ in range(x_ndim)]
    y_labels = [next(letters) for _ in range(y_ndim)]
    for x_axis, y_axis in (
        *zip(contract_x, contract_y, strict=True),
        *zip(batch_x, batch_y, strict=True),
    ):
        y_labels[y_axis] = x_labels[x_axis]
    free_labels = [x_labels[i] for i in range(x_ndim) if i not in (*contract_x, *batch_x)]
    free_labels += [y_labels[i] for i in range(y_ndim) if i not in (*contract_y, *batch_y)]
    out_labels = "".join([*(x_labels[i] for i in batch_x), *free_labels])
    return graph.add(
        "Einsum", x, y, equation=f"{''.join(x_labels)},{''.join(y_labels)}->{out_labels}"
    )


def _argmax(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    (axis,) = eqn.params["axes"]
    return places.cast(graph, eqn, graph.add("ArgMax", x, axis=axis, keepdims=0))


def _sort(graph: GraphBuilder, eqn: Eqn, keys: Value, *values: Value) -> list[Value]:
    """Sort by the first operand; TopK is stable, it puts the lower index of equal keys first."""
    axis = eqn.params["dimension"]
    count = graph.dim_vector(eqn.invars[0].aval.shape[axis])
    sorted_keys, order = graph.add("TopK", keys, count, num_outputs=2, axis=axis, largest=0)
    return [
        sorted_keys,
        *(graph.add("GatherElements", value, order, axis=axis) for value in values),
    ]


def _pixel_shuffle(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    in_channels, out_channels = (v.aval.shape[-1] for v in (eqn.invars[0], eqn.outvars[0]))
    r = round((in_channels / out_channels) ** 0.5)
    y = graph.add("Transpose", x, perm=NCHW)
    y = graph.add("DepthToSpace", y, blocksize=r, mode="CRD")  # PyTorch's channel order
    return graph.add("Transpose", y, perm=NHWC)


def _reflect_pad(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    in_shape, out_shape = (v.aval.shape for v in (eqn.invars[0], eqn.outvars[0]))
    pad_widths = [
        (out_dim - in_dim) // 2 for in_dim, out_dim in zip(in_shape, out_shape, strict=True)
    ]
    return graph.add("Pad", x, graph.shape_vector([*pad_widths, *pad_widths]), mode="reflect")


OP_LOWERINGS: Mapping[str, Lowering] = {
    "reflect_pad": _reflect_pad,
    "pixel_shuffle": _pixel_shuffle,
}

PRIMITIVE_LOWERINGS: Mapping[str, Lowering] = {
    **{
        name: _elementwise(name.capitalize())
        for name in "abs add and ceil cos div erf exp floor log max min mul neg not or pow sign "
        "sin sqrt sub tanh".split()
    },
    "add_any": _elementwise("Add"),
    "argmax": _argmax,
    "broadcast_in_dim": places.broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": places.concatenate,
    "conv_general_dilated": _conv_general_dilated,
    "convert_element_type": places.cast,
    "copy": _elementwise("Identity"),
    "dim_as_value": places.dim_as_value,
    "dot_general": _dot_general,
    "eq": _elementwise("Equal"),
    "gather": places.gather,
    "ge": _elementwise("GreaterOrEqual"),
    "gt": _elementwise("Greater"),
    "integer_pow": _integer_pow,
    "iota": places.iota,
    "le": _elementwise("LessOrEqual"),
    "log1p": lambda graph, eqn, x: graph.add("Log", graph.add("Add", x, _ones(eqn))),
    "logistic": _elementwise("Sigmoid"),
    "lt": _elementwise("Less"),
    "name": _elementwise("Identity"),
    "ne": lambda graph, eqn, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "pad": places.pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _reduce_window_max,
    "rem": _elementwise("Mod", fmod=1),
    "reshape": places.reshape,
    "rev": places.rev,
    "rsqrt": lambda graph, eqn, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": _select_n,
    "slice": places.slice,
    "sort": _sort,
    "split": places.split,
    "square": lambda graph, eqn, x: graph.add("Mul", x, x),
    "squeeze": _squeeze,
    "stack": places.stack,
    "stop_gradient": _elementwise("Identity"),
    "transpose": places.transpose,
}
