"""Roofline: the workload is counted by hand, the machine's peaks are measured."""

import pytest

from esrjax import registry
from esrjax.bench import timing
from esrjax.bench.bench import PROBE_SIZES, MachinePeak, PeakProbe, workload
from esrjax.nn.reparam import deploy

ROUND_PEAK = MachinePeak(bytes_per_s=1e9, macs_per_s=2e9, samples_ms={})


def test_minimum_time_is_that_of_the_slower_resource():
    assert ROUND_PEAK.min_time_ms(macs=6_000_000, num_bytes=1_000_000) == (3.0, "compute")
    assert ROUND_PEAK.min_time_ms(macs=1_000_000, num_bytes=6_000_000) == (6.0, "memory")


def test_workload_of_one_3x3_filter(crumbs):
    method = registry.get_method("crumb")
    work = workload(method, deploy(method.build()), (8, 10), scale=4)
    pixels = 8 * 10 * 3
    assert work.macs == 9 * pixels
    weights = 3 * 9 + 3
    assert work.elements == pixels + 16 * pixels + weights + 2 * pixels


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fastest_copy_and_matmul_reach_the_measured_peaks(monkeypatch, precision):
    copy_bytes, matrix_size = 2**16, 64
    monkeypatch.setitem(PROBE_SIZES, "cpu", (copy_bytes, matrix_size))
    probe = PeakProbe(precision)
    probe.measure(0.0)
    probe.measure(0.0)
    peak = probe.peak()
    copies, matmuls = peak.samples_ms["memory"], peak.samples_ms["compute"]
    assert len(copies) == len(matmuls) == 2 * timing.MAX_RUNS
    assert peak.min_time_ms(matrix_size**3, 0) == (pytest.approx(min(matmuls)), "compute")
    assert peak.min_time_ms(0, 2 * copy_bytes) == (pytest.approx(min(copies)), "memory")
