"""`lower`, which turns a jaxpr into the nodes of an ONNX graph, equation by equation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esrjax.bridge.onnx.graph import Constant, Eqn, GraphBuilder, Value, unsupported
from esrjax.bridge.onnx.rules import OP_LOWERINGS, PRIMITIVE_LOWERINGS
from esrjax.bridge.onnx.runtime import import_library
from esrjax.network.extent import is_static
from esrjax.network.words import OP_PREFIX

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
        OnnxConversionError: If an equation has no ONNX equivalent.
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
