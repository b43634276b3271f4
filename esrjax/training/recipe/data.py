"""What a stage says of its pictures."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import BY_KIND, LIST, STRICT, TABLE, Positive

Augment = Literal["hflip", "vflip", "rot90", "rgb"]
Side = Annotated[int, Field(gt=0)]
Shape = tuple[Side, Side]  # height and width of an HR crop, pixels
Shapes = Annotated[tuple[Shape, ...], Field(min_length=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Shares = Annotated[Mapping[str, Positive], Field(min_length=1)]
Sets = Annotated[Annotated[Names, LIST] | Annotated[Shares, TABLE], BY_KIND]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Phase:
    """Other patches from step `at` of the stage on."""

    at: Annotated[int, Field(gt=0)]
    patches: Shapes


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Where patches come from.

    sets: names or folders of pictures, or parts of them (`LSDIR[:10000]`, `LSDIR[20%]`): all
    pictures alike, or, as a table, each set with its share of the patches. patches: HR crops; one
    of the shapes is drawn for every batch. later: the curriculum, other shapes from a step on.
    augment: each is applied or not, at random; the flips and the turn together are the eight-fold
    ones; rgb: the channels in any order (Yoo et al., CVPR 2020, arXiv 2004.00448). shrink: factors
    by which every picture is also taken smaller, by bicubic, with LR made anew. small: what becomes
    of pictures that are smaller than the largest patch.
    feed: who cuts the patches, the host, or the device, which then holds all pictures. workers:
    processes of the host that do it, 0 for threads of the training itself. memory: GiB of pictures
    that the host keeps decoded; those beyond are read whenever they are drawn.
    """

    sets: Sets
    patches: Shapes
    later: tuple[Phase, ...] = ()
    batch: Annotated[int, Field(gt=0)]
    augment: tuple[Augment, ...] = ()
    shrink: tuple[Part, ...] = ()
    small: Literal["refuse", "skip"] = "refuse"
    feed: Literal["host", "device"] = "host"
    workers: Annotated[int, Field(ge=0)] = 0
    memory: Positive = 4.0

    @model_validator(mode="after")
    def _grows(self) -> "Data":
        starts = [phase.at for phase in self.later]
        if starts != sorted(set(starts)):
            raise ValueError("later: `at` must grow from one phase to the next")
        if self.feed == "device" and self.workers:
            raise ValueError('workers belong to feed = "host"')
        return self

    @property
    def shares(self) -> dict[str, float | None]:
        """Set -> its share of the patches, None where all pictures count alike."""
        if isinstance(self.sets, Mapping):
            return dict(self.sets)
        return dict.fromkeys(self.sets)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of all phases."""
        return (*self.patches, *(shape for phase in self.later for shape in phase.patches))

    def shapes_at(self, step: int) -> tuple[Shape, ...]:
        """The shapes that the batch of that step is drawn from."""
        begun = [phase.patches for phase in self.later if phase.at <= step]
        return begun[-1] if begun else self.patches
