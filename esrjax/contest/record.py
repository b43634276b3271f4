"""What was measured of one method: a `Result`, kept as a JSON file."""

import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.errors import UserError
from esrjax.schema import STRICT, Count, Positive, listing, mistakes


class ResultError(UserError):
    """A file that does not say a result."""


class UnwritableResults(UserError):
    """A folder that results cannot be put into."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quality:
    """Means over a set of pictures: psnr in dB, ssim where it was asked for.

    each: name of a picture -> its PSNR, in the order of the set.
    """

    psnr: Positive
    ssim: float | None = None
    pictures: Count
    each: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Timing:
    """Runtime of one forward pass on LR pictures of `shape`, on one machine.

    low_ms, high_ms: 95 % bootstrap interval of the median. runs: timed runs behind it.
    compile_s: tracing, lowering and compiling. first_ms: the first call of the compiled program.
    program_mib: arguments, outputs and temporaries of the compiled program, as the compiler plans
    them. peak_mib: the most the device's allocator has held since the process began, where it
    tells. precision: of matrix products, as JAX was set. driver: of the GPU. body: which bodies of
    operations were asked for.
    """

    median_ms: Positive
    low_ms: Positive
    high_ms: Positive
    runs: Count
    compile_s: float
    first_ms: Positive
    program_mib: float | None = None
    peak_mib: float | None = None
    shape: tuple[int, ...]
    dtype: str
    precision: str
    device: str
    driver: str | None = None
    body: str | None = None

    @property
    def conditions(self) -> str:
        """What two runtimes must share beside the device to be compared."""
        return f"{self.dtype}{list(self.shape)}, {self.precision} precision"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Companion:
    """The baseline, timed in turn with a method in one process; its weights do not matter."""

    method: str
    team: str
    params: Count
    macs: Count
    runtime: Timing


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Harness:
    """Runtime over the pictures of a set as the organisers' program measures it.

    each: name of a picture -> ms of its one forward pass, in the order of the set; the first has
    no warm-up but the passes before the loop (warm_up). shapes: LR sizes among the pictures, each
    compiled before it was timed. compile_s: all of that together. peak_mib: the most the device's
    allocator has held since the process began, where it tells. program_mib: the most that the
    program of one of the shapes needs, as the compiler plans it.
    """

    each: Mapping[str, Positive]
    warm_up: Count
    shapes: Count
    compile_s: float
    peak_mib: float | None = None
    program_mib: float | None = None
    device: str
    body: str | None = None

    @property
    def mean_ms(self) -> float:
        """The organisers' figure: the mean with the first picture in it."""
        return fmean(self.each.values())

    @property
    def first_ms(self) -> float:
        """The first picture alone, which carries the start-up cost."""
        return next(iter(self.each.values()))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Result:
    """Everything we measured of one method with one set of weights; one JSON file.

    spec: the metric specification. quality: name of a set -> means; `valid` and `test` are the
    contest's own. macs: multiply-adds as the organisers count them, activations: elements that
    convolutions give, both at 1x256x256x3. baseline: the contest's, timed in turn with this one.
    harness: name of a set -> runtime as the organisers measure it. created: ISO 8601.
    """

    method: str
    team: str
    weights_sha256: str | None = None
    spec: str
    quality: Mapping[str, Quality]
    params: Count
    macs: Count
    activations: Count
    convs: Count
    runtime: Timing
    baseline: Companion | None = None
    harness: Mapping[str, Harness] = field(default_factory=dict[str, Harness])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    commit: str | None = None
    created: str


FILE = TypeAdapter(Result)  # what a result file holds


def require_folder(folder: Path) -> None:
    """Raise `UnwritableResults` unless results can be put into `folder`, which may be new."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UnwritableResults(
            f"the results cannot be written into '{folder}'",
            rule="results go into a folder, new or not, that can be written into",
            place=str(there),
            remedy="name another folder with -o",
        )


def save(result: Result, path: Path) -> None:
    """Writes one result file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(FILE.dump_json(result, indent=2) + b"\n")
    os.replace(beside, path)


def load(path: Path) -> Result:
    """Reads one result file."""
    try:
        return FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ResultError(
            f"the result has {listing(mistakes(error))}",
            rule="every field of esrjax.contest.record.Result with its type, and no other",
            place=str(path),
            remedy="measure it again with this version of esrjax, or move it out of the folder",
        ) from None
