"""Rows of a ranking: the figures of one method, and where each figure comes from."""

from collections.abc import Mapping
from dataclasses import field
from statistics import fmean

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from esrjax.contest.record import DatasetMetrics, ProtocolTiming, Result
from esrjax.contest.rules import Rules
from esrjax.method import Method
from esrjax.schema import NonNegativeFloat, PositiveFloat

# Sources have more columns and keys than a row needs.
IGNORE_EXTRA = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class ImageSeries:
    """Per-image figures of one dataset, in its order; an empty tuple where they are unknown.

    Attributes:
        psnr: PSNR of each image, dB.
        runtime_ms: Runtime of each image, ms.
        image_names: Name of each image.
        cold_start: Whether the first runtime was the first of its process, start-up cost included.
    """

    psnr: tuple[float, ...] = ()
    runtime_ms: tuple[float, ...] = ()
    image_names: tuple[str, ...] = ()
    cold_start: bool = False


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class Row:
    """The figures of one method.

    Attributes:
        team: Name of the team.
        method: Name of the method.
        psnr_valid: PSNR on the challenge's validation split with its metric, dB.
        psnr_test: PSNR on the challenge's test split with its metric, dB.
        psnr_other: Any other dataset, with its number of images -> PSNR, dB.
        runtime_valid_ms: Mean runtime on the validation split, ms.
        runtime_test_ms: Mean runtime on the test split, ms.
        runtime_ms: The runtime that is scored, ms.
        baseline_ms: Runtime of the baseline where it was timed interleaved with this method, ms.
        protocol_ms: Dataset -> mean runtime over its images, timed as the organisers do, ms.
        params_m: Parameters, 10⁶.
        flops_g: FLOPs, 10⁹ multiply-adds.
        device: Device of the runtime; None if the source does not tell.
        conditions: Shape, dtype and precision of the timed pass; None if the source does not tell.
        spec: Metric specification of the PSNR; None if the source does not tell.
        series: Dataset -> per-image figures.
        provenance: Field -> where its figure comes from.
    """

    team: str
    method: str
    psnr_valid: PositiveFloat | None = None
    psnr_test: PositiveFloat | None = None
    psnr_other: Mapping[str, float] = field(default_factory=dict[str, float])
    runtime_valid_ms: PositiveFloat | None = None
    runtime_test_ms: PositiveFloat | None = None
    runtime_ms: PositiveFloat
    baseline_ms: PositiveFloat | None = None
    protocol_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    params_m: NonNegativeFloat
    flops_g: NonNegativeFloat
    device: str | None = None
    conditions: str | None = None
    spec: str | None = None
    series: Mapping[str, ImageSeries] = field(default_factory=dict[str, ImageSeries])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)


def published_rows(methods: Mapping[str, Method]) -> tuple[Row, ...]:
    """Return the rows of the published table, from the `reported` figures of methods."""
    return tuple(
        Row(
            team=method.team,
            method=name,
            psnr_valid=method.reported.get("psnr_valid"),
            psnr_test=method.reported.get("psnr_test"),
            runtime_ms=method.reported["runtime_ms"],
            params_m=method.reported["params"] / 1e6,
            flops_g=method.reported["macs"] / 1e9,
            provenance=dict.fromkeys(_FIGURES, f"reported by the plugin of {name}"),
        )
        for name, method in methods.items()
        if "runtime_ms" in method.reported
    )


_FIGURES = ("psnr_valid", "psnr_test", "runtime_ms", "params_m", "flops_g")


def row_of_result(
    result: Result, rules: Rules, origin: str = "measured", *, protocol_timing: bool = False
) -> Row:
    """Return the row of one result.

    Args:
        result: Content of a result file.
        rules: Rules of the challenge; PSNR counts as that of a split only if it was computed over
            all of its images, with the metric of the thresholds.
        origin: Where the result comes from, for the provenance; the name of its file.
        protocol_timing: Score the mean over images, each timed once, instead of the median runtime
            at one image size.
    """
    official = _official_psnr(result, rules)
    others = {
        f"{name} ({quality.num_images})": quality.psnr
        for name, quality in result.quality.items()
        if name not in official
    }
    means = {name: timing.mean_ms for name, timing in result.protocol_timing.items()}
    baseline_ms = result.baseline and result.baseline.runtime.median_ms
    return Row(
        team=result.team,
        method=result.method,
        psnr_valid=official.get("valid"),
        psnr_test=official.get("test"),
        psnr_other=others,
        runtime_ms=fmean(means.values()) if protocol_timing else result.runtime.median_ms,
        baseline_ms=None if protocol_timing else baseline_ms,
        protocol_ms=means,
        params_m=result.params / 1e6,
        flops_g=result.macs / 1e9,
        device=result.runtime.device,
        conditions=_protocol_conditions(means) if protocol_timing else result.runtime.conditions,
        spec=result.spec,
        series=_series(result),
        provenance=_provenance(result, origin, protocol_timing),
    )


def _official_psnr(result: Result, rules: Rules) -> dict[str, float]:
    """PSNR on the challenge's own splits: over all images, with the metric of the thresholds."""
    thresholds = rules.psnr_thresholds
    return {
        name: quality.psnr
        for name, quality in result.quality.items()
        if name in ("valid", "test")
        and (quality.num_images, result.spec) == (thresholds.num_images, thresholds.spec)
    }


def row_of_baseline_timing(result: Result) -> Row | None:
    """Return the row of the baseline that a result was timed with; its PSNR is unknown."""
    baseline = result.baseline
    return baseline and Row(
        team=baseline.team,
        method=baseline.method,
        runtime_ms=baseline.runtime.median_ms,
        params_m=baseline.params / 1e6,
        flops_g=baseline.macs / 1e9,
        device=baseline.runtime.device,
        conditions=baseline.runtime.conditions,
        spec=result.spec,
        provenance=dict.fromkeys(_FIGURES, f"measured interleaved with {result.method}, untrained"),
    )


def _protocol_conditions(means: Mapping[str, float]) -> str:
    return f"the organisers' protocol, each image of {', '.join(sorted(means))} once"


def _series(result: Result) -> dict[str, ImageSeries]:
    """Per-image figures of the datasets that have some: PSNR, runtime by protocol, or both."""
    series = {
        name: _image_series(quality, result.protocol_timing.get(name))
        for name, quality in result.quality.items()
    }
    return {name: figures for name, figures in series.items() if figures.image_names}


def _image_series(quality: DatasetMetrics, timing: ProtocolTiming | None) -> ImageSeries:
    psnr_by_name, ms_by_name = quality.psnr_per_image or {}, timing.ms_per_image if timing else {}
    names = tuple(psnr_by_name or ms_by_name)
    psnr, runtime_ms = _in_order(psnr_by_name, names), _in_order(ms_by_name, names)
    return ImageSeries(
        psnr=psnr, runtime_ms=runtime_ms, image_names=names, cold_start=bool(runtime_ms)
    )


def _in_order(values: Mapping[str, float], names: tuple[str, ...]) -> tuple[float, ...]:
    """The values in the order of `names`; none if one is missing."""
    return tuple(values[name] for name in names) if values.keys() >= set(names) else ()


def _provenance(result: Result, origin: str, protocol_timing: bool) -> dict[str, str]:
    """Field -> file, way of measuring, device, date, versions and hash of the weights."""
    weights = f"weights sha256 {(result.weights_sha256 or 'unknown')[:16]}"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    timing, source = result.runtime, f"{result.created}, {versions}, {weights}"
    cost = f"{origin}: counted from the network as built, {source}"
    quality = f"{origin}: mean over the images of a dataset by the metric {result.spec!r}, {source}"
    median = (
        f"{origin}: median of {timing.num_runs} runs, {timing.conditions}, on {timing.device}"
        f"{f', driver {timing.driver}' if timing.driver else ''}"
        f"{f', implementation {timing.implementation}' if timing.implementation else ''}, {source}"
    )
    protocol = f"{origin}: mean over the images of a dataset, each run once in order, {source}"
    return {
        **dict.fromkeys(("psnr_valid", "psnr_test", "psnr_other"), quality),
        "runtime_ms": protocol if protocol_timing else median,
        "baseline_ms": median,
        "protocol_ms": protocol,
        **dict.fromkeys(("params_m", "flops_g"), cost),
    }
