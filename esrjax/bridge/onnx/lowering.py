"""From a trace to an ONNX graph, equation by equation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esrjax.bridge.onnx.graph import Equation, Graph, Known, Value, not_in_onnx
from esrjax.bridge.onnx.rules import RULES, WORDS
from esrjax.bridge.onnx.runtime import require
from esrjax.network.extent import known
from esrjax.network.words import PREFIX

# Primitives that run one function once, on all of their inputs.
CALLS = frozenset("jit pjit closed_call custom_jvp_call custom_vjp_call checkpoint remat2".split())


def lower(
    graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """The outputs of the trace, once its equations are nodes of the graph."""
    held: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    held |= zip(jaxpr.invars, inputs, strict=True)

    def read(variable: Any) -> Value:
        return np.asarray(variable.val) if hasattr(variable, "val") else held[variable]

    for equation in jaxpr.eqns:
        given = [read(variable) for variable in equation.invars]
        made = _made(graph, equation, given)
        held |= zip(equation.outvars, made, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _made(graph: Graph, equation: Equation, given: list[Value]) -> list[Value]:
    name = equation.primitive.name
    word = str(equation.params.get("name")).removeprefix(PREFIX) if name in CALLS else name
    if name in CALLS and word not in WORDS:
        return _called(graph, equation, given)
    if name == "scan":
        return _scanned(graph, equation, given)
    rule = WORDS.get(word) or RULES.get(name)
    if rule is None:
        raise not_in_onnx(f"the operation {name!r}", equation)
    if name in RULES and _is_known(equation, given):
        return _folded(equation, given)
    made = rule(graph, equation, *given)
    return made if isinstance(made, list) else [made]


def _is_known(equation: Equation, given: list[Value]) -> bool:
    """Whether the outputs depend on constants alone and have known extents."""
    extents = [n for variable in equation.outvars for n in variable.aval.shape]
    constant = all(isinstance(value, np.ndarray) for value in given)
    return constant and all(map(known, extents)) and equation.primitive.name != "dim_as_value"


def _folded(equation: Equation, given: list[Known]) -> list[Value]:
    """The outputs of an equation whose inputs are constants."""
    made = equation.primitive.bind(*given, **equation.params)
    every = made if equation.primitive.multiple_results else [made]
    return [np.asarray(value) for value in every]


def _called(graph: Graph, equation: Equation, given: list[Value]) -> list[Value]:
    inner = next(equation.params[key] for key in ("call_jaxpr", "jaxpr") if key in equation.params)
    return lower(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)


def _scanned(graph: Graph, equation: Equation, given: list[Value]) -> list[Value]:
    """A loop over the first axis; its body sees the values around it."""
    said, helper = equation.params, require("onnx").helper
    apart, carried = said["num_consts"], said["num_carry"]
    body, turning = graph.inner(), given[apart:]
    inputs = [body.fresh("turn") for _ in turning]
    inner = said["jaxpr"]
    made = lower(body, inner.jaxpr, inner.consts, [*given[:apart], *inputs])
    outputs = [body.add("Identity", value) for value in made]
    ends = (
        [_described(name, variable) for name, variable in zip(names, variables, strict=True)]
        for names, variables in (
            (inputs, inner.jaxpr.invars[apart:]),
            (outputs, inner.jaxpr.outvars),
        )
    )
    count = len(turning) - carried
    back = {"scan_input_directions": count, "scan_output_directions": len(outputs) - carried}
    made = graph.add(
        "Scan",
        *turning,
        outputs=len(outputs),
        body=helper.make_graph(body.nodes, "turn", *ends),
        num_scan_inputs=count,
        **{name: [1] * many for name, many in back.items() if said["reverse"] and many},
    )
    return made if isinstance(made, list) else [made]


def _described(name: str, variable: Any) -> Any:
    helper = require("onnx").helper
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(variable.aval.dtype))
    return helper.make_tensor_value_info(name, kind, [None] * len(variable.aval.shape))
