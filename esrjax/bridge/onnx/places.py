"""Rules that move values about: extents, shapes, slices, positions."""

from typing import Any

import numpy as np

from esrjax.bridge.onnx.graph import Equation, Graph, Value, not_in_onnx
from esrjax.bridge.onnx.runtime import require

LAST = np.asarray([-1], np.int64)
INT64 = 7  # as ONNX numbers the types


def cast(graph: Graph, equation: Equation, x: Value) -> Value:
    kind = require("onnx").helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
    return graph.add("Cast", x, to=kind)


def shape(graph: Graph, equation: Equation) -> Value:
    return graph.shape(equation.outvars[0].aval.shape)


def reshape(graph: Graph, equation: Equation, x: Value, *extents: Value) -> Value:
    return graph.add("Reshape", x, shape(graph, equation))


def broadcast(graph: Graph, equation: Equation, x: Value, *extents: Value) -> Value:
    shape, places = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    old = equation.invars[0].aval.shape
    thin = [1] * len(shape)
    for place, extent in zip(places, old, strict=True):
        thin[place] = extent
    x = x if len(old) == len(shape) else graph.add("Reshape", x, graph.shape(thin))
    return x if tuple(thin) == tuple(shape) else graph.add("Expand", x, graph.shape(shape))


def extent_as_value(graph: Graph, equation: Equation) -> Value:
    extent = graph.extent(equation.params["dim"])
    return cast(graph, equation, graph.add("Squeeze", extent, np.asarray([0], np.int64)))


def transpose(graph: Graph, equation: Equation, x: Value) -> Value:
    return graph.add("Transpose", x, perm=list(equation.params["permutation"]))


def concatenate(graph: Graph, equation: Equation, *parts: Value) -> Value:
    return graph.add("Concat", *parts, axis=equation.params["dimension"])


def stack(graph: Graph, equation: Equation, *parts: Value) -> Value:
    axis = np.asarray([equation.params["axis"]], np.int64)
    parts = tuple(graph.add("Unsqueeze", part, axis) for part in parts)
    return graph.add("Concat", *parts, axis=equation.params["axis"])


def slice(graph: Graph, equation: Equation, x: Value, *extents: Value) -> Value:
    first, last = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(first)
    old = equation.invars[0].aval.shape
    axes = [
        axis
        for axis, span in enumerate(zip(first, last, steps, old, strict=True))
        if not _same(span[0], 0) or span[2] != 1 or not _same(span[1], span[3])
    ]
    if not axes:
        return x
    spans = ([each[axis] for axis in axes] for each in (first, last))
    return graph.add(
        "Slice", x, *map(graph.shape, spans), np.asarray(axes), np.asarray([steps[a] for a in axes])
    )


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


def split(graph: Graph, equation: Equation, x: Value) -> Value:
    sizes = equation.params["sizes"]
    made = graph.add(
        "Split", x, graph.shape(sizes), outputs=len(sizes), axis=equation.params["axis"]
    )
    return made if isinstance(made, list) else [made]


def pad(graph: Graph, equation: Equation, x: Value, filling: Value, *extents: Value) -> Value:
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise not_in_onnx("padding between pixels", equation)
    return graph.add("Pad", x, graph.shape([*before, *after]), filling)


def reverse(graph: Graph, equation: Equation, x: Value) -> Value:
    axes = np.asarray(equation.params["dimensions"], np.int64)
    end = np.full_like(axes, np.iinfo(np.int64).min)
    return graph.add("Slice", x, np.full_like(axes, -1), end, axes, np.full_like(axes, -1))


def iota(graph: Graph, equation: Equation, *extents: Value) -> Value:
    aval, axis = equation.outvars[0].aval, equation.params["dimension"]
    extent = graph.add("Squeeze", graph.extent(aval.shape[axis]), np.asarray([0], np.int64))
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    line = cast(graph, equation, graph.add("Range", zero, extent, one))
    if len(aval.shape) == 1:
        return line
    thin = [-1 if i == axis else 1 for i in range(len(aval.shape))]
    return graph.add(
        "Expand", graph.add("Reshape", line, graph.shape(thin)), graph.shape(aval.shape)
    )


def gather(graph: Graph, equation: Equation, x: Value, where: Value, *extents: Value) -> Value:
    """Positions lie inside, as the words take care."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    lanes = len(equation.invars[1].aval.shape) - 1
    if lanes == 0:
        return _cut(graph, equation, x, where)
    if numbers.operand_batching_dims == (0,) and numbers.start_index_map == (1,):
        return graph.add("GatherND", x, graph.add("Cast", where, to=INT64), batch_dims=1)
    if numbers.operand_batching_dims or len(numbers.start_index_map) != 1:
        raise not_in_onnx("this way of picking elements", equation)
    (axis,), old = numbers.start_index_map, equation.invars[0].aval.shape
    rest = [i for i in range(len(old) - 1 + lanes) if not axis <= i < axis + lanes]
    whole = all(_same(*pair) for i, pair in enumerate(zip(sizes, old, strict=True)) if i != axis)
    if numbers.collapsed_slice_dims != (axis,) or list(numbers.offset_dims) != rest or not whole:
        raise not_in_onnx("this way of picking elements", equation)
    return graph.add("Gather", x, graph.add("Squeeze", where, LAST), axis=axis)


def _cut(graph: Graph, equation: Equation, x: Value, where: Value) -> Value:
    """The one piece that begins at `where`."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes = list(numbers.start_index_map)
    first = graph.add("Cast", where, to=INT64)
    last = graph.add("Add", first, graph.shape([sizes[axis] for axis in axes]))
    piece = graph.add("Slice", x, first, last, np.asarray(axes))
    gone = np.asarray(numbers.collapsed_slice_dims, np.int64)
    return graph.add("Squeeze", piece, gone) if gone.size else piece
