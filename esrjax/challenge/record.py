"""Result files with quality, cost and runtime of a method, and the organisers' results.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.bench import Timing
from esrjax.challenge.rules import Rules
from esrjax.challenge.source_files import (
    Contradiction,
    invalid_results,
    json_problems,
    mean_problems,
    parse_all,
    read_text,
)
from esrjax.errors import InvalidArgument, NotFound, UnreadableFile, UnwritableFile, list_some
from esrjax.io import parse_json, read_bytes, write_bytes
from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat, bullet_list, format_errors

WeightsOrigin = Literal["official", "shipped", "own"]
PSNR_TOLERANCE, RUNTIME_TOLERANCE = 0.005, 0.005  # dB; relative, of rounded means


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
        ms_per_image: Image name -> ms of its one forward pass, in the order of the dataset; the
            mean over the runs. The first image has no warm-up of its own, only the passes before
            the loop.
        num_runs: Number of runs over all images, in one process: only the first starts cold.
        warmup_passes: Number of forward passes before the loop.
        num_shapes: Number of different LR sizes, each of which was compiled before the loop.
        compile_s: Seconds for compiling all of them.
        peak_mib: Peak of the device's allocator since the process began, MiB, if it is reported.
        executable_mib: Largest planned memory among the compiled sizes, MiB.
        device: Name of the GPU, or model and cores of the CPU.
        implementation: Requested implementation of ops.
    """

    ms_per_image: Mapping[str, PositiveFloat]
    num_runs: NonNegativeInt = 1
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
    """An entry of the organisers' results.json, with their 14 keys in their order.

    Lists have one figure per image. Runtimes are in ms, PSNR in dB, memory in MiB, activations and
    parameters in 10⁶, FLOPs in 10⁹ multiply-adds. Keys with a default are not needed to rank it. A
    PSNR that is not known, because HR is not public, is null.

    Attributes:
        team: Name of the team, where its number is not among those of the rules. This and the
            following keys are not of the organisers' program, which ignores them.
        measured_by: Who measured runtime, memory and cost; None if it is not recorded.
        psnr_source: Split -> what its PSNR was computed from, where it is not the network's output.
    """

    valid_runtime: tuple[float, ...] = ()
    valid_psnr: tuple[float, ...] | None = ()
    valid_memory: float | None = None
    valid_ave_runtime: PositiveFloat
    valid_ave_psnr: PositiveFloat | None
    test_runtime: tuple[float, ...] = ()
    test_psnr: tuple[float, ...] | None = ()
    test_memory: float | None = None
    test_ave_runtime: PositiveFloat
    test_ave_psnr: PositiveFloat | None
    activations: float | None = None
    num_conv: int | None = None
    flops: PositiveFloat
    num_parameters: PositiveFloat
    team: str | None = None
    measured_by: str | None = None
    psnr_source: Mapping[str, str] = field(default_factory=dict[str, str])


_OWN_KEYS = ("team", "measured_by", "psnr_source")  # written only where they say something
# `<number>_<name>` -> entry, as in the organisers' results.json
Entries = Mapping[str, ResultsEntry]


def entries_json(entries: Entries) -> str:
    """Return the organisers' results.json; its keys are like `23_NAME`."""
    document = {key: _entry_dict(entry) for key, entry in entries.items()}
    return json.dumps(document, allow_nan=False) + "\n"


def _entry_dict(entry: ResultsEntry) -> dict[str, Any]:
    figures = asdict(entry)
    return {k: value for k, value in figures.items() if k not in _OWN_KEYS or value}


def read_entries(path: Path) -> dict[str, ResultsEntry]:
    """Read the organisers' results.json, see `parse_entries`."""
    return parse_entries(read_text(path), path)


def parse_entries(text: str, path: Path) -> dict[str, ResultsEntry]:
    """Return the entries of a results.json; keys are as in the file, with their spaces.

    Args:
        text: Content of the file.
        path: The file, for errors.

    Raises:
        NotFound: It is another document.
        UnreadableFile: Entries are malformed or contradict themselves; lists all.
    """
    if problems := json_problems(text):
        raise invalid_results(problems, path)
    try:
        objects = TypeAdapter(dict[str, dict[str, object]]).validate_json(text)
    except ValidationError:
        raise NotFound(
            f"{path.name} is not the organisers' results.json",
            rule="an object with one object per method",
            location=str(path),
            remedy="to rank result files of esrjax, name their folder instead",
        ) from None
    return dict(parse_all(_parse_entry, objects.items(), path))


def is_entries(text: str) -> bool:
    """Return whether a JSON document has the form of results.json: objects by key."""
    try:
        document = parse_json(text)
    except ValueError:
        return False
    values: Any = document.values() if isinstance(document, dict) else ()
    return bool(values) and all(isinstance(value, dict) for value in values)


def _parse_entry(figures: Mapping[str, object]) -> ResultsEntry:
    """Return an entry; its means are those of its lists."""
    entry = TypeAdapter(ResultsEntry).validate_json(json.dumps(figures), strict=True)
    problems: list[str] = []
    for split in ("valid", "test"):
        psnrs, runtimes = getattr(entry, f"{split}_psnr") or (), getattr(entry, f"{split}_runtime")
        if psnrs and runtimes and len(psnrs) != len(runtimes):
            lengths = f"{len(psnrs)} and {len(runtimes)}"
            problems.append(f"{split}_psnr and {split}_runtime have {lengths} images")
        psnr, runtime = getattr(entry, f"{split}_ave_psnr"), getattr(entry, f"{split}_ave_runtime")
        if psnr is None and psnrs:
            problems.append(f"{split}_ave_psnr is null, {split}_psnr has {len(psnrs)} values")
        elif psnr is not None:
            problems += mean_problems(f"{split}_ave_psnr", psnr, psnrs, abs_tol=PSNR_TOLERANCE)
        problems += mean_problems(f"{split}_ave_runtime", runtime, runtimes, RUNTIME_TOLERANCE)
    if problems:
        raise Contradiction(problems)
    return entry


def team_of_key(key: str, entry: ResultsEntry, rules: Rules) -> str | None:
    """Return the team of an entry: its own, or that of its number; None if neither is known."""
    return entry.team or rules.teams.get(key.strip().partition("_")[0].lstrip("0").zfill(2))


def read_entry(path: Path) -> tuple[str, ResultsEntry]:
    """Read the key and the entry of a results.json that has one.

    Args:
        path: The file, or the folder that has it.

    Raises:
        InvalidArgument: It has several.
        UserError: As `read_entries`.
    """
    file = path / "results.json" if path.is_dir() else path
    entries = read_entries(file)
    if len(entries) == 1:
        return next(iter((key.strip(), entry) for key, entry in entries.items()))
    raise InvalidArgument(
        f"{file} has {len(entries)} entries: {list_some(map(repr, entries))}",
        rule="a submission has one entry",
        location=str(file),
        remedy="give the results.json of one team",
    )


def merge_entries(folder: Path, rules: Rules) -> tuple[dict[str, ResultsEntry], list[Path]]:
    """Return the entries of a folder by number, each with its team, and the files they are from.

    Args:
        folder: Of entries, `TEAM.json` or `TEAM/results.json`.
        rules: Rules with the teams by number; another team is called as its file.

    Raises:
        NotFound: There are none, or a file is no entry.
        UnreadableFile: An entry is malformed, or two have one key.
    """
    files, _ = result_files(folder) if folder.is_dir() else ({}, [])
    merged: dict[str, ResultsEntry] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    for place, file in files.items():
        for key, entry in read_entries(file).items():
            key, team = key.strip(), team_of_key(key, entry, rules) or name_of_place(place)
            if (first := places.setdefault(key, place)) != place:
                problems.append(f"{key!r}: {first} and {place}")
            merged[key] = replace(entry, team=team)
    if problems:
        raise UnreadableFile(
            f"Models of one number and name: {bullet_list(problems, 'model')}",
            rule="an entry has a key of its own, NUMBER_NAME",
            location=str(folder),
            remedy="give each team its number: `esrjax submit build --id NUMBER`, or correct the "
            "keys in the files",
        )
    if not merged:
        raise NotFound(
            f"No entries in '{folder}'",
            rule="a folder of entries has TEAM.json or TEAM/results.json for every team",
            remedy="write them with `esrjax submit score ... -o FOLDER/TEAM.json`",
        )
    return dict(sorted(merged.items())), list(files.values())


def write_entries(entries: Entries, path: Path) -> None:
    """Write a results.json atomically, and create its folder if needed.

    Raises:
        UnwritableFile: It cannot be written there.
    """
    write_bytes(path, entries_json(entries).encode())


# --- files -------------------------------------------------------------------------------------


def result_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return name -> file of the results in a folder, and the names of what is none of them.

    These are `NAME.json`, and `NAME/results.json` of the submission of a team.
    """
    files: dict[str, Path] = {}
    others: list[str] = []
    for child in sorted(child for child in folder.iterdir() if not child.name.startswith(".")):
        nested = child / "results.json"
        if nested.is_file():
            files[f"{child.name}/results.json"] = nested
        elif child.is_file() and child.suffix.lower() == ".json":
            files[child.name] = child
        else:
            others.append(child.name)
    return files, others


def name_of_place(place: str) -> str:
    """Return the team of a result by its file: `Alpha.json` or `Alpha/results.json -> Alpha`."""
    return place.removesuffix("/results.json") if "/" in place else Path(place).stem


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
