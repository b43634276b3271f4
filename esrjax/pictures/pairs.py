"""An HR picture and its LR, wherever they lie."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from esrjax.errors import UserError
from esrjax.pictures.files import Picture, Pixels, read, size
from esrjax.pictures.records import Record
from esrjax.pictures.resize import crop, downscale, shrink, shrunk

Progress = Callable[[Sequence["Pair"]], Iterable["Pair"]]  # passes pairs on, and may show a bar


class PairMismatch(UserError):
    """An LR and an HR picture whose sizes do not go together."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An HR picture and its LR; where `lr` is None it is made from the HR.

    shrunk: how much smaller than its file the HR picture is taken, 1 for as it is.
    """

    name: str
    hr: Path | Record
    lr: Path | Record | None = None
    scale: int = 4
    shrunk: float = 1.0

    def smaller(self, factor: float) -> "Pair":
        """The same picture made smaller, with an LR of its own."""
        return replace(self, lr=None, shrunk=factor)

    def load(self) -> tuple[Pixels, Pixels]:
        """(h, w, 3) LR and (scale·h, scale·w, 3) HR, cropped at its bottom and right."""
        return self.match(picture(self.hr).pixels)

    def match(self, hr: Pixels) -> tuple[Pixels, Pixels]:
        """The same of HR pixels that are read already."""
        hr = hr if self.shrunk == 1 else shrink(hr, self.shrunk)
        hr = crop(hr, self.scale)
        lr = downscale(hr, self.scale) if self.lr is None else picture(self.lr).pixels
        if hr.shape[:2] != tuple(self.scale * side for side in lr.shape[:2]) or not hr.size:
            raise self._mismatch(lr, hr)
        return lr, hr

    def sides(self) -> tuple[int, int]:
        """(h, w) of the LR picture, as the header of the HR one has it."""
        height, width = size(self.hr) if isinstance(self.hr, Path) else self.hr.size()
        height, width = (shrunk(side, self.shrunk) for side in (height, width))
        return height // self.scale, width // self.scale

    def _mismatch(self, lr: Pixels, hr: Pixels) -> PairMismatch:
        small, large = (f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in (lr, hr))
        return PairMismatch(
            f"the LR picture is {small}, the cropped HR picture {large} (height x width)",
            place=f"'{self.hr}'" + (f" and '{self.lr}'" if self.lr else ""),
            rule=f"the HR sides, cropped to multiples of {self.scale}, are {self.scale} x the LR's",
            remedy="make the LR picture again, or name the scale it was made for",
        )


def picture(source: Path | Record) -> Picture:
    """What lies in a file or in a record."""
    return read(source) if isinstance(source, Path) else source.picture()
