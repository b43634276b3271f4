"""Lowerings of JAX primitives that rearrange arrays: reshape, slice, pad, gather and others.

Functions have the names of their primitives. Where a shape is symbolic, JAX passes its dimensions
as further operands (`*dims`); they are ignored, as `GraphBuilder` computes them from the shapes.
"""

from typing import Any

import numpy as np

from esrjax.bridge.onnx.graph import Eqn, GraphBuilder, Value, unsupported
from esrjax.bridge.onnx.runtime import import_library

LAST_AXIS = np.asarray([-1], np.int64)
INT64 = 7  # onnx.TensorProto.INT64


def cast(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    elem_type = import_library("onnx").helper.np_dtype_to_tensor_dtype(
        np.dtype(eqn.outvars[0].aval.dtype)
    )
    return graph.add("Cast", x, to=elem_type)


def output_shape(graph: GraphBuilder, eqn: Eqn) -> Value:
    return graph.shape_vector(eqn.outvars[0].aval.shape)


def reshape(graph: GraphBuilder, eqn: Eqn, x: Value, *dims: Value) -> Value:
    return graph.add("Reshape", x, output_shape(graph, eqn))


def broadcast_in_dim(graph: GraphBuilder, eqn: Eqn, x: Value, *dims: Value) -> Value:
    shape, axes = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    in_shape = eqn.invars[0].aval.shape
    expanded_shape = [1] * len(shape)
    for axis, dim in zip(axes, in_shape, strict=True):
        expanded_shape[axis] = dim
    x = (
        x
        if len(in_shape) == len(shape)
        else graph.add("Reshape", x, graph.shape_vector(expanded_shape))
    )
    return (
        x
        if tuple(expanded_shape) == tuple(shape)
        else graph.add("Expand", x, graph.shape_vector(shape))
    )


def dim_as_value(graph: GraphBuilder, eqn: Eqn) -> Value:
    vector = graph.dim_vector(eqn.params["dim"])
    return cast(graph, eqn, graph.add("Squeeze", vector, np.asarray([0], np.int64)))


def transpose(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.add("Transpose", x, perm=list(eqn.params["permutation"]))


def concatenate(graph: GraphBuilder, eqn: Eqn, *operands: Value) -> Value:
    return graph.add("Concat", *operands, axis=eqn.params["dimension"])


def stack(graph: GraphBuilder, eqn: Eqn, *operands: Value) -> Value:
    axis = np.asarray([eqn.params["axis"]], np.int64)
    operands = tuple(graph.add("Unsqueeze", operand, axis) for operand in operands)
    return graph.add("Concat", *operands, axis=eqn.params["axis"])


def slice(graph: GraphBuilder, eqn: Eqn, x: Value, *dims: Value) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    in_shape = eqn.invars[0].aval.shape
    axes = [
        axis
        for axis, bounds in enumerate(zip(starts, limits, strides, in_shape, strict=True))
        if not _equal_dims(bounds[0], 0) or bounds[2] != 1 or not _equal_dims(bounds[1], bounds[3])
    ]
    if not axes:
        return x
    start_and_limit = ([values[axis] for axis in axes] for values in (starts, limits))
    return graph.add(
        "Slice",
        x,
        *map(graph.shape_vector, start_and_limit),
        np.asarray(axes),
        np.asarray([strides[a] for a in axes]),
    )


def _equal_dims(a: Any, b: Any) -> bool:
    """Compare as text: `==` of symbolic dimensions raises where JAX cannot decide it."""
    return str(a) == str(b)


def split(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    sizes = eqn.params["sizes"]
    outputs = graph.add(
        "Split", x, graph.shape_vector(sizes), num_outputs=len(sizes), axis=eqn.params["axis"]
    )
    return outputs if isinstance(outputs, list) else [outputs]


def pad(graph: GraphBuilder, eqn: Eqn, x: Value, padding_value: Value, *dims: Value) -> Value:
    low, high, interior = zip(*eqn.params["padding_config"], strict=True)
    if any(interior):
        raise unsupported("Interior padding", eqn)
    return graph.add("Pad", x, graph.shape_vector([*low, *high]), padding_value)


def rev(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    axes = np.asarray(eqn.params["dimensions"], np.int64)
    end = np.full_like(axes, np.iinfo(np.int64).min)  # with step -1: up to and including index 0
    return graph.add("Slice", x, np.full_like(axes, -1), end, axes, np.full_like(axes, -1))


def iota(graph: GraphBuilder, eqn: Eqn, *dims: Value) -> Value:
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    size = graph.add("Squeeze", graph.dim_vector(aval.shape[axis]), np.asarray([0], np.int64))
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    values = cast(graph, eqn, graph.add("Range", zero, size, one))
    if len(aval.shape) == 1:
        return values
    expanded_shape = [-1 if i == axis else 1 for i in range(len(aval.shape))]
    return graph.add(
        "Expand",
        graph.add("Reshape", values, graph.shape_vector(expanded_shape)),
        graph.shape_vector(aval.shape),
    )


def gather(graph: GraphBuilder, eqn: Eqn, x: Value, indices: Value, *dims: Value) -> Value:
    """Lower a gather of whole slices along one axis, of rows per image, or of one slice.

    Indices are assumed to be in bounds; the functional ops guarantee it.
    """
    dimension_numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    num_index_dims = len(eqn.invars[1].aval.shape) - 1
    if num_index_dims == 0:
        return _dynamic_slice(graph, eqn, x, indices)
    if dimension_numbers.operand_batching_dims == (0,) and dimension_numbers.start_index_map == (
        1,
    ):
        return graph.add("GatherND", x, graph.add("Cast", indices, to=INT64), batch_dims=1)
    if dimension_numbers.operand_batching_dims or len(dimension_numbers.start_index_map) != 1:
        raise unsupported("This form of gather", eqn)
    (axis,), in_shape = dimension_numbers.start_index_map, eqn.invars[0].aval.shape
    expected_offset_dims = [
        i
        for i in range(len(in_shape) - 1 + num_index_dims)
        if not axis <= i < axis + num_index_dims
    ]
    full_slices = all(
        _equal_dims(*pair)
        for i, pair in enumerate(zip(slice_sizes, in_shape, strict=True))
        if i != axis
    )
    if (
        dimension_numbers.collapsed_slice_dims != (axis,)
        or list(dimension_numbers.offset_dims) != expected_offset_dims
        or not full_slices
    ):
        raise unsupported("This form of gather", eqn)
    return graph.add("Gather", x, graph.add("Squeeze", indices, LAST_AXIS), axis=axis)


def _dynamic_slice(graph: GraphBuilder, eqn: Eqn, x: Value, indices: Value) -> Value:
    """Lower a gather of one slice, which starts at `indices`."""
    dimension_numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axes = list(dimension_numbers.start_index_map)
    starts = graph.add("Cast", indices, to=INT64)
    ends = graph.add("Add", starts, graph.shape_vector([slice_sizes[axis] for axis in axes]))
    sliced = graph.add("Slice", x, starts, ends, np.asarray(axes))
    collapsed = np.asarray(dimension_numbers.collapsed_slice_dims, np.int64)
    return graph.add("Squeeze", sliced, collapsed) if collapsed.size else sliced
