"""A function of pictures as an ONNX model, tidied and described."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array

from esrjax.bridge.onnx.graph import OPSET, Graph, NotInOnnx
from esrjax.bridge.onnx.lowering import lower
from esrjax.bridge.onnx.runtime import require, session

INPUT, OUTPUT = "lr", "sr"
IR_VERSION = 9  # of the file format: what readers of this opset know
AXES = {"h": (INPUT, 2), "w": (INPUT, 3)}

Forward = Callable[[Array], Array]


def to_onnx(forward: Forward, lr: jax.ShapeDtypeStruct, name: str) -> Any:
    """The model of `forward`, NCHW to NCHW, for an `lr` whose sides are the symbols h and w."""
    onnx = require("onnx")
    closed = jax.make_jaxpr(forward)(lr)
    graph = Graph(AXES)
    (made,) = lower(graph, closed.jaxpr, closed.consts, [INPUT])
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.name(made)], [OUTPUT]))
    sr = closed.out_avals[0]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            name,
            [_described(INPUT, lr.shape)],
            [_described(OUTPUT, sr.shape)],
            [tensor for tensor, _ in graph.constants.values()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="esrjax",
    )
    onnx.checker.check_model(model)
    return tidied(model)


def tidied(model: Any) -> Any:
    """The same model after ONNX Runtime's basic optimisations, which are of any machine.

    They let transpositions meet and vanish, add biases to convolutions and calculate constants.
    """
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tidy.onnx"
        try:
            session(model.SerializeToString(), level="ORT_ENABLE_BASIC", written=path)
        except Exception as error:  # of a class that ONNX Runtime does not publish
            raise _refused(error) from error
        return onnx.load(path)


def _refused(error: Exception) -> NotInOnnx:
    return NotInOnnx(
        f"ONNX Runtime does not run this network: {' '.join(str(error).split())[:200]}",
        rule="what is exported is run here first",
        remedy="export it in another --dtype, or with --format stablehlo",
    )


def describe(model: Any, facts: Mapping[str, str]) -> None:
    """Write named facts into the model."""
    require("onnx").helper.set_model_props(model, dict(facts))


def _described(name: str, shape: tuple[Any, ...]) -> Any:
    helper, kinds = require("onnx").helper, require("onnx").TensorProto
    sides = [side if isinstance(side, int) else str(side) for side in shape]
    return helper.make_tensor_value_info(name, kinds.FLOAT, sides)
