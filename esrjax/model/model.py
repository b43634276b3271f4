"""The model of a method: a network with weights, called on images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx
from jax import Array

from esrjax.data.image_io import Pixels
from esrjax.evaluation import upscale
from esrjax.evaluation.upscale import Upscaler
from esrjax.method import Method
from esrjax.model.limits import check_min_side, check_windows
from esrjax.network import canvas, reach
from esrjax.network.archive import Checkpoint
from esrjax.network.compilation import jit
from esrjax.recognition import HParams


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A method with weights, in deploy form.

    `model(lr)` upscales an image, (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8.

    Attributes:
        name: Of the method in the registry.
        method: The method.
        net: The network in deploy form.
        hparams: The network's hyperparameters; unset ones have their defaults.
        checkpoint: Where the weights come from.
    """

    name: str
    method: Method
    net: nnx.Module
    hparams: HParams = field(default_factory=dict[str, Any])
    checkpoint: Checkpoint

    @property
    def scale(self) -> int:
        """HR size / LR size."""
        return self.method.scale

    def __call__(self, lr: Pixels) -> Pixels:
        """Upscale an image in a single pass at its exact size.

        Args:
            lr: (h, w, 3) uint8, RGB.

        Returns:
            (scale·h, scale·w, 3) uint8.

        Raises:
            ImageTooSmall: If a side is shorter than `method.min_side`.
            NaNOutput: If the network's output contains NaN.
        """
        return upscale.uint8_upscaler(self.upscaler())(lr)

    def upscaler(
        self,
        tile_size: upscale.ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
        pad_multiple: int | None = None,
    ) -> Upscaler:
        """Return a function from LR images to SR images as floats in [0, 1].

        Args:
            tile_size: (h, w), LR pixels: process images in tiles of this size, with the result of a
                single pass. None for a single pass; so is a method whose receptive field is the
                whole image.
            self_ensemble: Average over the eight flips and rotations.
            windows: Side of windows, LR pixels -> weight; average over these ways to cut an image
                into windows.
            pad_multiple: Pad LR symmetrically to the next larger multiple, LR pixels.

        Raises:
            BadWindows: If the method cannot be run in these windows.
        """
        upscaler = upscale.single_pass(self.forward, self.method.data_range)
        if tile_size is not None and not self.method.needs_full_image:
            upscaler = self._with_tiles(tile_size, upscaler)
        check_windows(self.name, self.method.min_side, windows or {})
        strategy: Any = {
            "self_ensemble": self_ensemble,
            "windows": windows,
            "pad_multiple": pad_multiple,
        }
        return self._with_size_check(upscale.compose_upscaler(upscaler, self.scale, **strategy))

    def _with_tiles(self, tile_size: upscale.ImageSize, single_pass: Upscaler) -> Upscaler:
        """Return a tiled upscaler; `single_pass` where the receptive field is the whole image."""

        def run(lr: Pixels) -> upscale.FloatImage:
            # One tile needs no overlap, and saves measuring the receptive field.
            fits = upscale.fits_in_tile(lr, tile_size)
            radius = 0 if fits else self.receptive_field_radius
            if radius is None:
                return single_pass(lr)
            tiling = upscale.make_tiling(lr, tile_size, radius)
            upscaler = upscale.tiled_upscaler(
                self.masked_forward, tiling, self.method.data_range, self.method.scale
            )
            return upscaler(lr)

        return run

    def _with_size_check(self, upscaler: Upscaler) -> Upscaler:
        def run(lr: Pixels) -> upscale.FloatImage:
            check_min_side(self.name, self.method.min_side, lr.shape[:2])
            return upscaler(lr)

        return run

    @functools.cached_property
    def receptive_field_radius(self) -> int | None:
        """The radius of the receptive field, LR pixels; None if it is the whole image."""
        return reach.receptive_field_radius(self.forward, self.method.scale)

    @functools.cached_property
    def forward(self) -> Callable[[Array], Array]:
        """The network, (n, h, w, 3) -> (n, scale·h, scale·w, 3), compiled for every size.

        Input and output are floats in [0, `method.data_range`].
        """
        graphdef, state = nnx.split(self.net)
        run = jit(lambda state, lr: nnx.merge(graphdef, state)(lr))  # pyright: ignore[reportCallIssue] # networks are callable
        return lambda lr: run(state, lr)

    @functools.cached_property
    def masked_forward(self) -> Callable[[Array, Array], Array]:
        """As `forward`, for an image that is padded: `mask` (h, w) is 1 on the image, else 0."""
        graphdef, state = nnx.split(self.net)

        @jit
        def run(state: Any, lr: Array, mask: Array) -> Array:
            with canvas.valid_region(mask):
                return nnx.merge(graphdef, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable

        return lambda lr, mask: run(state, lr, mask)
