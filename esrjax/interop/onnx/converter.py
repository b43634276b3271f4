"""`to_onnx`, the conversion of a JAX function of images to an optimized ONNX model."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import Array

from esrjax.errors import ExportError
from esrjax.interop.onnx.graph import OPSET, GraphBuilder, value_info
from esrjax.interop.onnx.lowerings import lower
from esrjax.interop.onnx.runtime import import_library, make_session

INPUT, OUTPUT = "lr", "sr"
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
