"""One result, and pictures for a report, made up; tests change them as they need."""

import numpy as np
import pytest

from esrjax.contest.record import Quality, Result, Timing
from esrjax.contest.report import comparison
from esrjax.pictures import sets, specs
from esrjax.pictures.files import write


@pytest.fixture
def timing() -> Timing:
    return Timing(
        median_ms=5.0,
        low_ms=4.9,
        high_ms=5.2,
        runs=40,
        compile_s=1.5,
        first_ms=30.0,
        program_mib=12.5,
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
        quality={"Set5": Quality(psnr=30.1, ssim=0.86, pictures=5)},
        params=150_688,
        macs=9_833_807_872,
        activations=1,
        convs=22,
        runtime=timing,
        versions={"jax": "0.10.2"},
        created="2026-08-01T12:00:00+00:00",
    )


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[comparison.Comparison]:
    """Two pictures of a set, from a method that is perfect and one that is 16 levels too dark."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (96, 128, 3)), ("b", (160, 160, 3))):
        hr = rng.integers(16, 256, shape, np.uint8)
        write(folder / f"set/HR/{name}.png", hr)
        write(folder / f"perfect/{name}x4.png", hr)
        write(folder / f"dark/{name}x4x4.png", hr - np.uint8(16))
    pairs = sets.pairs(folder / "set")
    sources = comparison.stored({n: folder / n for n in ("perfect", "dark")}, pairs)
    return [comparison.compare(pair, sources, specs.NTIRE, 128) for pair in pairs]
