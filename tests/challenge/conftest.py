"""Fixtures with made-up data: a timing, a result, and image comparisons of a report."""

import numpy as np
import pytest

from esrjax.bench.record import Timing
from esrjax.challenge.record import DatasetMetrics, Result
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
