"""`upscale --engine auto`: the faster engine is chosen, by a fake clock and a cache of its own."""

import datetime
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax import cache
from esrjax.bridge import engine
from esrjax.bridge.onnx import runtime
from esrjax.cli import engines, race, verdicts
from esrjax.contest import turns
from esrjax.errors import UserError
from esrjax.evaluation.upscale import UpscaleJob
from esrjax.model import Model, open_method, open_model

TODAY = str(datetime.date.today())
DAY = "2026-11-27"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/esrjax/engines"


class FakeEngine:
    """An engine that takes `ms` of the fake clock for a tile, and returns a constant image."""

    def __init__(self, clock, ms, value=0.5):
        self.clock, self.ms, self.value, self.tile_sizes = clock, ms, value, []

    def upscaler(self, tile_size=None, **strategy):
        def run(lr):
            self.tile_sizes.append(lr.shape[:2])
            self.clock[0] += self.ms / 1e3
            return np.full((8, 8, 3), self.value, np.float32)

        return run


@pytest.fixture
def make_engines(crumbs, monkeypatch):
    """`make_engines(0.7)`: JAX, and an ONNX Runtime that takes 0.7 of its time; both are fakes."""
    clock, version = [0.0], verdicts.metadata.version
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(engines, "is_onnxruntime_installed", lambda: True)
    fake_version = lambda name: "1" if name in engines.LIBRARIES else version(name)  # noqa: E731
    monkeypatch.setattr(verdicts.metadata, "version", fake_version)

    def make(ratio, value=0.5):
        jax_engine, onnx_engine = FakeEngine(clock, 100.0), FakeEngine(clock, 100.0 * ratio, value)
        monkeypatch.setattr(Model, "upscaler", lambda self, size: jax_engine.upscaler(size))
        monkeypatch.setattr(engines, "export_on_cpu", lambda model: onnx_engine)
        return engines.Runner(net=open_method("crumb"), description="JAX on cpu"), onnx_engine

    return make


def make_jobs(tiles, tile_size=(256, 256)):
    """One image that is `tiles` tiles wide."""
    size = (tile_size[0], tile_size[1] * tiles)
    source, target = Path("a.png"), Path("b.png")
    return [UpscaleJob(source=source, target=target, lr_size=size, tile_size=tile_size)]


MANY, FEW = make_jobs(64), make_jobs(63)


# --- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.72, 0.94])
def test_faster_engine_is_chosen_and_reported(make_engines, ratio):
    runner, onnx_engine = make_engines(ratio)
    fastest = engines.fastest_runner(runner, MANY)
    assert fastest.net is onnx_engine and set(onnx_engine.tile_sizes) == {(256, 256)}
    assert fastest.description.startswith("ONNX Runtime on cpu")
    assert f"{ratio} " in fastest.description and "measured now" in fastest.description


@pytest.mark.parametrize("ratio", [0.96, 1.0, 2.5])
def test_jax_is_kept_unless_the_gain_is_clear(make_engines, ratio):
    runner, _ = make_engines(ratio)
    fastest = engines.fastest_runner(runner, MANY)
    assert fastest.net is runner.net
    assert fastest.description.startswith("JAX on cpu (ONNX Runtime ")
    assert f"{ratio:.2f} " in fastest.description and "measured now" in fastest.description


@pytest.mark.parametrize("value", [0.51, np.nan])
def test_engine_with_different_images_is_not_chosen(make_engines, value, cache_folder):
    runner, onnx_engine = make_engines(0.1, value)
    fastest = engines.fastest_runner(runner, MANY)
    assert fastest.net is runner.net and len(onnx_engine.tile_sizes) == 1
    assert not cache_folder.exists()
    assert fastest.description == "JAX on cpu (ONNX Runtime gives a different image)"


def test_few_tiles_are_not_measured(make_engines):
    runner, onnx_engine = make_engines(0.5)
    assert engines.fastest_runner(runner, FEW) is runner
    assert engines.fastest_runner(runner, []) is runner
    assert not onnx_engine.tile_sizes


def test_passes_multiply_the_tiles(make_engines):
    runner, onnx_engine = make_engines(0.5)
    assert engines.fastest_runner(runner, make_jobs(7), passes=8) is runner
    assert engines.fastest_runner(runner, make_jobs(8), passes=8).net is onnx_engine


def test_tiles_count_by_area_and_the_most_frequent_size_is_measured(make_engines):
    runner, onnx_engine = make_engines(0.5)
    assert engines.fastest_runner(runner, make_jobs(255, (128, 128))) is runner
    jobs = [*make_jobs(100, (128, 128)), *make_jobs(30, (256, 128)), *make_jobs(29)]
    engines.fastest_runner(runner, jobs)
    assert set(onnx_engine.tile_sizes) == {(256, 256)}


# --- cases that stay with JAX ------------------------------------------------------------------


@pytest.mark.parametrize("error", [UserError("no", rule="some", remedy="none"), KeyError("no")])
def test_network_that_cannot_be_exported_stays_with_jax(
    make_engines, monkeypatch, cache_folder, error
):
    def fail(model):
        raise error

    runner, _ = make_engines(0.5)
    monkeypatch.setattr(engines, "export_on_cpu", fail)
    fastest = engines.fastest_runner(runner, MANY)
    assert fastest.net is runner.net and not cache_folder.exists()
    assert fastest.description.startswith("JAX on cpu (ONNX Runtime ")
    assert type(error).__name__ in fastest.description


def test_ensembles_stay_with_jax(make_engines):
    _, onnx_engine = make_engines(0.5)
    runner = engines.Runner(net=open_model("crumbs"), description="JAX on cpu")
    assert engines.fastest_runner(runner, MANY) is runner and not onnx_engine.tile_sizes


def test_other_devices_stay_with_jax(make_engines, monkeypatch):
    runner, onnx_engine = make_engines(0.5)
    monkeypatch.setattr(engines.jax, "default_backend", lambda: "gpu")
    assert engines.fastest_runner(runner, MANY) is runner and not onnx_engine.tile_sizes


def test_onnx_runtime_on_another_device_is_not_measured(make_engines, monkeypatch):
    export_on_cpu = engines.export_on_cpu
    runner, onnx_engine = make_engines(0.5)
    monkeypatch.setattr(engines, "export_on_cpu", export_on_cpu)
    monkeypatch.setattr(runtime, "device", lambda: "cuda")
    monkeypatch.setattr(engine, "from_model", lambda model: onnx_engine)
    fastest = engines.fastest_runner(runner, MANY)
    assert fastest.net is runner.net and not onnx_engine.tile_sizes
    assert fastest.description == "JAX on cpu (ONNX Runtime has another device)"


@pytest.mark.parametrize("library", engines.LIBRARIES)
def test_missing_extra_keeps_jax_and_imports_nothing(crumbs, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    monkeypatch.setattr(runtime, "import_library", lambda *_: pytest.fail("it was imported"))
    runner = engines.Runner(net=open_method("crumb"), description="JAX on cpu")
    assert engines.fastest_runner(runner, MANY) is runner


# --- stored timings ----------------------------------------------------------------------------


def store(runner, timing, tile_size=(256, 256)):
    """Write `timing` to the cache file of the runner's network."""
    key = verdicts.cache_key(runner.net, tile_size)
    verdicts.save_timing(key, verdicts.EngineTiming(ratio=1.0, day=TODAY))
    (path,) = cache.cache_dir("engines").iterdir()
    path.write_text(timing if isinstance(timing, str) else json.dumps({"timing": timing}))


@pytest.mark.parametrize("jobs", [MANY, FEW])
def test_stored_timing_is_used_and_reported_with_its_date(make_engines, jobs):
    runner, onnx_engine = make_engines(0.5)
    store(runner, {"ratio": 0.8, "day": DAY})
    fastest = engines.fastest_runner(runner, jobs)
    assert fastest.net is onnx_engine and not onnx_engine.tile_sizes
    assert "0.80 " in fastest.description and f"measured on {DAY}" in fastest.description


def test_stored_timing_is_not_used_where_an_export_costs_more_than_it_saves(make_engines):
    runner, onnx_engine = make_engines(0.5)
    store(runner, {"ratio": 0.8, "day": DAY})
    assert engines.fastest_runner(runner, make_jobs(15)) is runner
    assert engines.fastest_runner(runner, make_jobs(16)).net is onnx_engine
    assert engines.fastest_runner(runner, make_jobs(2), passes=8).net is onnx_engine


def test_stored_timing_in_favour_of_jax_exports_nothing(make_engines, monkeypatch):
    runner, _ = make_engines(0.5)
    store(runner, {"ratio": 1.31, "day": DAY})
    monkeypatch.setattr(engines, "export_on_cpu", lambda model: pytest.fail("it was exported"))
    fastest = engines.fastest_runner(runner, FEW)
    assert fastest.net is runner.net
    assert fastest.description.startswith("JAX on cpu (ONNX Runtime ")
    assert "1.31 " in fastest.description and f"measured on {DAY}" in fastest.description


def test_timing_is_stored(make_engines, cache_folder):
    runner, onnx_engine = make_engines(0.5)
    engines.fastest_runner(runner, MANY)
    (file,) = cache_folder.iterdir()
    assert json.loads(file.read_text())["timing"] == {"ratio": pytest.approx(0.5), "day": TODAY}
    num_runs = len(onnx_engine.tile_sizes)
    assert f"measured on {TODAY}" in engines.fastest_runner(runner, MANY).description
    assert len(onnx_engine.tile_sizes) == num_runs


@pytest.mark.parametrize(
    "timing",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '{"timing": 1}',
            '{"timing": {"ratio": NaN, "day": "2026-11-27"}}',
        ),
        *({}, {"ratio": 0.5}, {"ratio": -1, "day": DAY}, {"ratio": "a", "day": DAY}),
        *({"ratio": 0.5, "day": "today"}, {"ratio": None, "day": 3}),
    ],
)
def test_malformed_cache_file_is_ignored_and_replaced(make_engines, timing):
    runner, onnx_engine = make_engines(0.5)
    store(runner, timing)
    assert engines.fastest_runner(runner, FEW) is runner
    assert engines.fastest_runner(runner, MANY).description.endswith("measured now)")
    assert engines.fastest_runner(runner, FEW).net is onnx_engine


def test_unwritable_cache_is_ignored(make_engines, cache_folder):
    cache_folder.parent.mkdir(parents=True)
    cache_folder.write_text("a file, not a folder")
    runner, onnx_engine = make_engines(0.5)
    for _ in range(2):
        fastest = engines.fastest_runner(runner, MANY)
        assert fastest.net is onnx_engine and fastest.description.endswith("measured now)")


def test_interrupted_write_leaves_no_file(make_engines, cache_folder, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    runner, _ = make_engines(0.5)
    monkeypatch.setattr(os, "replace", fail)
    engines.fastest_runner(runner, MANY)
    assert list(cache_folder.iterdir()) == []


def test_cache_key_depends_on_network_tile_machine_and_versions(make_engines):
    runner, _ = make_engines(0.5)
    key = verdicts.cache_key(runner.net, (64, 64))
    assert key == verdicts.cache_key(open_method("crumb"), (64, 64))
    others = [
        verdicts.cache_key(runner.net, (64, 65)),
        verdicts.cache_key(open_method("loaf"), (64, 64)),
        key | {"machine": key["machine"] | {"cores": "1 of 64"}},
        key | {"versions": key["versions"] | {"onnxruntime": "2"}},
    ]
    assert len({verdicts._path(other) for other in [key, *others]}) == 5


# --- real engines ------------------------------------------------------------------------------


def test_measured_image_fills_the_tile_and_the_value_range():
    lr = race.noise_image((24, 40))
    assert lr.shape == (24, 40, 3) and lr.dtype == np.uint8 and (lr.min(), lr.max()) == (0, 255)


def write_noise(path, h, w):
    noise = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_engine_can_be_set_and_small_images_use_jax(esrjax, crumbs, tmp_path):
    lr = write_noise(tmp_path / "lr.png", 12, 16)
    for options in ((), ("--engine", "jax"), ("--engine", "auto")):
        sr = tmp_path / "sr.png"
        result = esrjax("upscale", lr, "-o", sr, "--method", "crumb", *options)
        assert result.out == f"1 image written to {sr} (JAX on cpu)\n"


@pytest.mark.parametrize(
    ("options", "passes"),
    [((), 1), (("--self-ensemble",), 8), (("--self-ensemble", "--windows", "12,16"), 16)],
)
def test_self_ensemble_and_windows_count_as_passes(
    esrjax, crumbs, tmp_path, monkeypatch, options, passes
):
    calls = []
    monkeypatch.setattr(
        engines, "fastest_runner", lambda runner, *args: calls.append(args) or runner
    )
    lr = write_noise(tmp_path / "lr.png", 24, 16)
    esrjax("upscale", lr, "-o", tmp_path / "sr.png", "--method", "crumb", *options)
    (((job,), num_passes),) = calls
    assert num_passes == passes and job.lr_size == (24, 16)


@pytest.mark.export
def test_upscale_measures_stores_and_reuses_the_timing(
    esrjax, crumbs, tmp_path, monkeypatch, cache_folder
):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    monkeypatch.setattr(engines, "MIN_PIXELS_TO_MEASURE", 1)
    monkeypatch.setattr(engines, "MIN_PIXELS", 1)
    lr, outputs = write_noise(tmp_path / "lr.png", 40, 50), {}
    for name, options in {"auto": (), "again": (), "jax": ("--engine", "jax")}.items():
        output = tmp_path / f"{name}.png"
        result = esrjax("upscale", lr, "-o", output, "--method", "crumb", "--tile", 32, *options)
        assert result.code == 0 and result.err == ""
        measured = result.out.partition("measured ")[2].rstrip(")\n")
        outputs[name] = np.asarray(Image.open(output), int), measured
    assert [measured for _, measured in outputs.values()] == ["now", f"on {TODAY}", ""]
    assert np.abs(outputs["auto"][0] - outputs["jax"][0]).max() <= 1
    assert np.array_equal(outputs["auto"][0], outputs["again"][0])
    (file,) = cache_folder.iterdir()
    assert json.loads(file.read_text())["key"]["tile_size"] == [32, 32]
