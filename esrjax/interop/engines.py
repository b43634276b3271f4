"""`OnnxModel`, an exported network in ONNX Runtime: images of any size without compilation.

It runs `upscale --engine onnxruntime`; `onnx_forward` is its network alone, for `bench`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from flax import nnx
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from esrjax import registry
from esrjax.data.image_arrays import LRArray, convert_like
from esrjax.errors import (
    InvalidArgument,
    InvalidOutput,
    UnreadableFile,
    UserError,
    WeightsMismatch,
)
from esrjax.evaluation import upscale
from esrjax.evaluation.upscale import (
    FloatImage,
    ImageSize,
    Tiling,
    Upscaler,
    Windows,
    check_min_side,
    check_windows,
)
from esrjax.inference import open_method
from esrjax.interop import export
from esrjax.interop.onnx.graph import make_session
from esrjax.interop.onnx.lowerings import INPUT
from esrjax.io import is_onnx, read_bytes
from esrjax.method import Method
from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat, format_errors


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class OnnxMetadata:
    """The fields of `export.ExportMetadata` that running an exported network needs."""

    method: Annotated[str, Field(min_length=1)]
    scale: Annotated[int, Field(ge=1)]
    data_range: PositiveFloat
    min_side: Annotated[int, Field(ge=1)]
    receptive_field_radius: NonNegativeInt | None


_METADATA = TypeAdapter(OnnxMetadata)

_MAX_ONNX_BYTES = 2 << 30  # of a protocol buffer


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxModel:
    """A network in ONNX Runtime with the interface of `Model`: call it on an image to upscale it.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
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
        sr, (_, h, w, channels) = run_session(self.session, lr), lr.shape
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
        upscaler = upscale.single_pass(self.forward, self.data_range)  # pyright: ignore[reportArgumentType] # NumPy arrays work as well
        radius = self.receptive_field_radius
        if tile_size is not None and radius is not None:
            upscaler = self._tiled(tile_size, radius)
        composed = upscale.compose_upscaler(
            upscaler, self.scale, self_ensemble=self_ensemble, windows=windows
        )

        def run(lr: LRArray) -> FloatImage:
            check_min_side(self.name, self.min_side, lr.shape[:2])
            return composed(lr)

        return upscale.checked_upscaler(run)

    def _tiled(self, tile_size: ImageSize, radius: int) -> Upscaler:
        """Return an upscaler by tiles that lie within the image, since ONNX models take no mask."""
        forward: Any = lambda lr, mask: self.forward(lr)  # noqa: E731

        def run(lr: LRArray) -> FloatImage:
            height, width = upscale.make_tiling(lr, tile_size, radius).tile_size
            tiling = Tiling((min(height, lr.shape[0]), min(width, lr.shape[1])), radius)
            return upscale.tiled_upscaler(forward, tiling, self.data_range, self.scale)(lr)

        return run


def run_session(session: Any, lr: Any) -> NDArray[np.float32]:
    """Run an exported network: `(1, h, w, 3) -> (1, s·h, s·w, 3)`, float32.

    Args:
        session: The `onnxruntime.InferenceSession`.
        lr: LR image, NHWC, values in [0, `data_range`].
    """
    x = np.ascontiguousarray(np.asarray(lr, np.float32).transpose(0, 3, 1, 2))
    return session.run(None, {INPUT: x})[0].transpose(0, 2, 3, 1)


def onnx_forward(
    name: str, method: Method, net: nnx.Module
) -> Callable[[Any], NDArray[np.float32]]:
    """Export a network to ONNX and return its forward pass in ONNX Runtime.

    Args:
        name: Name of the graph.
        method: The method of the network.
        net: The network.

    Returns:
        A function `(1, h, w, 3) -> (1, s·h, s·w, 3)`.
    """
    onnx_proto = export.to_onnx(name, net, method.min_side)
    return functools.partial(run_session, make_session(onnx_proto.SerializeToString()))


def open_onnx(path: Path) -> OnnxModel:
    """Open an .onnx file that `esrjax export` wrote.

    Args:
        path: The file.

    Raises:
        UnreadableFile: If it cannot be read, or has no esrjax metadata.
    """
    return _open_bytes(read_bytes(path, _MAX_ONNX_BYTES), str(path))


def load(
    name: str | None, checkpoint: Path | None, hparams: Mapping[str, Any] | None = None
) -> OnnxModel:
    """Load a method in ONNX Runtime.

    Args:
        name: Name of the method; None for that of the checkpoint.
        checkpoint: An exported .onnx file; or weights, which are exported in memory; None for the
            published weights.
        hparams: Hyperparameters, where weights are exported.

    Raises:
        WeightsMismatch: If the .onnx file is an export of another method.
        InvalidArgument: If there are hyperparameters for an .onnx file.
        UnreadableFile: If it cannot be read.
    """
    if checkpoint is None or not is_onnx(checkpoint):
        model = open_method(name, checkpoint, hparams)
        return _open_bytes(export.to_onnx_bytes(model), model.name)
    if hparams:
        raise InvalidArgument(
            f"An .onnx file has its hyperparameters already, here is {', '.join(hparams)}",
            rule="hyperparameters belong to the weights that are exported",
            location=str(checkpoint),
            remedy="leave --hparam out",
        )
    model = open_onnx(checkpoint)
    if name not in (None, model.name):
        raise WeightsMismatch(
            f"The file is an export of {model.name!r}, not of {name!r}",
            rule="the method of an exported file is the one in its metadata",
            location=str(checkpoint),
            remedy=f"use the method {model.name!r}, or another file",
        )
    return model


def _open_bytes(data: bytes, location: str) -> OnnxModel:
    try:
        session = make_session(data)
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise _unreadable(location, " ".join(str(error).split())[:200]) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [value.name for value in inputs] != [INPUT] or len(outputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise _unreadable(location, f"it has inputs {names} and {len(outputs)} outputs")
    metadata = _parse_metadata(session.get_modelmeta().custom_metadata_map, location)
    return OnnxModel(
        session=session,
        name=metadata.method,
        **{key: value for key, value in vars(metadata).items() if key != "method"},
    )


def _parse_metadata(properties: Mapping[str, str], location: str) -> OnnxMetadata:
    """Return the validated metadata; its fields are JSON, but for the name of the method."""
    fields: dict[str, Any] = {}
    for name in OnnxMetadata.__dataclass_fields__.keys() & properties.keys():
        text = properties[name]
        try:
            fields[name] = text if name == "method" else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _unreadable(location, f"its metadata {name!r} is {text[:40]!r}") from error
    try:
        metadata = _METADATA.validate_json(json.dumps(fields))
    except ValidationError as error:
        lines = format_errors(error, _METADATA.json_schema())
        raise _unreadable(location, f"its metadata is invalid: {'; '.join(lines)}") from error
    if metadata.method in registry.names():
        data_range = registry.get_method(metadata.method).data_range
        if data_range != metadata.data_range:
            text = f"data_range is {metadata.data_range:g}, of the method {data_range:g}"
            raise _unreadable(location, f"its metadata is invalid: {text}")
    return metadata


def _unreadable(location: str, reason: str) -> UnreadableFile:
    return UnreadableFile(
        f"Cannot run this as an exported network: {reason}",
        rule="ONNX Runtime runs .onnx files that `esrjax export` wrote",
        location=location,
        remedy="check the path, or export the method again: esrjax export NAME -o NAME.onnx",
    )
