"""Fixtures with made-up data: a timing, results, and image comparisons of a report."""

from dataclasses import replace

import numpy as np
import pytest

from esrjax.bench import Timing
from esrjax.challenge.record import DatasetMetrics, ProtocolTiming, Result
from esrjax.challenge.report import content
from esrjax.data import datasets
from esrjax.data.image_io import write_image
from esrjax.evaluation import metrics


@pytest.fixture
def timing() -> Timing:
    return Timing(
        median_ms=5.0,
        low_ms=4.9,
        high_ms=5.2,
        num_runs=40,
        compile_s=1.5,
        first_ms=30.0,
        executable_mib=12.5,
        shape=(1, 256, 256, 3),
        dtype="float32",
        precision="highest",
        device="Some GPU",
    )


@pytest.fixture
def result(timing: Timing) -> Result:
    return Result(
        method="span",
        team="EfficientSR Organizers",
        spec="ntire",
        quality={"Set5": DatasetMetrics(psnr=30.1, ssim=0.86, num_images=5)},
        params=150_688,
        macs=9_833_807_872,
        activations=1,
        convs=22,
        runtime=timing,
        versions={"jax": "0.10.2"},
        created="2026-08-01T12:00:00+00:00",
    )


@pytest.fixture
def both_splits(result: Result) -> Result:
    """A result with quality and protocol timing of both splits, two images each."""
    splits = {
        "valid": ({"a": 27.0, "b": 26.5}, {"a": 30.0, "b": 10.0}),
        "test": ({"c": 28.0, "d": 27.25}, {"c": 9.0, "d": 11.0}),
    }
    timing = {
        "warmup_passes": 0,
        "num_shapes": 1,
        "compile_s": 1.0,
        "device": "Some GPU",
        "peak_mib": 812.5,
    }
    return replace(
        result,
        method="net",
        team="Ours",
        quality={
            split: DatasetMetrics(psnr=sum(psnr.values()) / 2, num_images=2, psnr_per_image=psnr)
            for split, (psnr, _) in splits.items()
        },
        protocol_timing={
            split: ProtocolTiming(ms_per_image=times, **timing)
            for split, (_, times) in splits.items()
        },
    )


@pytest.fixture(scope="session")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> list[content.ImageComparison]:
    """Two images, from a method without error and from one that is 16 gray levels too dark."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (96, 128, 3)), ("b", (160, 160, 3))):
        hr = rng.integers(16, 256, shape, np.uint8)
        write_image(folder / f"set/HR/{name}.png", hr)
        write_image(folder / f"perfect/{name}x4.png", hr)
        write_image(folder / f"dark/{name}x4x4.png", hr - np.uint8(16))
    pairs = datasets.list_folder_pairs(folder / "set")
    sources = content.folder_sources({n: folder / n for n in ("perfect", "dark")}, pairs)
    return [content.compare_image(pair, sources, metrics.NTIRE, 128) for pair in pairs]
