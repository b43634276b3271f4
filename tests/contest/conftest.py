"""One result, made up, that tests change as they need."""

import pytest

from esrjax.contest.record import Quality, Result, Timing


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
