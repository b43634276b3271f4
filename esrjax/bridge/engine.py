"""An exported network in ONNX Runtime: pictures of any size, nothing to compile."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from esrjax.bridge import export
from esrjax.bridge.onnx.model import INPUT
from esrjax.bridge.onnx.runtime import session
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.model import Model, open_method, require_side, require_windows
from esrjax.pictures import upscale
from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale import Canvas, Floats, Upscaler
from esrjax.recognition import WrongMethod

FIELDS = ("method", "scale", "data_range", "min_side", "reach")


class UnreadableExport(UserError):
    """A file that holds no network that was exported here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Engine:
    """A network in ONNX Runtime; called on a picture it gives the larger picture.

    The facts are those of `esrjax.bridge.export.Card`.
    """

    session: Any
    name: str
    scale: int
    data_range: float
    min_side: int
    reach: int | None

    def __call__(self, picture: Pixels) -> Pixels:
        """`(h, w, 3)` bytes -> `(s·h, s·w, 3)` bytes."""
        return upscale.to_8_bits(self.upscaler())(picture)

    def forward(self, lr: Any) -> NDArray[np.float32]:
        """`(1, h, w, 3) -> (1, s·h, s·w, 3)`, white at `data_range`."""
        return run(self.session, lr)

    def upscaler(
        self,
        tile: upscale.Size | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> Upscaler:
        """Pictures to floats, white at 1; with `tile`, in tiles of that size where exact."""
        whole: Any = upscale.whole(self.forward, self.data_range)  # pyright: ignore[reportArgumentType] # numpy's arrays do as well
        runs = whole if tile is None or self.reach is None else self._tiled(tile, whole)
        require_windows(self.name, self.min_side, windows or {})
        how: Any = {"self_ensemble": self_ensemble, "windows": windows}
        return self._checked(upscale.strategy(runs, self.scale, **how))

    def _tiled(self, tile: upscale.Size, whole: Upscaler) -> Upscaler:
        """In tiles that lie within the picture, so that no mask is needed."""

        def runs(picture: Pixels) -> Floats:
            if upscale.fits(picture, tile):
                return whole(picture)
            reach = self.reach or 0
            high, wide = upscale.canvas(picture, tile, reach).size
            size = min(high, picture.shape[0]), min(wide, picture.shape[1])
            forward: Any = lambda lr, mask: self.forward(lr)  # noqa: E731
            return upscale.tiled(forward, Canvas(size, reach), self.data_range, self.scale)(picture)

        return runs

    def _checked(self, upscaler: Upscaler) -> Upscaler:
        def check(picture: Pixels) -> Floats:
            require_side(self.name, self.min_side, picture.shape[:2])
            return upscaler(picture)

        return check


def run(made: Any, lr: Any) -> NDArray[np.float32]:
    """`(1, h, w, 3) -> (1, s·h, s·w, 3)`, by a session."""
    given = np.ascontiguousarray(np.asarray(lr, np.float32).transpose(0, 3, 1, 2))
    return made.run(None, {INPUT: given})[0].transpose(0, 2, 3, 1)


def forward(name: str, method: Method, net: nnx.Module) -> Callable[[Any], NDArray[np.float32]]:
    """A network of `method`, exported and started: a function of pictures alone."""
    model = export.onnx(name, net, method.min_side)
    return functools.partial(run, session(model.SerializeToString()))


def open_engine(path: Path) -> Engine:
    """The network in an exported .onnx file."""
    try:
        return start(path.read_bytes(), str(path))
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error


def load(name: str, checkpoint: Path | None, sizes: Mapping[str, Any] | None = None) -> Engine:
    """The method `name`: from an exported .onnx file, or exported here from its weights."""
    if checkpoint is None or checkpoint.suffix != ".onnx":
        return exported(open_method(name, checkpoint, sizes))
    engine = open_engine(checkpoint)
    if engine.name != name:
        raise WrongMethod(
            f"this is an export of {engine.name!r}, not of {name!r}",
            rule="an exported file runs as the method that it names",
            place=str(checkpoint),
            remedy=f"name the method {engine.name!r}, or give another file",
        )
    return engine


def exported(model: Model) -> Engine:
    """The network of an opened method, exported here."""
    return start(export.unchecked(model), model.name)


def start(model: bytes, place: str) -> Engine:
    """The network in the bytes of an exported .onnx file."""
    try:
        made = session(model)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(place, " ".join(str(error).split())[:200]) from error
    facts = made.get_modelmeta().custom_metadata_map
    missing = [key for key in FIELDS if key not in facts]
    if missing:
        raise _unreadable(place, f"it does not say its {', '.join(missing)}")
    scale, white, least, reach = (json.loads(facts[key]) for key in FIELDS[1:])
    return Engine(
        session=made,
        name=facts["method"],
        scale=scale,
        data_range=white,
        min_side=least,
        reach=reach,
    )


def _unreadable(place: str, why: str) -> UnreadableExport:
    return UnreadableExport(
        f"cannot run this as an exported network: {why}",
        rule="an engine runs what `esrjax export` wrote as .onnx",
        place=place,
        remedy="export the method again: esrjax export NAME -o NAME.onnx",
    )
