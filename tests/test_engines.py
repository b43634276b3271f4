"""`upscale` takes the faster engine, by a clock that we turn and verdicts in a cache of our own."""

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
from esrjax.model import Model, open_method, open_model
from esrjax.pictures.jobs import Job

TODAY = str(datetime.date.today())
DAY = "2026-11-27"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/esrjax/engines"


class Fake:
    """An engine whose tile takes `ms` of the turned clock and is of one colour."""

    def __init__(self, now, ms, colour=0.5):
        self.now, self.ms, self.colour, self.seen = now, ms, colour, []

    def upscaler(self, tile=None, **strategy):
        def run(lr):
            self.seen.append(lr.shape[:2])
            self.now[0] += self.ms / 1e3
            return np.full((8, 8, 3), self.colour, np.float32)

        return run


@pytest.fixture
def rivals(crumbs, monkeypatch):
    """`rivals(0.7)`: JAX, and ONNX Runtime that takes 0.7 of its time; neither is really run."""
    now, versions = [0.0], verdicts.metadata.version
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(engines, "installed", lambda: True)
    absent = lambda name: "1" if name in engines.EXTRA else versions(name)  # noqa: E731
    monkeypatch.setattr(verdicts.metadata, "version", absent)

    def made(ratio, colour=0.5):
        ours, theirs = Fake(now, 100.0), Fake(now, 100.0 * ratio, colour)
        monkeypatch.setattr(Model, "upscaler", lambda self, tile: ours.upscaler(tile))
        monkeypatch.setattr(engines, "exported", lambda model: theirs)
        return engines.Runner(net=open_method("crumb"), said="JAX on cpu"), theirs

    return made


def work(tiles, tile=(256, 256)):
    """A picture of so many tiles beside one another."""
    size = (tile[0], tile[1] * tiles)
    return [Job(source=Path("a.png"), target=Path("b.png"), size=size, canvas=tile)]


MANY, FEW = work(64), work(63)


# --- the choice --------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.72, 0.94])
def test_the_faster_one_is_taken_and_says_by_how_much(rivals, ratio):
    runner, theirs = rivals(ratio)
    won = engines.fastest(runner, MANY)
    assert won.net is theirs and set(theirs.seen) == {(256, 256)}
    assert won.said == f"ONNX Runtime on cpu ({ratio} of the time of JAX, measured now)"


@pytest.mark.parametrize("ratio", [0.96, 1.0, 2.5])
def test_jax_wins_ties(rivals, ratio):
    runner, _ = rivals(ratio)
    won = engines.fastest(runner, MANY)
    assert won.net is runner.net
    assert won.said == f"JAX on cpu (ONNX Runtime takes {ratio:.2f} of its time, measured now)"


@pytest.mark.parametrize("colour", [0.51, np.nan])
def test_an_engine_that_makes_other_pictures_does_not_win(rivals, colour, home):
    runner, theirs = rivals(0.1, colour)
    stays = engines.fastest(runner, MANY)
    assert stays.net is runner.net and len(theirs.seen) == 1 and not home.exists()
    assert stays.said == "JAX on cpu (ONNX Runtime makes another picture)"


def test_few_tiles_race_nothing(rivals):
    runner, theirs = rivals(0.5)
    assert engines.fastest(runner, FEW) is runner
    assert engines.fastest(runner, []) is runner
    assert not theirs.seen


def test_eight_turns_are_eight_times_the_tiles(rivals):
    runner, theirs = rivals(0.5)
    assert engines.fastest(runner, work(7), passes=8) is runner
    assert engines.fastest(runner, work(8), passes=8).net is theirs


def test_tiles_count_by_their_area_and_most_of_the_work_is_raced(rivals):
    runner, theirs = rivals(0.5)
    assert engines.fastest(runner, work(255, (128, 128))) is runner
    engines.fastest(runner, [*work(100, (128, 128)), *work(30, (256, 128)), *work(29)])
    assert set(theirs.seen) == {(256, 256)}


# --- what stays with JAX -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [UserError, KeyError])
def test_a_network_that_cannot_be_exported_stays_with_jax(rivals, monkeypatch, home, kind):
    def fails(model):
        raise kind("no") if kind is KeyError else kind("no", rule="some", remedy="none")

    runner, _ = rivals(0.5)
    monkeypatch.setattr(engines, "exported", fails)
    stays = engines.fastest(runner, MANY)
    assert stays.net is runner.net and not home.exists()
    assert stays.said == f"JAX on cpu (ONNX Runtime cannot run it: {kind.__name__})"


def test_ensembles_stay_with_jax(rivals):
    _, theirs = rivals(0.5)
    several = engines.Runner(net=open_model("crumbs"), said="JAX on cpu")
    assert engines.fastest(several, MANY) is several and not theirs.seen


def test_another_device_stays_with_jax(rivals, monkeypatch):
    runner, theirs = rivals(0.5)
    monkeypatch.setattr(engines.jax, "default_backend", lambda: "gpu")
    assert engines.fastest(runner, MANY) is runner and not theirs.seen


def test_onnx_runtime_on_another_device_does_not_race(rivals, monkeypatch):
    real = engines.exported
    runner, theirs = rivals(0.5)
    monkeypatch.setattr(engines, "exported", real)
    monkeypatch.setattr(runtime, "device", lambda: "cuda")
    monkeypatch.setattr(engine, "exported", lambda model: theirs)
    stays = engines.fastest(runner, MANY)
    assert stays.net is runner.net and not theirs.seen
    assert stays.said == "JAX on cpu (ONNX Runtime has another device)"


@pytest.mark.parametrize("library", engines.EXTRA)
def test_without_the_extra_jax_runs_and_nothing_is_imported(crumbs, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    monkeypatch.setattr(runtime, "require", lambda *_: pytest.fail("it was imported"))
    runner = engines.Runner(net=open_method("crumb"), said="JAX on cpu")
    assert engines.fastest(runner, MANY) is runner


# --- verdicts that were kept -------------------------------------------------------------------


def kept(runner, said, tile=(256, 256)):
    """Write `said` where the verdict about the runner's network is looked for."""
    hangs_on = verdicts.facts(runner.net, tile)
    verdicts.keep(hangs_on, verdicts.Verdict(ratio=1.0, day=TODAY))
    (path,) = cache.folder("engines").iterdir()
    path.write_text(said if isinstance(said, str) else json.dumps({"verdict": said}))


@pytest.mark.parametrize("jobs", [MANY, FEW])
def test_a_kept_verdict_is_used_and_named_with_its_date(rivals, jobs):
    runner, theirs = rivals(0.5)
    kept(runner, {"ratio": 0.8, "day": DAY})
    won = engines.fastest(runner, jobs)
    assert won.net is theirs and not theirs.seen
    assert won.said == f"ONNX Runtime on cpu (0.80 of the time of JAX, measured on {DAY})"


def test_a_verdict_is_not_asked_for_where_an_export_costs_more_than_it_saves(rivals):
    runner, theirs = rivals(0.5)
    kept(runner, {"ratio": 0.8, "day": DAY})
    assert engines.fastest(runner, work(15)) is runner
    assert engines.fastest(runner, work(16)).net is theirs
    assert engines.fastest(runner, work(2), passes=8).net is theirs


def test_a_verdict_for_jax_exports_nothing(rivals, monkeypatch):
    runner, _ = rivals(0.5)
    kept(runner, {"ratio": 1.31, "day": DAY})
    monkeypatch.setattr(engines, "exported", lambda model: pytest.fail("it was exported"))
    won = engines.fastest(runner, FEW)
    assert won.net is runner.net
    assert won.said == f"JAX on cpu (ONNX Runtime takes 1.31 of its time, measured on {DAY})"


def test_what_was_measured_is_kept(rivals, home):
    runner, theirs = rivals(0.5)
    engines.fastest(runner, MANY)
    (file,) = home.iterdir()
    assert json.loads(file.read_text())["verdict"] == {"ratio": pytest.approx(0.5), "day": TODAY}
    raced = len(theirs.seen)
    assert f"measured on {TODAY}" in engines.fastest(runner, MANY).said
    assert len(theirs.seen) == raced


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            '{"verdict": 1}',
            '{"verdict": {"ratio": NaN, "day": "2026-11-27"}}',
        ),
        *({}, {"ratio": 0.5}, {"ratio": -1, "day": DAY}, {"ratio": "a", "day": DAY}),
        *({"ratio": 0.5, "day": "today"}, {"ratio": None, "day": 3}),
    ],
)
def test_a_file_that_holds_no_verdict_is_ignored_and_replaced(rivals, said):
    runner, theirs = rivals(0.5)
    kept(runner, said)
    assert engines.fastest(runner, FEW) is runner
    assert engines.fastest(runner, MANY).said.endswith("measured now)")
    assert engines.fastest(runner, FEW).net is theirs


def test_a_cache_that_cannot_be_written_to_is_ignored(rivals, home):
    home.parent.mkdir(parents=True)
    home.write_text("in the way")
    runner, theirs = rivals(0.5)
    for _ in range(2):
        won = engines.fastest(runner, MANY)
        assert won.net is theirs and won.said.endswith("measured now)")


def test_a_half_written_verdict_is_left_nowhere(rivals, home, monkeypatch):
    def full(*_):
        raise OSError("no room")

    runner, _ = rivals(0.5)
    monkeypatch.setattr(os, "replace", full)
    engines.fastest(runner, MANY)
    assert list(home.iterdir()) == []


def test_a_verdict_hangs_on_network_tile_machine_and_versions(rivals, monkeypatch):
    runner, _ = rivals(0.5)
    facts = verdicts.facts(runner.net, (64, 64))
    assert facts == verdicts.facts(open_method("crumb"), (64, 64))
    others = [
        verdicts.facts(runner.net, (64, 65)),
        verdicts.facts(open_method("loaf"), (64, 64)),
        facts | {"machine": facts["machine"] | {"cores": "1 of 64"}},
        facts | {"versions": facts["versions"] | {"onnxruntime": "2"}},
    ]
    assert len({verdicts._path(each) for each in [facts, *others]}) == 5


# --- for real ----------------------------------------------------------------------------------


def test_the_picture_that_is_raced_fills_the_tile_and_the_levels():
    lr = race.picture((24, 40))
    assert lr.shape == (24, 40, 3) and lr.dtype == np.uint8 and (lr.min(), lr.max()) == (0, 255)


def draw(path, h, w):
    noise = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def test_engines_can_be_forced_and_few_pixels_are_jaxs(esrjax, crumbs, tmp_path):
    lr = draw(tmp_path / "lr.png", 12, 16)
    for words in ((), ("--engine", "jax"), ("--engine", "auto")):
        said = esrjax("upscale", lr, "-o", tmp_path / "sr.png", "--method", "crumb", *words)
        assert said.out == f"1 picture in {tmp_path}/sr.png, by JAX on cpu\n"


@pytest.mark.parametrize(
    ("words", "passes"),
    [((), 1), (("--self-ensemble",), 8), (("--self-ensemble", "--windows", "12,16"), 16)],
)
def test_turns_and_windows_run_a_picture_more_often(
    esrjax, crumbs, tmp_path, monkeypatch, words, passes
):
    asked = []
    monkeypatch.setattr(engines, "fastest", lambda runner, *said: asked.append(said) or runner)
    lr = draw(tmp_path / "lr.png", 24, 16)
    esrjax("upscale", lr, "-o", tmp_path / "sr.png", "--method", "crumb", *words)
    (((job,), said),) = asked
    assert said == passes and job.size == (24, 16)


@pytest.mark.export
def test_a_race_from_the_command_to_the_picture(esrjax, crumbs, tmp_path, monkeypatch, home):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    monkeypatch.setattr(engines, "REPAID", 1)
    monkeypatch.setattr(engines, "WORTH", 1)
    lr, made = draw(tmp_path / "lr.png", 40, 50), {}
    for name, words in {"auto": (), "again": (), "forced": ("--engine", "jax")}.items():
        output = tmp_path / f"{name}.png"
        said = esrjax("upscale", lr, "-o", output, "--method", "crumb", "--tile", 32, *words)
        assert said.code == 0 and said.err == ""
        made[name] = np.asarray(Image.open(output), int), said.out.partition("measured ")[2]
    assert [when for _, when in made.values()] == ["now)\n", f"on {TODAY})\n", ""]
    assert np.abs(made["auto"][0] - made["forced"][0]).max() <= 1
    assert np.array_equal(made["auto"][0], made["again"][0])
    (file,) = home.iterdir()
    assert json.loads(file.read_text())["hangs on"]["tile"] == [32, 32]
