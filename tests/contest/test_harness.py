"""Protocol timing: each image once, in order, with compilation outside the timing."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import load
from esrjax.contest import harness, rules
from esrjax.data.datasets import list_folder_pairs
from esrjax.data.image_io import write_image
from esrjax.model import ImageTooSmall

RULES = rules.load_rules("ntire2026")
HR_SIZES = {"a": (32, 32), "b": (40, 32), "c": (32, 32)}


@pytest.fixture
def pairs(tmp_path):
    for name, (h, w) in HR_SIZES.items():
        noise = np.random.default_rng(ord(name)).integers(0, 256, (h, w, 3), np.uint8)
        write_image(tmp_path / f"Photos/{name}.png", noise)
    return list_folder_pairs(tmp_path / "Photos")


@pytest.fixture
def model(crumbs):
    return load("crumb")


def record_sizes(monkeypatch, trace_s: float = 0.0):
    """Lists that receive the LR size of every trace, which takes `trace_s`, and of every run."""
    traced, ran = [], []

    def forward_fn(net):
        def call(lr):
            time.sleep(trace_s)
            traced.append(lr.shape[1:3])
            jax.debug.callback(lambda shape=lr.shape: ran.append(shape[1:3]))
            return lr * 2

        return call

    monkeypatch.setattr(harness, "forward_fn", forward_fn)
    return traced, ran


def test_each_image_runs_once_in_order_and_each_size_compiles_once(model, pairs, monkeypatch):
    traced, ran = record_sizes(monkeypatch)
    timing = harness.time_by_protocol(model, pairs, RULES)
    jax.effects_barrier()
    assert traced == [(8, 8), (10, 8)]
    assert ran == [(8, 8), (10, 8), (8, 8)]
    assert list(timing.ms_per_image) == ["a", "b", "c"]
    assert (timing.num_shapes, timing.warmup_passes) == (2, 0)


def test_team_has_the_warmup_of_its_code(model, pairs, monkeypatch):
    traced, ran = record_sizes(monkeypatch)
    disp = replace(model, method=replace(model.method, team="DISP"))
    timing = harness.time_by_protocol(disp, pairs, RULES)
    jax.effects_barrier()
    assert timing.warmup_passes == 20
    assert ran == [(256, 256)] * 20 + [(8, 8), (10, 8), (8, 8)]
    assert len(traced) == 3 and timing.num_shapes == 2


def test_compilation_is_not_timed(model, pairs, monkeypatch):
    record_sizes(monkeypatch, trace_s=0.3)
    timing = harness.time_by_protocol(model, pairs, RULES)
    assert timing.compile_s > 0.6
    assert max(timing.ms_per_image.values()) < 300
    assert timing.first_ms == timing.ms_per_image["a"]
    assert timing.mean_ms == pytest.approx(sum(timing.ms_per_image.values()) / 3)


def test_first_image_counts_in_the_mean(model, pairs, monkeypatch):
    times = iter([100.0, 1.0, 1.0])
    monkeypatch.setattr(harness.clock, "time_forward_ms", lambda compiled, lr: next(times))
    timing = harness.time_by_protocol(model, pairs, RULES)
    assert (timing.first_ms, timing.mean_ms) == (100.0, 34.0)


def test_images_have_the_data_range_of_the_method(model, pairs, monkeypatch):
    inputs = []
    monkeypatch.setattr(
        harness.clock, "time_forward_ms", lambda compiled, lr: inputs.append(lr) or 1.0
    )
    range_255 = replace(model, method=replace(model.method, data_range=255.0))
    harness.time_by_protocol(range_255, pairs, RULES)
    assert [lr.shape for lr in inputs] == [(1, 8, 8, 3), (1, 10, 8, 3), (1, 8, 8, 3)]
    for lr, pair in zip(inputs, pairs, strict=True):
        assert lr.dtype == jnp.float32
        np.testing.assert_array_equal(lr[0], pair.load()[0])


def test_too_small_image_is_rejected_before_anything_runs(model, pairs, monkeypatch):
    traced, _ = record_sizes(monkeypatch)
    large = replace(model, method=replace(model.method, min_side=9))
    with pytest.raises(ImageTooSmall, match=r"crumb .*\b9\b"):
        harness.time_by_protocol(large, pairs, RULES)
    assert traced == []
