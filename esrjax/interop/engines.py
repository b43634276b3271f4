"""`OnnxModel`, an exported network in ONNX Runtime: images of any size without compilation."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from esrjax.data.image_io import Pixels
from esrjax.errors import UnreadableFile, UserError, WeightsMismatch
from esrjax.evaluation import upscale
from esrjax.evaluation.upscale import FloatImage, Tiling, Upscaler
from esrjax.inference import Model, check_min_side, check_windows, open_method
from esrjax.interop import export
from esrjax.interop.onnx.converter import INPUT
from esrjax.interop.onnx.runtime import make_session
from esrjax.method import Method

REQUIRED_METADATA = ("method", "scale", "data_range", "min_side", "receptive_field_radius")


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

    def __call__(self, image: Pixels) -> Pixels:
        """Upscale a uint8 image `(h, w, 3)` to `(s·h, s·w, 3)`."""
        return upscale.uint8_upscaler(self.upscaler())(image)

    def forward(self, lr: Any) -> NDArray[np.float32]:
        """Run the network: `(1, h, w, 3) -> (1, s·h, s·w, 3)`, values in [0, `data_range`]."""
        return run_session(self.session, lr)

    def upscaler(
        self,
        tile: upscale.ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> Upscaler:
        """Return a function from uint8 images to float images in [0, 1].

        Args:
            tile: Size of tiles, LR pixels; None, or a network that needs the full image: no tiles.
            self_ensemble: Whether to average over the x8 self-ensemble.
            windows: Sizes of a window ensemble, with their weights.

        Raises:
            UserError: If windows are smaller than `min_side`; the function itself raises if an
                image is.
        """
        single_pass: Any = upscale.single_pass(self.forward, self.data_range)  # pyright: ignore[reportArgumentType] # NumPy arrays work as well
        upscaler = (
            single_pass
            if tile is None or self.receptive_field_radius is None
            else self._tiled(tile, single_pass)
        )
        check_windows(self.name, self.min_side, windows or {})
        kwargs: Any = {"self_ensemble": self_ensemble, "windows": windows}
        return self._with_size_check(upscale.compose_upscaler(upscaler, self.scale, **kwargs))

    def _tiled(self, tile: upscale.ImageSize, single_pass: Upscaler) -> Upscaler:
        """Return an upscaler by tiles that lie within the image, since ONNX models take no mask."""

        def upscale_tiled(image: Pixels) -> FloatImage:
            if upscale.fits_in_tile(image, tile):
                return single_pass(image)
            radius = self.receptive_field_radius or 0
            height, width = upscale.make_tiling(image, tile, radius).tile_size
            size = min(height, image.shape[0]), min(width, image.shape[1])
            forward: Any = lambda lr, mask: self.forward(lr)  # noqa: E731
            return upscale.tiled_upscaler(
                forward, Tiling(size, radius), self.data_range, self.scale
            )(image)

        return upscale_tiled

    def _with_size_check(self, upscaler: Upscaler) -> Upscaler:
        def check_and_upscale(image: Pixels) -> FloatImage:
            check_min_side(self.name, self.min_side, image.shape[:2])
            return upscaler(image)

        return check_and_upscale


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
    try:
        return from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error


def load(name: str, checkpoint: Path | None, hparams: Mapping[str, Any] | None = None) -> OnnxModel:
    """Load a method in ONNX Runtime.

    Args:
        name: Name of the method.
        checkpoint: An exported .onnx file; or weights, which are exported in memory; None for the
            published weights.
        hparams: Hyperparameters, where weights are exported.

    Raises:
        WeightsMismatch: If the .onnx file is an export of another method.
        UnreadableFile: If it cannot be read.
    """
    if checkpoint is None or checkpoint.suffix != ".onnx":
        return from_model(open_method(name, checkpoint, hparams))
    model = open_onnx(checkpoint)
    if model.name != name:
        raise WeightsMismatch(
            f"The file is an export of {model.name!r}, not of {name!r}",
            rule="the method of an exported file is the one in its metadata",
            location=str(checkpoint),
            remedy=f"use the method {model.name!r}, or another file",
        )
    return model


def from_model(model: Model) -> OnnxModel:
    """Export a model to ONNX in memory, and open it in ONNX Runtime."""
    return from_bytes(export.to_onnx_bytes(model), model.name)


def from_bytes(data: bytes, location: str) -> OnnxModel:
    """Open the bytes of an .onnx file.

    Args:
        data: The bytes.
        location: Where they are from, for error messages.

    Raises:
        UnreadableFile: If ONNX Runtime cannot load them, or they have no esrjax metadata.
    """
    try:
        onnx_session = make_session(data)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(location, " ".join(str(error).split())[:200]) from error
    metadata = onnx_session.get_modelmeta().custom_metadata_map
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise _unreadable(location, f"its metadata has no {', '.join(missing)}")
    scale, data_range, min_side, receptive_field_radius = (
        json.loads(metadata[key]) for key in REQUIRED_METADATA[1:]
    )
    return OnnxModel(
        session=onnx_session,
        name=metadata["method"],
        scale=scale,
        data_range=data_range,
        min_side=min_side,
        receptive_field_radius=receptive_field_radius,
    )


def _unreadable(location: str, reason: str) -> UnreadableFile:
    return UnreadableFile(
        f"Cannot run this as an exported network: {reason}",
        rule="ONNX Runtime runs .onnx files that `esrjax export` wrote",
        location=location,
        remedy="check the path, or export the method again: esrjax export NAME -o NAME.onnx",
    )
