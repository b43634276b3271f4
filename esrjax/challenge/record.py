"""Result files with quality, cost and runtime of a method, and entries of results.json."""

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.bench.record import Timing
from esrjax.errors import UnreadableFile, UnwritableFile
from esrjax.io import read_bytes, write_bytes
from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat, bullet_list, format_errors

WeightsOrigin = Literal["official", "shipped", "own"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetMetrics:
    """Quality of a method on one dataset.

    Attributes:
        psnr: Mean PSNR over the images, dB.
        ssim: Mean SSIM over the images, if it was computed.
        num_images: Number of images.
        psnr_per_image: Image name -> PSNR in dB, in the order of the dataset.
        images_sha256: Hash of the names and pixels of all images, LR and HR.
    """

    psnr: PositiveFloat
    ssim: float | None = None
    num_images: NonNegativeInt
    psnr_per_image: Mapping[str, float] | None = None
    images_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineTiming:
    """Runtime and cost of the baseline, timed interleaved with a method in one process.

    The network is untrained, as weights change neither runtime nor cost.

    Attributes:
        method: Name of the baseline's method.
        team: Name of its team.
        params: Number of parameters.
        macs: Multiply-adds at 1x256x256x3, as the organisers count them.
        runtime: Runtime at 1x256x256x3.
    """

    method: str
    team: str
    params: NonNegativeInt
    macs: NonNegativeInt
    runtime: Timing


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProtocolTiming:
    """Runtime over the images of a dataset as the organisers' program measures it.

    Attributes:
        ms_per_image: Image name -> ms of its one forward pass, in the order of the dataset. The
            first image has no warm-up of its own, only the passes before the loop.
        warmup_passes: Number of forward passes before the loop.
        num_shapes: Number of different LR sizes, each of which was compiled before the loop.
        compile_s: Seconds for compiling all of them.
        peak_mib: Peak of the device's allocator since the process began, MiB, if it is reported.
        executable_mib: Largest planned memory among the compiled sizes, MiB.
        device: Name of the GPU, or model and cores of the CPU.
        implementation: Requested implementation of ops.
    """

    ms_per_image: Mapping[str, PositiveFloat]
    warmup_passes: NonNegativeInt
    num_shapes: NonNegativeInt
    compile_s: float
    peak_mib: float | None = None
    executable_mib: float | None = None
    device: str
    implementation: str | None = None

    @property
    def mean_ms(self) -> float:
        """Mean over all images, the first included: the organisers' figure."""
        return fmean(self.ms_per_image.values())

    @property
    def first_ms(self) -> float:
        """Runtime of the first image, which includes the start-up cost."""
        return next(iter(self.ms_per_image.values()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Result:
    """Everything measured of one method with one checkpoint; the content of a result file.

    Attributes:
        method: Name of the method.
        label: Name of this checkpoint among several of the method, if it has one.
        team: Name of the method's team.
        weights_sha256: Hash of the checkpoint, if it was loaded from a file.
        weights_origin: Whose weights they are: published by the team, shipped with the plugin, or
            the user's own.
        spec: Metric specification of PSNR and SSIM.
        quality: Dataset name -> metrics; `valid` and `test` are the splits of the challenge.
        params: Number of parameters.
        macs: Multiply-adds at 1x256x256x3, as the organisers count them.
        activations: Output elements of the convolutions at 1x256x256x3.
        convs: Number of convolutions.
        runtime: Runtime at 1x256x256x3.
        baseline: The challenge's baseline, timed interleaved with this method.
        protocol_timing: Dataset name -> runtime as the organisers' program measures it.
        versions: Package -> version.
        commit: Git commit of esrjax, if it is known.
        created: Date and time, ISO 8601.
    """

    method: str
    label: str | None = None
    team: str
    weights_sha256: str | None = None
    weights_origin: WeightsOrigin | None = None
    spec: str
    quality: Mapping[str, DatasetMetrics]
    params: NonNegativeInt
    macs: NonNegativeInt
    activations: NonNegativeInt
    convs: NonNegativeInt
    runtime: Timing
    baseline: BaselineTiming | None = None
    protocol_timing: Mapping[str, ProtocolTiming] = field(default_factory=dict[str, ProtocolTiming])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    commit: str | None = None
    created: str

    @property
    def name(self) -> str:
        """The label, or else the method."""
        return self.label or self.method


RESULT_ADAPTER = TypeAdapter(Result)  # validates and serializes result files

# For data of the organisers, which has more columns and keys than are needed.
IGNORE_EXTRA = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class ResultsEntry:
    """An entry of the organisers' results.json, with their keys in their order.

    Lists have one figure per image. Runtimes are in ms, PSNR in dB, memory in MiB, activations and
    parameters in 10⁶, FLOPs in 10⁹ multiply-adds. Keys with a default are not needed to rank it.
    """

    valid_runtime: tuple[float, ...] = ()
    valid_psnr: tuple[float, ...] = ()
    valid_memory: float | None = None
    valid_ave_runtime: PositiveFloat
    valid_ave_psnr: PositiveFloat
    test_runtime: tuple[float, ...] = ()
    test_psnr: tuple[float, ...] = ()
    test_memory: float | None = None
    test_ave_runtime: PositiveFloat
    test_ave_psnr: PositiveFloat
    activations: float | None = None
    num_conv: int | None = None
    flops: PositiveFloat
    num_parameters: PositiveFloat


def check_writable_folder(folder: Path) -> None:
    """Raise `UnwritableFile` unless results can be written into `folder`, which may be new."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UnwritableFile(
            f"Cannot write results into '{folder}'",
            rule="results are written into a new or existing folder with write permission",
            location=str(parent),
            remedy="name another folder with -o",
        )


def save_result(result: Result, path: Path) -> None:
    """Write a result file atomically, and create its folder if needed.

    Raises:
        UnwritableFile: It cannot be written there.
    """
    write_bytes(path, RESULT_ADAPTER.dump_json(result, indent=2) + b"\n")


def load_result(path: Path) -> Result:
    """Read a result file.

    Raises:
        UnreadableFile: The file does not match `Result`.
    """
    try:
        return RESULT_ADAPTER.validate_json(read_bytes(path))
    except ValidationError as error:
        raise UnreadableFile(
            f"Invalid result file: {bullet_list(format_errors(error))}",
            rule="every field of esrjax.challenge.record.Result with its type, and no other",
            location=str(path),
            remedy="measure it again with this version of esrjax, or move it out of the folder",
        ) from None
