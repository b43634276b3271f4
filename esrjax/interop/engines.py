"""Exported networks in ONNX Runtime and OpenVINO: images of any size without JAX.

`open_model` opens a method in the engine that `--engine` names. An `OnnxModel` has the interface of
`Model`. Exported networks are kept in the user's cache (`exports`), so that the next run reads
neither weights nor JAX.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import TypeAdapter

from esrjax import registry
from esrjax.data.image_arrays import LRArray, convert_like
from esrjax.errors import (
    ExportError,
    InvalidArgument,
    InvalidOutput,
    UnreadableFile,
    UserError,
    WeightsMismatch,
)
from esrjax.evaluation import upscale
from esrjax.evaluation.upscale import (
    ImageSize,
    Tiling,
    Upscaler,
    Windows,
    check_windows,
)
from esrjax.interop.onnx.sessions import (
    TITLES,
    Network,
    OnnxEngine,
    Precision,
    Session,
    is_installed,
    last_line,
    open_network,
    open_session,
    unreadable,
)
from esrjax.io import cache_dir, is_onnx, read_bytes, sha256_file, write_bytes
from esrjax.schema import STRICT

if TYPE_CHECKING:
    from flax import nnx

    from esrjax.inference import EnsembleModel, Model
    from esrjax.method import Method

Engine = Literal["auto", "jax", "openvino", "onnxruntime"]


_MAX_ONNX_BYTES = 2 << 30  # of a protocol buffer


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxModel:
    """An exported network with the interface of `Model`: call it on an image to upscale it.

    Attributes:
        session: The network in its engine.
        name: Name of the method.
        scale: Upscaling factor.
        data_range: Value of white in the network's inputs and outputs.
        min_side: Smallest side of an LR image, pixels.
        receptive_field_radius: Radius in LR pixels; None if the network needs the full image.
    """

    session: Any
    name: str
    scale: int
    data_range: float
    min_side: int
    receptive_field_radius: int | None

    def __call__(self, lr: Any) -> Any:
        """Upscale an image `(h, w, 3)` to uint8 `(s·h, s·w, 3)`, as `Model` does."""
        return convert_like(upscale.uint8_upscaler(self.upscaler())(lr), lr)

    def forward(self, lr: Any) -> NDArray[np.float32]:
        """Run the network: `(1, h, w, 3) -> (1, s·h, s·w, 3)`, values in [0, `data_range`].

        Raises:
            InvalidOutput: If the output has another size: `scale` is not the network's.
        """
        sr, (_, h, w, channels) = run_network(self.session, lr), lr.shape
        if sr.shape == (1, self.scale * h, self.scale * w, channels):
            return sr
        raise InvalidOutput(
            f"The output for {h} x {w} pixels has the shape {sr.shape}",
            rule=f"by the metadata of the file, {self.name} upscales images by {self.scale}",
            remedy="export the method again: esrjax export NAME -o NAME.onnx",
        )

    def upscaler(
        self,
        tile_size: ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: Windows | None = None,
    ) -> Upscaler:
        """Return a function from LR images, as of `Model`, to float images in [0, 1].

        Args:
            tile_size: (h, w) of tiles, LR pixels; None, or a network that needs the full image: no
                tiles.
            self_ensemble: Whether to average over the x8 self-ensemble.
            windows: Sizes of a window ensemble, with their weights.

        Raises:
            UserError: If windows are smaller than `min_side`; the function itself raises if an
                image is.
        """
        check_windows(self.name, self.min_side, windows or {})
        upscaler = upscale.single_pass(self.forward, self.data_range)
        radius = self.receptive_field_radius
        if tile_size is not None and radius is not None:
            upscaler = self._tiled(tile_size, radius)
        composed = upscale.compose_upscaler(
            upscaler, self.scale, self_ensemble=self_ensemble, windows=windows
        )
        return upscale.checked_upscaler(composed, self.name, self.min_side)

    def _tiled(self, tile_size: ImageSize, radius: int) -> Upscaler:
        """Return an upscaler by tiles that lie within the image, since ONNX models take no mask."""
        forward: Any = lambda lr, mask: self.forward(lr)  # noqa: E731

        def choose(lr: LRArray) -> Upscaler:
            height, width = upscale.make_tiling(lr, tile_size, radius).tile_size
            tiling = Tiling((min(height, lr.shape[0]), min(width, lr.shape[1])), radius)
            return upscale.tiled_upscaler(forward, tiling, self.data_range, self.scale)

        return upscale.upscaler_by_image(choose)


def run_network(network: Session | Network, lr: Any) -> NDArray[np.float32]:
    """Run an exported network: `(1, h, w, 3) -> (1, s·h, s·w, 3)`, float32.

    Args:
        network: The network in its engine.
        lr: LR image, NHWC, values in [0, `data_range`].
    """
    x = np.ascontiguousarray(np.asarray(lr, np.float32).transpose(0, 3, 1, 2))
    return network.run(x).transpose(0, 2, 3, 1)


def onnx_forward(
    name: str, method: Method, net: nnx.Module, engine: OnnxEngine
) -> Callable[[Any], NDArray[np.float32]]:
    """Export a network to ONNX and return its forward pass in an engine.

    Args:
        name: Name of the graph.
        method: The method of the network.
        net: The network.
        engine: "openvino" or "onnxruntime".

    Returns:
        A function `(1, h, w, 3) -> (1, s·h, s·w, 3)`.

    Raises:
        ExportError: If the network cannot be exported, or the engine lacks one of its operators.
    """
    from esrjax.interop import export

    onnx_proto = export.to_onnx(name, net, method.min_side)
    try:
        network = open_network(onnx_proto.SerializeToString(), engine)
    except UserError:
        raise
    except Exception as error:  # the exceptions of engines have no public base class
        raise ExportError(
            f"{TITLES[engine]} cannot run {name}: {last_line(error)}",
            rule="an engine runs networks whose operators it has",
            remedy="use another engine",
        ) from error
    return functools.partial(run_network, network)


# --- opening by engine ---


def open_model(
    name: str | None,
    checkpoint: str | Path | Mapping[Any, str | Path] | None = None,
    hparams: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    precision: Precision = "float32",
) -> Model | EnsembleModel | OnnxModel:
    """Open a method or an ensemble in an engine.

    "auto" is JAX on a GPU. On a CPU it is OpenVINO, where the extra `cpu` is installed, for
    networks of convolutions and element-wise operations (`export.is_convolutional`), and JAX for
    the others and for ensembles: docs/benchmarks.md has the measurements. For an .onnx file it is
    OpenVINO or, where that is not installed or lacks an operator, ONNX Runtime.

    Args:
        name: As of `inference.open_model`.
        checkpoint: As of `inference.open_model`; or an .onnx file that `esrjax export` wrote.
        hparams: As of `inference.open_model`.
        engine: The engine.
        precision: Of the computation; bfloat16 is OpenVINO's.

    Raises:
        WeightsMismatch: If an .onnx file is the export of another method.
        InvalidArgument: If the engine cannot run this, or hparams are given for an .onnx file.
        UnreadableFile: If a file cannot be read.
        MissingExtra: If the engine is not installed.
    """
    if isinstance(checkpoint, Mapping) and checkpoint.keys() <= {name}:
        checkpoint = checkpoint.get(name)  # pyright: ignore[reportArgumentType, reportCallIssue] # None is that of the checkpoint
    if isinstance(checkpoint, str | Path) and is_onnx(Path(checkpoint)):
        return _open_onnx_of(name, Path(checkpoint), hparams, engine, precision)
    if engine == "auto" and not (is_installed("openvino") and _runs_on_cpu()):
        engine = "jax"
    entry = None if engine == "jax" else _find_export(name, checkpoint, hparams)
    if entry is not None and entry[1] is not None:
        onnx_engine = "onnxruntime" if engine == "onnxruntime" else "openvino"
        if engine == onnx_engine or entry[0].is_convolutional:
            return _open_bytes(entry[1], entry[0].checkpoint, onnx_engine, precision)
    if engine == "auto" and entry is not None and not entry[0].is_convolutional:
        engine = "jax"
    return _open_checkpoint(name, checkpoint, hparams, engine, precision)


def _open_checkpoint(
    name: str | None, checkpoint: Any, hparams: Any, engine: Engine, precision: Precision
) -> Model | EnsembleModel | OnnxModel:
    """Open weights in JAX and then in the engine; store what is found out of the network."""
    from esrjax import inference
    from esrjax.interop import export

    model = inference.open_model(name, checkpoint, hparams)
    if engine == "jax" or isinstance(model, inference.EnsembleModel):
        return in_engine(model, engine, precision)
    is_convolutional = export.is_convolutional(model.net, model.method.min_side)
    if engine == "auto":
        engine = "openvino" if is_convolutional else "jax"
    onnx_bytes = None if engine == "jax" else export.to_onnx_bytes(model)
    _store_export(model, checkpoint, hparams, is_convolutional, onnx_bytes)
    return in_engine(model, engine, precision, onnx_bytes)


def in_engine(
    model: Model | EnsembleModel,
    engine: Engine,
    precision: Precision = "float32",
    onnx_bytes: bytes | None = None,
) -> Model | EnsembleModel | OnnxModel:
    """Return a model in an engine.

    Args:
        model: A model in JAX.
        engine: As of `open_model`.
        precision: As of `open_model`.
        onnx_bytes: Its export with metadata, if there is one.

    Raises:
        InvalidArgument: If it is an ensemble, and the engine is not JAX.
        ExportError: If the network cannot be exported.
        MissingExtra: If the engine is not installed.
    """
    from esrjax.inference import EnsembleModel
    from esrjax.interop import export

    is_ensemble = isinstance(model, EnsembleModel)
    if engine == "auto":
        may_export = not is_ensemble and is_installed("openvino") and _runs_on_cpu()
        is_faster = may_export and export.is_convolutional(model.net, model.method.min_side)  # pyright: ignore[reportAttributeAccessIssue] # of a Model
        engine = "openvino" if is_faster else "jax"
    if engine != "jax" and not is_ensemble:
        data = onnx_bytes or export.to_onnx_bytes(model)  # pyright: ignore[reportArgumentType] # a Model
        return _open_bytes(data, model.name, engine, precision)
    if engine != "jax":
        raise InvalidArgument(
            f"{TITLES[engine]} cannot run the ensemble {model.name!r}",
            rule="ensembles run in JAX",
            remedy="leave --engine out, or name one of its members",
        )
    if precision != "float32":
        raise InvalidArgument(
            f"JAX runs {model.name} in float32, not in {precision}",
            rule="bfloat16 is a precision of OpenVINO",
            remedy="add --engine openvino, or leave --precision out",
        )
    return model


def _open_onnx_of(
    name: str | None, file: Path, hparams: Any, engine: Engine, precision: Precision
) -> OnnxModel:
    if engine == "jax":
        raise InvalidArgument(
            "--engine jax cannot run an .onnx file",
            rule="JAX runs .pth and .safetensors files and run directories; OpenVINO and ONNX "
            "Runtime also run .onnx files",
            remedy="leave --engine out, or use the checkpoint that was exported",
        )
    if hparams:
        raise InvalidArgument(
            f"An .onnx file has its hyperparameters already, here is {', '.join(hparams)}",
            rule="hyperparameters belong to the weights that are exported",
            location=str(file),
            remedy="leave --hparam out",
        )
    model = open_onnx(file, engine, precision)
    if name not in (None, model.name):
        raise WeightsMismatch(
            f"The file is an export of {model.name!r}, not of {name!r}",
            rule="the method of an exported file is the one in its metadata",
            location=str(file),
            remedy=f"use the method {model.name!r}, or another file",
        )
    return model


def open_onnx(
    path: Path,
    engine: Literal["auto", "openvino", "onnxruntime"] = "auto",
    precision: Precision = "float32",
) -> OnnxModel:
    """Open an .onnx file that `esrjax export` wrote.

    Args:
        path: The file.
        engine: As of `open_model`.
        precision: As of `open_model`.

    Raises:
        UnreadableFile: If it cannot be read, or has no esrjax metadata.
    """
    data = read_bytes(path, _MAX_ONNX_BYTES)
    model = None
    if engine == "auto" and is_installed("openvino"):
        with suppress(UnreadableFile):  # of an operator that OpenVINO lacks, such as a loop
            model = _open_bytes(data, str(path), "openvino", precision)
    if model is None:
        engine = "onnxruntime" if engine == "auto" else engine
        model = _open_bytes(data, str(path), engine, precision)
    _check_data_range(model, str(path))
    return model


def description(model: Model | EnsembleModel | OnnxModel) -> str:
    """Return the engine and the device of a model, for users: "OpenVINO on cpu"."""
    if isinstance(model, OnnxModel):
        return model.session.description
    import jax

    return f"JAX on {jax.default_backend()}"


def _runs_on_cpu() -> bool:
    """Return whether JAX's platform is the CPU; it is imported where there may be another one."""
    plugins = [name for name in ("jax_plugins", "libtpu") if find_spec(name)]
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    if not plugins and not metadata.entry_points(group="jax_plugins"):
        return True
    import jax

    return jax.default_backend() == "cpu"


# --- cache of exported networks: NAME/KEY.json, and NAME/KEY.onnx where one was needed ---

MAX_EXPORTS = 4  # of a method


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class _ExportRecord:
    """What was exported, or found to run in JAX.

    Attributes:
        checkpoint: Path of the weights.
        sha256: Of that file; the record holds while it is the same.
        is_convolutional: Result of `export.is_convolutional`.
    """

    checkpoint: str
    sha256: str
    is_convolutional: bool


_RECORD = TypeAdapter(_ExportRecord)


def _export_path(name: str, checkpoint: Any, hparams: Any) -> Path | None:
    """Return the path of an entry, without suffix; None for what is not kept.

    Run directories are not: the checkpoint in them changes. The key has what an export depends on:
    the source of the method, hyperparameters and versions; the weights are in the record.
    """
    if isinstance(checkpoint, Mapping):
        return None  # of an ensemble
    if checkpoint is not None and Path(checkpoint).is_dir():
        return None
    text = os.path.abspath(checkpoint) if checkpoint and os.path.exists(checkpoint) else checkpoint
    versions = [metadata.version(package) for package in ("jax", "onnx", "onnxruntime")]
    key = [registry.source_hash(name), text and str(text), dict(hparams or {}), *versions]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=repr).encode()).hexdigest()
    return cache_dir("exports") / name / digest[:24]


def _find_export(
    name: str | None, checkpoint: Any, hparams: Any
) -> tuple[_ExportRecord, bytes | None] | None:
    """Return the entry of a network, with its export where there is one.

    None if there is no entry, it is damaged, or the weights have changed.
    """
    if name is None:
        return None
    try:
        path = _export_path(name, checkpoint, hparams)
        if path is None or not path.with_suffix(".json").is_file():
            return None
        record = _RECORD.validate_json(path.with_suffix(".json").read_bytes())
        if sha256_file(Path(record.checkpoint)) != record.sha256:
            return None
        onnx_file = path.with_suffix(".onnx")
        onnx_bytes = onnx_file.read_bytes() if onnx_file.is_file() else None
    except (OSError, ValueError, UserError, metadata.PackageNotFoundError):
        return None
    return record, onnx_bytes


def _store_export(
    model: Model, checkpoint: Any, hparams: Any, is_convolutional: bool, onnx_bytes: bytes | None
) -> None:
    """Store what was found out of a network; a cache that cannot be written is no error.

    The default weights are stored where they are those that the plugin ships: others are replaced
    by a download.
    """
    from esrjax import hub

    file = model.checkpoint.path
    if checkpoint is None and file != hub.shipped_path(model.method):
        return
    record = _ExportRecord(
        checkpoint=str(file.absolute()),
        sha256=model.checkpoint.sha256,
        is_convolutional=is_convolutional,
    )
    with suppress(OSError, UserError):
        path = _export_path(model.name, checkpoint, hparams)
        if path is None:
            return
        if onnx_bytes is not None:
            write_bytes(path.with_suffix(".onnx"), onnx_bytes)
        write_bytes(path.with_suffix(".json"), _RECORD.dump_json(record))
        records = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime)
        for old in records[:-MAX_EXPORTS]:
            old.unlink()
            old.with_suffix(".onnx").unlink(missing_ok=True)


def _open_bytes(data: bytes, location: str, engine: OnnxEngine, precision: Precision) -> OnnxModel:
    session = open_session(data, location, engine, precision)
    fields = {key: value for key, value in vars(session.metadata).items() if key != "method"}
    return OnnxModel(session=session, name=session.metadata.method, **fields)


def _check_data_range(model: OnnxModel, location: str) -> None:
    """Raise `UnreadableFile` if a file of a method that is installed has another `data_range`."""
    if model.name in registry.names():
        data_range = registry.get_method(model.name).data_range
        if data_range != model.data_range:
            text = f"data_range is {model.data_range:g}, of the method {data_range:g}"
            raise unreadable(location, f"its metadata is invalid: {text}")
