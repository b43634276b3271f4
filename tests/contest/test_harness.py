"""The organisers' protocol: each picture once, in order, compiled outside the clock."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import load
from esrjax.contest import harness, rules
from esrjax.model import PictureTooSmall
from esrjax.pictures.files import write
from esrjax.pictures.sets import pairs

RULES = rules.load("ntire2026")
SIDES = {"a": (32, 32), "b": (40, 32), "c": (32, 32)}


@pytest.fixture
def photos(tmp_path):
    for name, (h, w) in SIDES.items():
        noise = np.random.default_rng(ord(name)).integers(0, 256, (h, w, 3), np.uint8)
        write(tmp_path / f"Photos/{name}.png", noise)
    return pairs(tmp_path / "Photos")


@pytest.fixture
def model(crumbs):
    return load("crumb")


def noting(monkeypatch, slow: float = 0.0):
    """Every size that is traced, which takes `slow` seconds, and every size that is run."""
    traced, ran = [], []

    def forward(net):
        def call(lr):
            time.sleep(slow)
            traced.append(lr.shape[1:3])
            jax.debug.callback(lambda shape=lr.shape: ran.append(shape[1:3]))
            return lr * 2

        return call

    monkeypatch.setattr(harness, "forward", forward)
    return traced, ran


def test_each_picture_runs_once_in_order_and_each_size_is_compiled_once(model, photos, monkeypatch):
    traced, ran = noting(monkeypatch)
    run = harness.run(model, photos, RULES)
    jax.effects_barrier()
    assert traced == [(8, 8), (10, 8)]
    assert ran == [(8, 8), (10, 8), (8, 8)]
    assert (list(run.each), run.shapes, run.warm_up) == (["a", "b", "c"], 2, 0)


def test_a_team_warms_up_as_its_code_did(model, photos, monkeypatch):
    traced, ran = noting(monkeypatch)
    team = replace(model, method=replace(model.method, team="DISP"))
    run = harness.run(team, photos, RULES)
    jax.effects_barrier()
    assert run.warm_up == 20 and ran == [(256, 256)] * 20 + [(8, 8), (10, 8), (8, 8)]
    assert len(traced) == 3 and run.shapes == 2


def test_compilation_is_outside_the_clock(model, photos, monkeypatch):
    noting(monkeypatch, slow=0.3)
    run = harness.run(model, photos, RULES)
    assert run.compile_s > 0.6
    assert max(run.each.values()) < 300
    assert run.first_ms == run.each["a"]
    assert run.mean_ms == pytest.approx(sum(run.each.values()) / 3)


def test_the_first_picture_stays_in_the_mean(model, photos, monkeypatch):
    calls = iter([100.0, 1.0, 1.0])
    monkeypatch.setattr(harness.clock, "run_ms", lambda program, lr: next(calls))
    run = harness.run(model, photos, RULES)
    assert (run.first_ms, run.mean_ms) == (100.0, 34.0)


def test_pictures_reach_the_network_as_the_method_wants_them(model, photos, monkeypatch):
    seen = []
    monkeypatch.setattr(harness.clock, "run_ms", lambda program, lr: seen.append(lr) or 1.0)
    bright = replace(model, method=replace(model.method, data_range=255.0))
    harness.run(bright, photos, RULES)
    assert [lr.shape for lr in seen] == [(1, 8, 8, 3), (1, 10, 8, 3), (1, 8, 8, 3)]
    for lr, pair in zip(seen, photos, strict=True):
        assert lr.dtype == jnp.float32
        np.testing.assert_array_equal(lr[0], pair.load()[0])


def test_a_picture_that_is_too_small_is_refused_before_anything_runs(model, photos, monkeypatch):
    traced, _ = noting(monkeypatch)
    large = replace(model, method=replace(model.method, min_side=9))
    with pytest.raises(PictureTooSmall, match="crumb accepts pictures of at least 9"):
        harness.run(large, photos, RULES)
    assert traced == []
