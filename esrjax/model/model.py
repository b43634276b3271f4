"""One network with its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx
from jax import Array

from esrjax.method import Method
from esrjax.model.limits import require_side, require_windows
from esrjax.network import canvas, reach
from esrjax.network.archive import Checkpoint
from esrjax.network.compilation import jit
from esrjax.pictures import upscale
from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale import Upscaler
from esrjax.recognition import Sizes


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A method with weights, deployed. Called on a picture it gives the larger picture.

    net: deploy form. sizes: those of the network. checkpoint: where the weights come from.
    """

    name: str
    method: Method
    net: nnx.Module
    sizes: Sizes = field(default_factory=dict[str, Any])
    checkpoint: Checkpoint

    @property
    def scale(self) -> int:
        """How many times larger the picture becomes."""
        return self.method.scale

    def __call__(self, picture: Pixels) -> Pixels:
        """`(h, w, 3)` bytes -> `(s·h, s·w, 3)` bytes, at exact size."""
        return upscale.to_8_bits(self.upscaler())(picture)

    def upscaler(
        self,
        tile: upscale.Size | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
        mirrored: int | None = None,
    ) -> Upscaler:
        """Pictures to floats, white at 1; with `tile`, in tiles of that size where exact.

        self_ensemble, windows, mirrored: as in `esrjax.method.Member`.
        """
        runs = upscale.whole(self.forward, self.method.data_range)
        if tile is not None and not self.method.whole_picture:
            runs = self._tiled(tile, runs)
        require_windows(self.name, self.method.min_side, windows or {})
        how: Any = {"self_ensemble": self_ensemble, "windows": windows, "mirrored": mirrored}
        return self._checked(upscale.strategy(runs, self.scale, **how))

    def _tiled(self, tile: upscale.Size, whole: Upscaler) -> Upscaler:
        """In tiles of that size, widened where it is less than two reaches; else `whole`."""

        def runs(picture: Pixels) -> upscale.Floats:
            reach = 0 if upscale.fits(picture, tile) else self.reach
            if reach is None:
                return whole(picture)
            canvas = upscale.canvas(picture, tile, reach)
            one = upscale.tiled(self.masked, canvas, self.method.data_range, self.method.scale)
            return one(picture)

        return runs

    def _checked(self, upscaler: Upscaler) -> Upscaler:
        def check(picture: Pixels) -> upscale.Floats:
            require_side(self.name, self.method.min_side, picture.shape[:2])
            return upscaler(picture)

        return check

    @functools.cached_property
    def reach(self) -> int | None:
        """How far a pixel reaches, LR pixels; None where it reaches all."""
        return reach.reach(self.forward, self.method.scale)

    @functools.cached_property
    def forward(self) -> Callable[[Array], Array]:
        """`(n, h, w, 3) -> (n, s·h, s·w, 3)`, white at `method.data_range`; compiled per size."""
        graph, state = nnx.split(self.net)
        run = jit(lambda state, lr: nnx.merge(graph, state)(lr))  # pyright: ignore[reportCallIssue] # networks are callable
        return lambda lr: run(state, lr)

    @functools.cached_property
    def masked(self) -> Callable[[Array, Array], Array]:
        """The same for a picture where `mask (h, w)` is 1 on a larger canvas."""
        graph, state = nnx.split(self.net)

        @jit
        def run(state: Any, lr: Array, mask: Array) -> Array:
            with canvas.picture(mask):
                return nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable

        return lambda lr, mask: run(state, lr, mask)
