"""The figures of one method, as a ranking takes them."""

from collections.abc import Mapping
from dataclasses import field
from statistics import fmean

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from esrjax.contest.record import Harness, Quality, Result
from esrjax.contest.rules import Rules
from esrjax.method import Method
from esrjax.schema import NotNegative, Positive

READ = ConfigDict(extra="ignore", allow_inf_nan=False)  # sources say more than rows need


@dataclass(frozen=True, kw_only=True, config=READ)
class Series:
    """Figures of the pictures of a set, one by one in its order; each empty where unknown.

    cold: whether the first runtime began a run of the program.
    """

    psnr: tuple[float, ...] = ()
    runtime_ms: tuple[float, ...] = ()
    pictures: tuple[str, ...] = ()
    cold: bool = False


@dataclass(frozen=True, kw_only=True, config=READ)
class Row:
    """The figures of one method. PSNR in dB, runtime in ms, params in 10⁶, flops in 10⁹.

    psnr_valid, psnr_test: on the contest's own sets under its own metric, or None.
    psnr_elsewhere: any other set, with its number of pictures -> PSNR.
    runtime_ms: the one that is scored. baseline_ms: the baseline's, where it was timed in turn with
    this method. harness_ms: set -> mean over its pictures, timed as the organisers do.
    device, conditions, spec: where it was timed, how, and under which metric the PSNR was
    measured; None where the source does not say.
    series: set -> the figures of its pictures. provenance: field -> where the figure comes from.
    """

    team: str
    method: str
    psnr_valid: Positive | None = None
    psnr_test: Positive | None = None
    psnr_elsewhere: Mapping[str, float] = field(default_factory=dict[str, float])
    runtime_valid_ms: Positive | None = None
    runtime_test_ms: Positive | None = None
    runtime_ms: Positive
    baseline_ms: Positive | None = None
    harness_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    params_m: NotNegative
    flops_g: NotNegative
    device: str | None = None
    conditions: str | None = None
    spec: str | None = None
    series: Mapping[str, Series] = field(default_factory=dict[str, Series])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)


def published(methods: Mapping[str, Method]) -> tuple[Row, ...]:
    """The rows of the published table, from what the methods report of themselves."""
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


def measured(
    result: Result, rules: Rules, origin: str = "measured", *, harness: bool = False
) -> Row:
    """The row of one of our results; floors apply only to the contest's sets, whole.

    harness: score the mean over pictures, each timed once, instead of the median of one size.
    """
    official = _official(result, rules)
    elsewhere = {
        f"{name} ({quality.pictures})": quality.psnr
        for name, quality in result.quality.items()
        if name not in official
    }
    means = {name: run.mean_ms for name, run in result.harness.items()}
    median = result.baseline and result.baseline.runtime.median_ms
    return Row(
        team=result.team,
        method=result.method,
        psnr_valid=official.get("valid"),
        psnr_test=official.get("test"),
        psnr_elsewhere=elsewhere,
        runtime_ms=fmean(means.values()) if harness else result.runtime.median_ms,
        baseline_ms=None if harness else median,
        harness_ms=means,
        params_m=result.params / 1e6,
        flops_g=result.macs / 1e9,
        device=result.runtime.device,
        conditions=_over(means) if harness else result.runtime.conditions,
        spec=result.spec,
        series=_series(result),
        provenance=_provenance(result, origin, harness),
    )


def _official(result: Result, rules: Rules) -> dict[str, float]:
    """The PSNR on those of the contest's sets that floors speak of: whole, under its metric."""
    floors = rules.floors
    return {
        name: quality.psnr
        for name, quality in result.quality.items()
        if name in ("valid", "test")
        and (quality.pictures, result.spec) == (floors.pictures, floors.spec)
    }


def companion(result: Result) -> Row | None:
    """The row of the baseline that a result was timed in turn with; its PSNR is not known."""
    held = result.baseline
    return held and Row(
        team=held.team,
        method=held.method,
        runtime_ms=held.runtime.median_ms,
        params_m=held.params / 1e6,
        flops_g=held.macs / 1e9,
        device=held.runtime.device,
        conditions=held.runtime.conditions,
        spec=result.spec,
        provenance=dict.fromkeys(_FIGURES, f"measured in turn with {result.method}, untrained"),
    )


def _over(means: Mapping[str, float]) -> str:
    return f"as the organisers time, each picture of {', '.join(sorted(means))} once"


def _series(result: Result) -> dict[str, Series]:
    """Sets of which single pictures are known, by the result or by its run of the harness."""
    every = {
        name: _listed(quality, result.harness.get(name)) for name, quality in result.quality.items()
    }
    return {name: series for name, series in every.items() if series.pictures}


def _listed(quality: Quality, run: Harness | None) -> Series:
    held, times = quality.each or {}, run.each if run else {}
    pictures = tuple(held or times)
    psnr, runtime_ms = _along(held, pictures), _along(times, pictures)
    return Series(psnr=psnr, runtime_ms=runtime_ms, pictures=pictures, cold=bool(runtime_ms))


def _along(held: Mapping[str, float], pictures: tuple[str, ...]) -> tuple[float, ...]:
    """The figures in that order, or none where one is missing."""
    return tuple(held[name] for name in pictures) if held.keys() >= set(pictures) else ()


def _provenance(result: Result, origin: str, by_harness: bool) -> dict[str, str]:
    """Field -> file, way of measuring, place, time, versions, weights."""
    weights = f"weights sha256 {(result.weights_sha256 or 'unknown')[:16]}"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    time, made = result.runtime, f"{result.created}, {versions}, {weights}"
    counted = f"{origin}: counted from the network as built, {made}"
    scored = f"{origin}: mean over the pictures of a set by the metric {result.spec!r}, {made}"
    timed = (
        f"{origin}: median of {time.runs} runs, {time.conditions}, on {time.device}"
        f"{f', driver {time.driver}' if time.driver else ''}"
        f"{f', body {time.body}' if time.body else ''}, {made}"
    )
    harness = f"{origin}: mean over the pictures of a set, each run once in order, {made}"
    return {
        **dict.fromkeys(("psnr_valid", "psnr_test", "psnr_elsewhere"), scored),
        "runtime_ms": harness if by_harness else timed,
        "baseline_ms": timed,
        "harness_ms": harness,
        **dict.fromkeys(("params_m", "flops_g"), counted),
    }
