"""The model of an ensemble: several networks with weights whose outputs are blended."""

from collections.abc import Mapping
from dataclasses import dataclass

from esrjax.data.image_io import Pixels
from esrjax.evaluation import upscale
from esrjax.evaluation.upscale import Upscaler
from esrjax.method import Ensemble
from esrjax.model.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleModel:
    """An ensemble with the weights of its members, called on images like a `Model`.

    Attributes:
        name: Of the ensemble in the registry.
        ensemble: How its members are run and blended.
        members: Name of a method -> its model.
    """

    name: str
    ensemble: Ensemble
    members: Mapping[str, Model]

    @property
    def scale(self) -> int:
        """HR size / LR size."""
        return self.ensemble.scale

    def __call__(self, lr: Pixels) -> Pixels:
        """Upscale an image: (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8."""
        return upscale.uint8_upscaler(self.upscaler())(lr)

    def upscaler(
        self,
        tile_size: upscale.ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> Upscaler:
        """Return a function from LR images to SR images as floats in [0, 1].

        Args:
            tile_size: (h, w) of tiles, LR pixels, for members that support exact tiling.
            self_ensemble: Run every member with the x8 self-ensemble; members that the ensemble
                runs so do in any case.
            windows: For members without windows of their own, as in `Model.upscaler`.
        """
        upscalers = self.member_upscalers(tile_size, self_ensemble=self_ensemble, windows=windows)
        return upscale.blend_upscalers(list(upscalers.values()), self.blend)

    def member_upscalers(
        self,
        tile_size: upscale.ImageSize | None = None,
        *,
        self_ensemble: bool = False,
        windows: upscale.Windows | None = None,
    ) -> dict[str, Upscaler]:
        """Return the upscaler of every member, by name; arguments as in `upscaler`."""
        return {
            name: self.members[name].upscaler(
                tile_size,
                self_ensemble=self_ensemble or member.self_ensemble,
                windows=member.windows or windows,
                pad_multiple=member.pad_multiple,
            )
            for name, member in self.ensemble.members.items()
        }

    @property
    def blend(self) -> upscale.BlendFn:
        """The function that blends the outputs of the members, given in their order."""
        weights = [member.weight for member in self.ensemble.members.values()]
        return (
            upscale.adaptive_blend
            if self.ensemble.fusion == "adaptive"
            else upscale.weighted_blend(weights)
        )
