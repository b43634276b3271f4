"""Schema of a stage's training data."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from esrjax.schema import BY_TYPE, LIST, STRICT, TABLE, PositiveFloat

Augment = Literal["hflip", "vflip", "rot90", "rgb"]
SideLength = Annotated[int, Field(gt=0)]
PatchSize = tuple[SideLength, SideLength]  # height and width of an HR crop, pixels
PatchSizes = Annotated[tuple[PatchSize, ...], Field(min_length=1)]
DownscaleFactor = Annotated[float, Field(gt=0, lt=1)]
DatasetNames = Annotated[tuple[str, ...], Field(min_length=1)]
DatasetWeights = Annotated[Mapping[str, PositiveFloat], Field(min_length=1)]
Datasets = Annotated[Annotated[DatasetNames, LIST] | Annotated[DatasetWeights, TABLE], BY_TYPE]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PatchPhase:
    """One entry of `patch_schedule`: the patch sizes from a step of the stage on.

    Attributes:
        step: First step of the stage, from 0, that uses these sizes.
        hr_patch_sizes: (height, width) of the HR crops, pixels.
    """

    step: Annotated[int, Field(gt=0)]
    hr_patch_sizes: PatchSizes


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Datasets, patches and augmentation of a stage.

    Attributes:
        datasets: Names or folders of datasets, or parts of them (`LSDIR[:10000]`, `LSDIR[20%]`).
            A list samples all images with equal probability; a table gives the relative weight
            with which patches are drawn from each dataset.
        hr_patch_sizes: (height, width) of the HR crops, pixels. One size is drawn per batch.
        patch_schedule: Curriculum: other patch sizes from given steps of the stage on.
        batch_size: Patches per step, over all devices and processes.
        augment: Augmentations, each applied to a patch with probability 1/2. hflip, vflip and rot90
            together give the 8 symmetries of the square; rgb shuffles the colour channels (Yoo et
            al., CVPR 2020, arXiv 2004.00448).
        hr_downscales: Factors below 1. Each adds a copy of every HR image, resized by bicubic, with
            the LR image recomputed from it.
        undersized: Images smaller than the largest patch raise an error, or are skipped.
        crop_on: Where patches are cropped: on the host, or on the device, which then keeps all
            images in its memory.
        num_workers: Processes of the host that crop patches; 0 uses threads of the main process.
        cache_gib: GiB of decoded images that the host keeps in memory, over all its workers; other
            images are read again whenever they are drawn.
    """

    datasets: Datasets
    hr_patch_sizes: PatchSizes
    patch_schedule: tuple[PatchPhase, ...] = ()
    batch_size: Annotated[int, Field(gt=0)]
    augment: tuple[Augment, ...] = ()
    hr_downscales: tuple[DownscaleFactor, ...] = ()
    undersized: Literal["error", "skip"] = "error"
    crop_on: Literal["host", "device"] = "host"
    num_workers: Annotated[int, Field(ge=0)] = 0
    cache_gib: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _check(self) -> "Data":
        steps = [phase.step for phase in self.patch_schedule]
        if steps != sorted(set(steps)):
            raise ValueError("patch_schedule: the steps must be strictly increasing")
        if self.crop_on == "device" and self.num_workers:
            raise ValueError('num_workers requires crop_on = "host"')
        return self

    @property
    def dataset_weights(self) -> dict[str, float | None]:
        """Dataset -> its relative weight; None where all images have equal probability."""
        if isinstance(self.datasets, Mapping):
            return dict(self.datasets)
        return dict.fromkeys(self.datasets)

    @property
    def all_patch_sizes(self) -> tuple[PatchSize, ...]:
        """The HR patch sizes of all phases, (height, width) in pixels."""
        return (
            *self.hr_patch_sizes,
            *(size for phase in self.patch_schedule for size in phase.hr_patch_sizes),
        )

    def patch_sizes_at(self, step: int) -> tuple[PatchSize, ...]:
        """Return the candidate sizes for the batch of `step`, counted from 0 in the stage."""
        active = [phase.hr_patch_sizes for phase in self.patch_schedule if phase.step <= step]
        return active[-1] if active else self.hr_patch_sizes
