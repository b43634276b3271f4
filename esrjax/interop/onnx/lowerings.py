"""`lower`, which turns a jaxpr into the nodes of an ONNX graph, equation by equation."""

from collections.abc import Callable, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from esrjax.interop.onnx.graph import Constant, Eqn, GraphBuilder, Value, unsupported
from esrjax.interop.onnx.runtime import import_library
from esrjax.nn.functional import OP_PREFIX
from esrjax.nn.masking import is_static

# Primitives that call a function once with all of their operands: they are inlined.
CALLS = frozenset("jit pjit closed_call custom_jvp_call custom_vjp_call checkpoint remat2".split())


def lower(
    graph: GraphBuilder, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """Append the equations of a jaxpr to the graph.

    Args:
        graph: Receives nodes and constants.
        jaxpr: A `jax.core.Jaxpr`.
        constants: Values of its `constvars`.
        inputs: Values of its `invars`.

    Returns:
        Values of its `outvars`.

    Raises:
        ExportError: If an equation has no ONNX equivalent.
    """
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)

    def read(variable: Any) -> Value:
        # A `Literal` has a value, a `Var` has not.
        return np.asarray(variable.val) if hasattr(variable, "val") else values[variable]

    for eqn in jaxpr.eqns:
        operands = [read(variable) for variable in eqn.invars]
        outputs = _lower_eqn(graph, eqn, operands)
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _lower_eqn(graph: GraphBuilder, eqn: Eqn, operands: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    # Some functional ops (pixel shuffle) are traced as named jit calls: ONNX has one node for them.
    op_name = str(eqn.params.get("name")).removeprefix(OP_PREFIX) if name in CALLS else name
    if name in CALLS and op_name not in OP_LOWERINGS:
        return _lower_call(graph, eqn, operands)
    if name == "scan":
        return _lower_scan(graph, eqn, operands)
    lowering = OP_LOWERINGS.get(op_name) or PRIMITIVE_LOWERINGS.get(name)
    if lowering is None:
        raise unsupported(f"Operation {name!r}", eqn)
    if name in PRIMITIVE_LOWERINGS and _is_constant(eqn, operands):
        return _constant_fold(eqn, operands)
    outputs = lowering(graph, eqn, *operands)
    return outputs if isinstance(outputs, list) else [outputs]


def _is_constant(eqn: Eqn, operands: list[Value]) -> bool:
    """Return whether the outputs depend on constants alone and have static shapes."""
    dims = [dim for variable in eqn.outvars for dim in variable.aval.shape]
    all_constant = all(isinstance(value, np.ndarray) for value in operands)
    return all_constant and all(map(is_static, dims)) and eqn.primitive.name != "dim_as_value"


def _constant_fold(eqn: Eqn, operands: list[Constant]) -> list[Value]:
    """Evaluate an equation whose operands are constants."""
    result = eqn.primitive.bind(*operands, **eqn.params)
    outputs = result if eqn.primitive.multiple_results else [result]
    return [np.asarray(value) for value in outputs]


def _lower_call(graph: GraphBuilder, eqn: Eqn, operands: list[Value]) -> list[Value]:
    inner_jaxpr = next(eqn.params[key] for key in ("call_jaxpr", "jaxpr") if key in eqn.params)
    return lower(
        graph,
        getattr(inner_jaxpr, "jaxpr", inner_jaxpr),
        getattr(inner_jaxpr, "consts", ()),
        operands,
    )


def _lower_scan(graph: GraphBuilder, eqn: Eqn, operands: list[Value]) -> list[Value]:
    """Lower a scan over the first axis; its constants are read from the graph around the body."""
    params, helper = eqn.params, import_library("onnx").helper
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    subgraph, scan_operands = graph.subgraph(), operands[num_consts:]
    input_names = [subgraph.unique_name("scan") for _ in scan_operands]
    closed_jaxpr = params["jaxpr"]
    results = lower(
        subgraph, closed_jaxpr.jaxpr, closed_jaxpr.consts, [*operands[:num_consts], *input_names]
    )
    output_names = [subgraph.add("Identity", value) for value in results]
    value_infos = (
        [_value_info(name, variable) for name, variable in zip(names, variables, strict=True)]
        for names, variables in (
            (input_names, closed_jaxpr.jaxpr.invars[num_consts:]),
            (output_names, closed_jaxpr.jaxpr.outvars),
        )
    )
    num_scan_inputs = len(scan_operands) - num_carry
    directions = {
        "scan_input_directions": num_scan_inputs,
        "scan_output_directions": len(output_names) - num_carry,
    }
    results = graph.add(
        "Scan",
        *scan_operands,
        num_outputs=len(output_names),
        body=helper.make_graph(subgraph.nodes, "scan", *value_infos),
        num_scan_inputs=num_scan_inputs,
        **{name: [1] * count for name, count in directions.items() if params["reverse"] and count},
    )
    return results if isinstance(results, list) else [results]


def _value_info(name: str, variable: Any) -> Any:
    helper = import_library("onnx").helper
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(variable.aval.dtype))
    return helper.make_tensor_value_info(name, elem_type, [None] * len(variable.aval.shape))


# --------------------------------------------------------------------------------------------------
# Lowerings of JAX primitives that rearrange arrays: reshape, slice, pad, gather and others.
#
# Functions have the names of their primitives. Where a shape is symbolic, JAX passes its dimensions
# as further operands (`*dims`); they are ignored, as `GraphBuilder` computes them from the shapes.
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# Lowerings of JAX primitives, and of some functional ops, to ONNX nodes.
#
# Images are NHWC in JAX and NCHW in ONNX. Each lowering that needs NCHW transposes there and back;
# ONNX Runtime's optimizer cancels most of these transposes.
# --------------------------------------------------------------------------------------------------


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
    return cast(graph, eqn, graph.add("ArgMax", x, axis=axis, keepdims=0))


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
    "broadcast_in_dim": broadcast_in_dim,
    "clamp": _clamp,
    "concatenate": concatenate,
    "conv_general_dilated": _conv_general_dilated,
    "convert_element_type": cast,
    "copy": _elementwise("Identity"),
    "dim_as_value": dim_as_value,
    "dot_general": _dot_general,
    "eq": _elementwise("Equal"),
    "gather": gather,
    "ge": _elementwise("GreaterOrEqual"),
    "gt": _elementwise("Greater"),
    "integer_pow": _integer_pow,
    "iota": iota,
    "le": _elementwise("LessOrEqual"),
    "log1p": lambda graph, eqn, x: graph.add("Log", graph.add("Add", x, _ones(eqn))),
    "logistic": _elementwise("Sigmoid"),
    "lt": _elementwise("Less"),
    "name": _elementwise("Identity"),
    "ne": lambda graph, eqn, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "pad": pad,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "reduce_window_max": _reduce_window_max,
    "rem": _elementwise("Mod", fmod=1),
    "reshape": reshape,
    "rev": rev,
    "rsqrt": lambda graph, eqn, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": _select_n,
    "slice": slice,
    "sort": _sort,
    "split": split,
    "square": lambda graph, eqn, x: graph.add("Mul", x, x),
    "squeeze": _squeeze,
    "stack": stack,
    "stop_gradient": _elementwise("Identity"),
    "transpose": transpose,
}
