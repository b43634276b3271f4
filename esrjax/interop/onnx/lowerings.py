"""`to_onnx`, the ONNX model of a JAX function of images, and the lowering of each primitive.

A lowering takes the graph, the equation and the values of its operands, and returns the value of
its output, or a list of values. Where a shape is symbolic, JAX passes its dimensions as further
operands (`*dims`); they are ignored, as `GraphBuilder` computes them from the shapes.

Images are NHWC in JAX and NCHW in ONNX. Each lowering that needs NCHW transposes there and back;
ONNX Runtime's optimizer cancels most of these transposes.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import jax
import numpy as np
from jax import Array

from esrjax.errors import ExportError
from esrjax.interop.onnx.graph import (
    OPSET,
    Eqn,
    GraphBuilder,
    Value,
    int64,
    unsupported,
    value_info,
)
from esrjax.interop.onnx.sessions import INPUT, import_library, make_session
from esrjax.nn import quantization
from esrjax.nn.functional import OP_PREFIX
from esrjax.nn.masking import is_static

Lowering = Callable[..., Any]  # (graph, eqn, *operands) -> output or list of outputs

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
        outputs = _lower_eqn(graph, eqn, [read(variable) for variable in eqn.invars])
        values |= zip(eqn.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _lower_eqn(graph: GraphBuilder, eqn: Eqn, operands: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in CALLS:
        # Some functional ops (pixel shuffle) are named jit calls: ONNX has one node for them.
        op_name = str(eqn.params.get("name")).removeprefix(OP_PREFIX)
        outputs = OP_LOWERINGS.get(op_name, _inline)(graph, eqn, *operands)
    elif name not in PRIMITIVE_LOWERINGS:
        raise unsupported(f"Operation {name!r}", eqn)
    elif _is_constant(eqn, operands):
        result = eqn.primitive.bind(*operands, **eqn.params)
        outputs = list(map(np.asarray, result if eqn.primitive.multiple_results else [result]))
    else:
        outputs = PRIMITIVE_LOWERINGS[name](graph, eqn, *operands)
    return outputs if isinstance(outputs, list) else [outputs]


def _is_constant(eqn: Eqn, operands: list[Value]) -> bool:
    """Return whether the outputs depend on constants alone and have static shapes."""
    if eqn.primitive.name in ("dim_as_value", "scan"):
        return False
    dims = [dim for variable in eqn.outvars for dim in variable.aval.shape]
    return all(isinstance(x, np.ndarray) for x in operands) and all(map(is_static, dims))


def _inline(graph: GraphBuilder, eqn: Eqn, *operands: Value) -> list[Value]:
    jaxpr = next(eqn.params[key] for key in ("call_jaxpr", "jaxpr") if key in eqn.params)
    return lower(graph, getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), operands)


def _in_shape(eqn: Eqn) -> tuple[Any, ...]:
    return eqn.invars[0].aval.shape


def _out_shape(eqn: Eqn) -> tuple[Any, ...]:
    return eqn.outvars[0].aval.shape


def _equal_dims(a: Any, b: Any) -> bool:
    """Compare as text: `==` of symbolic dimensions raises where JAX cannot decide it."""
    return str(a) == str(b)


# --- arrangement of values: reshape, slice, pad, gather ---


def _cast(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.cast(x, eqn.outvars[0].aval.dtype)


def _dim_as_value(graph: GraphBuilder, eqn: Eqn) -> Value:
    return _cast(graph, eqn, graph.add("Squeeze", graph.dim_vector(eqn.params["dim"]), int64(0)))


def _broadcast_in_dim(graph: GraphBuilder, eqn: Eqn, x: Value, *dims: Value) -> Value:
    in_shape, out_shape = _in_shape(eqn), _out_shape(eqn)
    dim_of_axis = dict(zip(eqn.params["broadcast_dimensions"], in_shape, strict=True))
    expanded_shape = [dim_of_axis.get(axis, 1) for axis in range(len(out_shape))]
    if len(in_shape) != len(out_shape):
        x = graph.reshape(x, expanded_shape)
    if tuple(expanded_shape) != tuple(out_shape):
        x = graph.add("Expand", x, graph.shape_vector(out_shape))
    return x


def _stack(graph: GraphBuilder, eqn: Eqn, *operands: Value) -> Value:
    axis = eqn.params["axis"]
    slices = [graph.add("Unsqueeze", operand, int64(axis)) for operand in operands]
    return graph.add("Concat", *slices, axis=axis)


def _slice(graph: GraphBuilder, eqn: Eqn, x: Value, *dims: Value) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides, in_shape = eqn.params["strides"] or (1,) * len(starts), _in_shape(eqn)
    axes = [
        i
        for i, stride in enumerate(strides)
        if stride != 1 or not (_equal_dims(starts[i], 0) and _equal_dims(limits[i], in_shape[i]))
    ]
    if not axes:
        return x
    bounds = (graph.shape_vector([values[i] for i in axes]) for values in (starts, limits))
    return graph.add("Slice", x, *bounds, int64(*axes), int64(*(strides[i] for i in axes)))


def _split(graph: GraphBuilder, eqn: Eqn, x: Value) -> Any:
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    return graph.add("Split", x, graph.shape_vector(sizes), num_outputs=len(sizes), axis=axis)


def _pad(graph: GraphBuilder, eqn: Eqn, x: Value, padding_value: Value, *dims: Value) -> Value:
    low, high, interior = zip(*eqn.params["padding_config"], strict=True)
    if any(interior):
        raise unsupported("Interior padding", eqn)
    return graph.add("Pad", x, graph.shape_vector([*low, *high]), padding_value)


def _reflect_pad(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    sides = zip(_in_shape(eqn), _out_shape(eqn), strict=True)
    pad_widths = [(out_dim - in_dim) // 2 for in_dim, out_dim in sides]
    return graph.add("Pad", x, graph.shape_vector([*pad_widths, *pad_widths]), mode="reflect")


def _rev(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    axes = int64(*eqn.params["dimensions"])
    end = np.full_like(axes, np.iinfo(np.int64).min)  # with step -1: up to and including index 0
    return graph.add("Slice", x, np.full_like(axes, -1), end, axes, np.full_like(axes, -1))


def _iota(graph: GraphBuilder, eqn: Eqn, *dims: Value) -> Value:
    shape, axis = _out_shape(eqn), eqn.params["dimension"]
    size = graph.add("Squeeze", graph.dim_vector(shape[axis]), int64(0))
    values = _cast(graph, eqn, graph.add("Range", np.int64(0), size, np.int64(1)))
    if len(shape) == 1:
        return values
    column = graph.reshape(values, [-1 if i == axis else 1 for i in range(len(shape))])
    return graph.add("Expand", column, graph.shape_vector(shape))


def _gather(graph: GraphBuilder, eqn: Eqn, x: Value, indices: Value, *dims: Value) -> Value:
    """Lower a gather of whole slices along one axis, of rows per image, or of one slice.

    Indices are assumed to be in bounds; the functional ops guarantee it.
    """
    dim_numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    in_shape, num_index_dims = _in_shape(eqn), len(eqn.invars[1].aval.shape) - 1
    if num_index_dims == 0:
        return _dynamic_slice(graph, eqn, x, indices)
    if (dim_numbers.operand_batching_dims, dim_numbers.start_index_map) == ((0,), (1,)):
        return graph.add("GatherND", x, graph.cast(indices, np.int64), batch_dims=1)
    axis = dim_numbers.start_index_map[0]
    index_axes = range(axis, axis + num_index_dims)
    offset_dims = [i for i in range(len(in_shape) - 1 + num_index_dims) if i not in index_axes]
    other_axes = [i for i in range(len(in_shape)) if i != axis]
    if (
        dim_numbers.operand_batching_dims
        or not (dim_numbers.start_index_map == dim_numbers.collapsed_slice_dims == (axis,))
        or list(dim_numbers.offset_dims) != offset_dims
        or not all(_equal_dims(slice_sizes[i], in_shape[i]) for i in other_axes)
    ):
        raise unsupported("This form of gather", eqn)
    return graph.add("Gather", x, graph.add("Squeeze", indices, int64(-1)), axis=axis)


def _dynamic_slice(graph: GraphBuilder, eqn: Eqn, x: Value, indices: Value) -> Value:
    """Lower a gather of one slice, which starts at `indices`."""
    dim_numbers, slice_sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    axes, collapsed = dim_numbers.start_index_map, dim_numbers.collapsed_slice_dims
    starts = graph.cast(indices, np.int64)
    ends = graph.add("Add", starts, graph.shape_vector([slice_sizes[axis] for axis in axes]))
    sliced = graph.add("Slice", x, starts, ends, int64(*axes))
    return graph.add("Squeeze", sliced, int64(*collapsed)) if collapsed else sliced


# --- arithmetic ---


def _elementwise(operator: str) -> Lowering:
    return lambda graph, eqn, *operands: graph.add(operator, *operands)


def _integer_pow(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.add("Pow", x, np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype))


def _log1p(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    return graph.add("Log", graph.add("Add", x, np.ones((), eqn.outvars[0].aval.dtype)))


def _select_n(graph: GraphBuilder, eqn: Eqn, predicate: Value, *cases: Value) -> Value:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise unsupported("A choice among more than two arrays", eqn)
    # select_n(False, a, b) is a, Where(False, a, b) is b
    return graph.add("Where", predicate, cases[1], cases[0])


def _reduction(name: str) -> Lowering:
    def lowering(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
        for axis in sorted(eqn.params["axes"], reverse=True):
            # one by one: a single long float32 sum is less accurate
            x = graph.add(name, x, int64(axis), keepdims=0)
        return x

    return lowering


def _argmax(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    (axis,) = eqn.params["axes"]
    return _cast(graph, eqn, graph.add("ArgMax", x, axis=axis, keepdims=0))


def _sort(graph: GraphBuilder, eqn: Eqn, keys: Value, *values: Value) -> list[Value]:
    """Sort by the first operand; TopK is stable, it puts the lower index of equal keys first."""
    axis = eqn.params["dimension"]
    count = graph.dim_vector(_in_shape(eqn)[axis])
    sorted_keys, order = graph.add("TopK", keys, count, num_outputs=2, axis=axis, largest=0)
    return [sorted_keys, *(graph.add("GatherElements", x, order, axis=axis) for x in values)]


def _dot_general(graph: GraphBuilder, eqn: Eqn, x: Value, y: Value) -> Value:
    (contract_x, contract_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    x_ndim, y_ndim = (len(variable.aval.shape) for variable in eqn.invars)
    if (
        (contract_x, contract_y) == ((x_ndim - 1,), (y_ndim - 2,))
        and batch_x == batch_y == tuple(range(y_ndim - 2))
        and y_ndim in (2, x_ndim)
    ):
        return graph.add("MatMul", x, y)
    x_labels = list(ascii_lowercase[:x_ndim])
    y_labels = list(ascii_lowercase[x_ndim : x_ndim + y_ndim])
    for x_axis, y_axis in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True):
        y_labels[y_axis] = x_labels[x_axis]
    out_labels = [
        *(x_labels[i] for i in batch_x),
        *(label for i, label in enumerate(x_labels) if i not in (*contract_x, *batch_x)),
        *(label for i, label in enumerate(y_labels) if i not in (*contract_y, *batch_y)),
    ]
    inputs, output = f"{''.join(x_labels)},{''.join(y_labels)}", "".join(out_labels)
    return graph.add("Einsum", x, y, equation=f"{inputs}->{output}")


def _scan(graph: GraphBuilder, eqn: Eqn, *operands: Value) -> Any:
    """Lower a scan over the first axis; its constants are read from the graph around the body."""
    params, jaxpr = eqn.params, eqn.params["jaxpr"].jaxpr
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    scan_operands, body = operands[num_consts:], graph.subgraph()
    input_names = [body.unique_name("scan") for _ in scan_operands]
    body_inputs = [*operands[:num_consts], *input_names]
    results = lower(body, jaxpr, params["jaxpr"].consts, body_inputs)
    output_names = [body.add("Identity", value) for value in results]
    num_scan_inputs = len(scan_operands) - num_carry
    directions = {
        "scan_input_directions": num_scan_inputs,
        "scan_output_directions": len(output_names) - num_carry,
    }
    return graph.add(
        "Scan",
        *scan_operands,
        num_outputs=len(output_names),
        body=import_library("onnx").helper.make_graph(
            body.nodes,
            "scan",
            _value_infos(input_names, jaxpr.invars[num_consts:]),
            _value_infos(output_names, jaxpr.outvars),
        ),
        num_scan_inputs=num_scan_inputs,
        **{name: [1] * count for name, count in directions.items() if params["reverse"] and count},
    )


def _value_infos(names: Iterable[str], variables: Iterable[Any]) -> list[Any]:
    pairs = zip(names, (variable.aval for variable in variables), strict=True)
    return [value_info(name, aval.dtype, [None] * len(aval.shape)) for name, aval in pairs]


# --- images ---


def _add_nchw(
    graph: GraphBuilder, op_type: str, x: Value, *inputs: Value, **attributes: Any
) -> Value:
    """Append a node for an NHWC image, between transposes to NCHW and back."""
    y = graph.add(op_type, graph.transpose(x, [0, 3, 1, 2]), *inputs, **attributes)
    return graph.transpose(y, [0, 2, 3, 1])


def _conv_general_dilated(graph: GraphBuilder, eqn: Eqn, x: Value, w: Value) -> Value:
    params, layout = eqn.params, eqn.params["dimension_numbers"]
    is_nhwc = (layout.lhs_spec, layout.rhs_spec) == ((0, 3, 1, 2), (3, 2, 0, 1))
    if not is_nhwc or any(dilation != 1 for dilation in params["lhs_dilation"]):
        raise unsupported("This layout or lhs_dilation of a convolution", eqn)
    low, high = zip(*params["padding"], strict=True)
    return _add_nchw(
        graph,
        "Conv",
        x,
        w.transpose(3, 2, 0, 1) if isinstance(w, np.ndarray) else graph.transpose(w, [3, 2, 0, 1]),
        group=params["feature_group_count"],
        pads=[*low, *high],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
    )


def _reduce_window_max(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    _, *window, _ = eqn.params["window_dimensions"]
    _, *strides, _ = eqn.params["window_strides"]
    return _add_nchw(graph, "MaxPool", x, kernel_shape=window, strides=strides)


def _pixel_shuffle(graph: GraphBuilder, eqn: Eqn, x: Value) -> Value:
    r = round((_in_shape(eqn)[-1] / _out_shape(eqn)[-1]) ** 0.5)
    return _add_nchw(graph, "DepthToSpace", x, blocksize=r, mode="CRD")  # PyTorch's channel order


# --- 8-bit integers ---


def _fake_quantize(graph: GraphBuilder, eqn: Eqn, x: Value, input_range: Value) -> Value:
    if not (isinstance(input_range, np.ndarray) and np.isfinite(input_range).all()):
        raise unsupported("A quantized layer without a range of its inputs", eqn)
    scale, zero_point = map(np.asarray, quantization.input_grid(input_range))
    grid = scale, zero_point.astype(np.uint8)
    nchw = graph.transpose(x, [0, 3, 1, 2])
    rounded = graph.add("DequantizeLinear", graph.add("QuantizeLinear", nchw, *grid), *grid)
    return graph.transpose(rounded, [0, 2, 3, 1])


def _fake_quantize_weight(graph: GraphBuilder, eqn: Eqn, w: Value) -> Value:
    if not isinstance(w, np.ndarray):
        raise unsupported("A quantized kernel that depends on the image", eqn)
    scale = np.asarray(quantization.weight_scale(w))
    integers = np.rint(w / scale).astype(np.int8).transpose(3, 2, 0, 1)
    zero_points = np.zeros(scale.size, np.int8)
    rounded = graph.add("DequantizeLinear", integers, scale.ravel(), zero_points, axis=0)
    return graph.transpose(rounded, [2, 3, 1, 0])


# --- tables ---

# Elementwise operators: the JAX primitive and, where it has another name, the ONNX operator.
ELEMENTWISE = (
    "abs add add_any:Add and ceil copy:Identity cos div eq:Equal erf exp floor ge:GreaterOrEqual "
    "gt:Greater le:LessOrEqual log logistic:Sigmoid lt:Less max min mul name:Identity neg not or "
    "pow sign sin sqrt stop_gradient:Identity sub tanh"
)

OP_LOWERINGS: Mapping[str, Lowering] = {
    "fake_quantize": _fake_quantize,
    "fake_quantize_weight": _fake_quantize_weight,
    "reflect_pad": _reflect_pad,
    "pixel_shuffle": _pixel_shuffle,
}

# Lowerings that are named after their primitives.
LOWERINGS: tuple[Lowering, ...] = (
    *(_argmax, _broadcast_in_dim, _conv_general_dilated, _dim_as_value, _dot_general, _gather),
    *(_integer_pow, _iota, _log1p, _pad, _reduce_window_max, _rev, _scan, _select_n, _slice),
    *(_sort, _split, _stack),
)

PRIMITIVE_LOWERINGS: Mapping[str, Lowering] = {
    **{
        primitive: _elementwise(operator or primitive.capitalize())
        for primitive, _, operator in (entry.partition(":") for entry in ELEMENTWISE.split())
    },
    **{lowering.__name__.removeprefix("_"): lowering for lowering in LOWERINGS},
    "clamp": lambda graph, eqn, low, x, high: graph.add("Min", graph.add("Max", x, low), high),
    "concatenate": lambda graph, eqn, *xs: graph.add("Concat", *xs, axis=eqn.params["dimension"]),
    "convert_element_type": _cast,
    "ne": lambda graph, eqn, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "rem": lambda graph, eqn, x, y: graph.add("Mod", x, y, fmod=1),
    "reshape": lambda graph, eqn, x, *dims: graph.reshape(x, _out_shape(eqn)),
    "rsqrt": lambda graph, eqn, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "square": lambda graph, eqn, x: graph.add("Mul", x, x),
    "squeeze": lambda graph, eqn, x: graph.add("Squeeze", x, int64(*eqn.params["dimensions"])),
    "transpose": lambda graph, eqn, x: graph.transpose(x, eqn.params["permutation"]),
}


# --- the whole model ---

OUTPUT = "sr"
IR_VERSION = 9  # of the file format; readers of opset 18 support it
SYMBOLS = {"h": (INPUT, 2), "w": (INPUT, 3)}  # symbolic dimensions, by input and axis

TraceableForward = Callable[[Array], Array]  # (1, 3, h, w) -> (1, 3, s·h, s·w)


def to_onnx(forward: TraceableForward, lr: jax.ShapeDtypeStruct, name: str) -> Any:
    """Convert a function of images to an ONNX model.

    Args:
        forward: The function, NCHW to NCHW.
        lr: Its input, with the symbols h and w as height and width.
        name: Name of the graph.

    Returns:
        An `onnx.ModelProto` with input "lr" and output "sr".

    Raises:
        ExportError: If an operation has no ONNX equivalent, or ONNX Runtime rejects the model.
        MissingExtra: If onnx or onnxruntime is not installed.
    """
    onnx, graph = import_library("onnx"), GraphBuilder(SYMBOLS)
    helper = onnx.helper
    closed_jaxpr = jax.make_jaxpr(forward)(lr)
    (output,) = lower(graph, closed_jaxpr.jaxpr, closed_jaxpr.consts, [INPUT])
    graph.nodes.append(helper.make_node("Identity", [graph.name_of(output)], [OUTPUT]))
    onnx_graph = helper.make_graph(
        graph.nodes,
        name,
        [value_info(INPUT, lr.dtype, _dims(lr))],
        [value_info(OUTPUT, lr.dtype, _dims(closed_jaxpr.out_avals[0]))],
        [tensor for tensor, _ in graph.constants.values()],
    )
    onnx_proto = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="esrjax",
    )
    onnx.checker.check_model(onnx_proto)
    return _optimize(onnx_proto)


def _dims(aval: Any) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim) for dim in aval.shape]


def _optimize(onnx_proto: Any) -> Any:
    """Return the model after ONNX Runtime's basic optimizations.

    These are independent of the machine: they cancel transposes, fuse biases into convolutions and
    fold constants. The extended ones are not: they insert operators of ONNX Runtime alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        try:
            make_session(onnx_proto.SerializeToString(), optimized_path=path)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ExportError(
                f"ONNX Runtime does not run this network: {' '.join(str(error).split())[:200]}",
                rule="an exported model is loaded in ONNX Runtime before it is written",
                remedy="use another --dtype, or --format stablehlo",
            ) from error
        return import_library("onnx").load(path)
