"""Conversion of a JAX function of images to an ONNX model, optimized, with metadata."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array

from esrjax.errors import ExportError
from esrjax.interop.onnx.graph import OPSET, GraphBuilder
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
        ExportError: If an operation has no ONNX equivalent, or ONNX Runtime rejects the
            model.
        MissingExtra: If onnx or onnxruntime is not installed.
    """
    onnx = import_library("onnx")
    closed_jaxpr = jax.make_jaxpr(forward)(lr)
    graph = GraphBuilder(SYMBOLS)
    (output,) = lower(graph, closed_jaxpr.jaxpr, closed_jaxpr.consts, [INPUT])
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.name_of(output)], [OUTPUT]))
    sr = closed_jaxpr.out_avals[0]
    onnx_proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            name,
            [_value_info(INPUT, lr.shape)],
            [_value_info(OUTPUT, sr.shape)],
            [tensor for tensor, _ in graph.constants.values()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="esrjax",
    )
    onnx.checker.check_model(onnx_proto)
    return ort_optimized(onnx_proto)


def ort_optimized(onnx_proto: Any) -> Any:
    """Return the model after ONNX Runtime's basic optimizations.

    These are independent of the machine: they cancel transposes, fuse biases into convolutions and
    fold constants. The extended ones are not: they insert operators of ONNX Runtime alone.

    Args:
        onnx_proto: An `onnx.ModelProto`.

    Raises:
        ExportError: If ONNX Runtime rejects the model.
    """
    onnx = import_library("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        try:
            make_session(
                onnx_proto.SerializeToString(),
                optimization_level="ORT_ENABLE_BASIC",
                optimized_path=path,
            )
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise _rejected_by_onnxruntime(error) from error
        return onnx.load(path)


def _rejected_by_onnxruntime(error: Exception) -> ExportError:
    return ExportError(
        f"ONNX Runtime does not run this network: {' '.join(str(error).split())[:200]}",
        rule="an exported model is loaded in ONNX Runtime before it is written",
        remedy="use another --dtype, or --format stablehlo",
    )


def write_metadata(onnx_proto: Any, metadata: Mapping[str, str]) -> None:
    """Set the metadata properties of a model.

    Args:
        onnx_proto: An `onnx.ModelProto`.
        metadata: Properties by name.
    """
    import_library("onnx").helper.set_model_props(onnx_proto, dict(metadata))


def _value_info(name: str, shape: tuple[Any, ...]) -> Any:
    helper, tensor_proto = import_library("onnx").helper, import_library("onnx").TensorProto
    dims = [dim if isinstance(dim, int) else str(dim) for dim in shape]
    return helper.make_tensor_value_info(name, tensor_proto.FLOAT, dims)
