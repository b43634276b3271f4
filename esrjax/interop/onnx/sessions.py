"""Sessions: exported networks in ONNX Runtime and in OpenVINO, with validated metadata.

JAX is not imported. A `Session` runs images of any size. OpenVINO compiles a network for each size,
which takes about a tenth of a second and is 5 to 30 % faster than one program for all sizes.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from esrjax.errors import (
    ExportError,
    InvalidArgument,
    UnreadableFile,
    UserError,
    import_extra,
)
from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat, format_errors

OnnxEngine = Literal["openvino", "onnxruntime"]
Precision = Literal["float32", "bfloat16"]
NchwArray = NDArray[np.float32]

INPUT = "lr"  # name of the input of an exported network
MAX_PROGRAMS = 8  # image sizes for which OpenVINO keeps a compiled network
TITLES: Mapping[OnnxEngine, str] = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
EXTRAS = {"openvino": "cpu", "onnxruntime": "export"}


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class OnnxMetadata:
    """The fields of `export.ExportMetadata` that running an exported network needs."""

    method: Annotated[str, Field(min_length=1)]
    scale: Annotated[int, Field(ge=1)]
    data_range: PositiveFloat
    min_side: Annotated[int, Field(ge=1)]
    receptive_field_radius: NonNegativeInt | None


_METADATA = TypeAdapter(OnnxMetadata)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A graph in an engine, whatever its inputs and outputs are.

    Attributes:
        run: `(1, 3, h, w) -> (1, 3, s·h, s·w)`, float32.
        description: Engine, device and precision, for users: "OpenVINO on cpu".
        properties: The metadata of the file.
        input_names: Names of the inputs of the graph.
        num_outputs: Number of its outputs.
    """

    run: Callable[[NchwArray], NchwArray]
    description: str
    properties: Mapping[str, str]
    input_names: Sequence[str]
    num_outputs: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """An exported network that an engine runs.

    Attributes:
        run: `(1, 3, h, w) -> (1, 3, s·h, s·w)`, float32.
        description: Engine, device and precision, for users: "OpenVINO on cpu".
        metadata: The metadata of the file.
    """

    run: Callable[[NchwArray], NchwArray]
    description: str
    metadata: OnnxMetadata


def open_session(
    onnx_bytes: bytes, location: str, engine: OnnxEngine, precision: Precision = "float32"
) -> Session:
    """Open a file that `esrjax export` wrote.

    Args:
        onnx_bytes: The serialized ONNX model.
        location: Where it comes from, for errors.
        engine: "openvino" or "onnxruntime".
        precision: As of `open_network`.

    Raises:
        UnreadableFile: If the engine cannot read it, or it has no valid metadata.
        MissingExtra: If the engine is not installed.
        InvalidArgument: If the engine or the CPU does not compute in `precision`.
    """
    try:
        network = open_network(onnx_bytes, engine, precision)
    except UserError:
        raise
    except Exception as error:  # the exceptions of engines have no public base class
        raise unreadable(location, f"{TITLES[engine]}: {last_line(error)}") from error
    if list(network.input_names) != [INPUT] or network.num_outputs != 1:
        names = ", ".join(network.input_names)
        raise unreadable(location, f"it has inputs {names} and {network.num_outputs} outputs")
    metadata = _parse_metadata(network.properties, location)
    return Session(run=network.run, description=network.description, metadata=metadata)


def open_network(
    onnx_bytes: bytes, engine: OnnxEngine, precision: Precision = "float32"
) -> Network:
    """Open an ONNX model in an engine.

    Args:
        onnx_bytes: The serialized model.
        engine: "openvino" or "onnxruntime".
        precision: Of the computation. bfloat16 is OpenVINO's, on CPUs that compute in it.

    Raises:
        MissingExtra: If the engine is not installed.
        InvalidArgument: If the engine or the CPU does not compute in `precision`.
        Exception: What the engine raises for a model that it cannot read.
    """
    if engine == "openvino":
        return _openvino_network(onnx_bytes, precision)
    if precision != "float32":
        raise InvalidArgument(
            f"ONNX Runtime does not compute in {precision}",
            rule="ONNX Runtime computes in the precision of the exported file",
            remedy="use --engine openvino, or export with --dtype",
        )
    session = make_session(onnx_bytes)
    return Network(
        run=lambda lr: session.run(None, {INPUT: lr})[0],
        description=f"ONNX Runtime on {device()}",
        properties=session.get_modelmeta().custom_metadata_map,
        input_names=[value.name for value in session.get_inputs()],
        num_outputs=len(session.get_outputs()),
    )


def _parse_metadata(properties: Mapping[str, str], location: str) -> OnnxMetadata:
    """Return the validated metadata; its fields are JSON, but for the name of the method."""
    fields: dict[str, Any] = {}
    for name in OnnxMetadata.__dataclass_fields__.keys() & properties.keys():
        text = properties[name]
        try:
            fields[name] = text if name == "method" else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise unreadable(location, f"its metadata {name!r} is {text[:40]!r}") from error
    try:
        return _METADATA.validate_json(json.dumps(fields))
    except ValidationError as error:
        lines = format_errors(error, _METADATA.json_schema())
        raise unreadable(location, f"its metadata is invalid: {'; '.join(lines)}") from error


def unreadable(location: str, reason: str) -> UnreadableFile:
    """Return the error of a file that is no exported network, or has operators unknown here."""
    return UnreadableFile(
        f"Cannot run this as an exported network: {reason}",
        rule="engines run .onnx files that `esrjax export` wrote, whose operators they have",
        location=location,
        remedy="check the path, use another --engine, or export again: esrjax export NAME",
    )


def is_installed(engine: OnnxEngine) -> bool:
    """Return whether an engine can be imported, with what exporting a network to it needs."""
    return all(find_spec(library) for library in ("onnx", "onnxruntime", engine))


def last_line(error: Exception) -> str:
    """Return the last line of an engine's message, where OpenVINO has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


def import_library(library: str, extra: str = "export") -> Any:
    """Import an optional library.

    Args:
        library: Name of its module.
        extra: Extra of esrjax that installs it.

    Raises:
        MissingExtra: If it is not installed.
    """
    # Else ONNX Runtime sends messages to its makers, and keeps an identifier in the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_extra(library, extra, "this command")


# --- ONNX Runtime ---


def make_session(model: bytes | str, *, optimized_path: Path | None = None) -> Any:
    """Return a session of ONNX Runtime, on CUDA if this build of it supports it.

    Args:
        model: The serialized model, or the path of its file.
        optimized_path: Where the model is written after basic optimizations; the session then has
            only these, and runs on the CPU, as optimizations for CUDA would be written as well.

    Raises:
        MissingExtra: If onnxruntime is not installed.
    """
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Threads stop spinning after a run: otherwise they slow down PyTorch or JAX in this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    if optimized_path is not None:
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(optimized_path)
    elif device() == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(model, options, providers=providers)


def device() -> str:
    """Return the device of sessions: "cuda" if this build of ONNX Runtime supports it, or "cpu"."""
    providers = import_library("onnxruntime").get_available_providers()
    return "cuda" if "CUDAExecutionProvider" in providers else "cpu"


# --- OpenVINO ---


class _OpenVinoProgram:
    """A network that is compiled for each image size; the last `MAX_PROGRAMS` are kept.

    Args:
        core: The `openvino.Core`.
        model: The `openvino.Model`, with symbolic height and width.
        properties: Properties of the compilation.
    """

    def __init__(self, core: Any, model: Any, properties: Mapping[str, Any]):
        self._core, self._model, self._properties = core, model, dict(properties)
        self._requests = OrderedDict[tuple[int, ...], Any]()  # shape -> request, last used at end
        self._lock = Lock()  # a request runs one image at a time

    def __call__(self, lr: NchwArray) -> NchwArray:
        with self._lock:
            if lr.shape not in self._requests:
                self._requests[lr.shape] = self._compile(lr.shape)
            self._requests.move_to_end(lr.shape)
            if len(self._requests) > MAX_PROGRAMS:
                self._requests.popitem(last=False)
            return self._requests[lr.shape].infer({0: lr})[0]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        model = self._model.clone()
        try:
            model.reshape(list(shape))
            return self._core.compile_model(model, "CPU", self._properties).create_infer_request()
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO cannot compile the network: {last_line(error)}",
                rule="OpenVINO runs networks whose operators it has, for instance no loops",
                remedy="use --engine jax or onnxruntime",
            ) from error


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which sends a message at every import.

    OpenVINO does without that package where it cannot be imported.
    """
    is_blocked = "openvino_telemetry" not in sys.modules
    if is_blocked:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] # importing it raises ImportError
    try:
        return import_library("openvino", "cpu")
    finally:
        if is_blocked:
            del sys.modules["openvino_telemetry"]


def _openvino_network(onnx_bytes: bytes, precision: Precision) -> Network:
    core = _import_openvino().Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bfloat16" and "BF16" not in capabilities:
        raise InvalidArgument(
            "This CPU does not compute in bfloat16",
            rule=f"its precisions are {', '.join(capabilities)}",
            remedy="use float32",
        )
    model = core.read_model(onnx_bytes)
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    properties = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    has_metadata = model.has_rt_info(["framework"])
    return Network(
        run=_OpenVinoProgram(core, model, properties),
        description="OpenVINO on cpu" + f", {precision}" * (precision != "float32"),
        properties=dict(model.get_rt_info(["framework"]).value) if has_metadata else {},
        input_names=[name for value in model.inputs for name in value.get_names()],
        num_outputs=len(model.outputs),
    )
