"""Several networks with their weights, whose pictures are fused."""

from collections.abc import Mapping
from dataclasses import dataclass

from esrjax.method import Ensemble
from esrjax.model.model import Model
from esrjax.pictures import upscale
from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale import Upscaler


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """An ensemble whose members have their weights; called on pictures like a `Model`."""

    name: str
    ensemble: Ensemble
    members: Mapping[str, Model]

    @property
    def scale(self) -> int:
        """How many times larger the picture becomes."""
        return self.ensemble.scale

    def __call__(self, picture: Pixels) -> Pixels:
        """`(h, w, 3)` bytes -> `(s·h, s·w, 3)` bytes."""
        return upscale.to_8_bits(self.upscaler())(picture)

    def upscaler(
        self,
        tile: upscale.Size | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> Upscaler:
        """Pictures to floats: what the members make of them, fused.

        self_ensemble, windows: of every member, those of its own apart.
        """
        runs = self.upscalers(tile, self_ensemble=self_ensemble, windows=windows)
        return upscale.fused(list(runs.values()), self.blend)

    def upscalers(
        self,
        tile: upscale.Size | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> dict[str, Upscaler]:
        """Every member, run as the ensemble runs it."""
        return {
            name: self.members[name].upscaler(
                tile,
                self_ensemble=self_ensemble or how.self_ensemble,
                windows=how.windows or windows,
                mirrored=how.mirrored,
            )
            for name, how in self.ensemble.members.items()
        }

    @property
    def blend(self) -> upscale.Blend:
        """The members' pictures, in their order, to one."""
        weights = [member.weight for member in self.ensemble.members.values()]
        return upscale.adaptive if self.ensemble.fusion == "adaptive" else upscale.weighted(weights)
