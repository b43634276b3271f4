"""A training that is stopped, killed or out of room ends as if it had not been."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import jax
import pytest
from runs import drawn, hashes, steps_noted, stop_after, written

from esrjax.network import archive
from esrjax.training import loop
from esrjax.training import recipe as recipes
from esrjax.training.checkpoint import CheckpointFailed, Checkpoints
from esrjax.training.interruption import Interruption


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same for all tests here, so that one run can be held against many."""
    return drawn(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """The same few programs, run after run, here and in the processes that are started."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, (str(tmp_path_factory.mktemp("programs")), 0), strict=True):
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield
    jax.config.update(names[0], None)
    jax.config.update(names[1], 1.0)


@pytest.fixture
def recipe(said):
    return recipes.parse(said)


@pytest.fixture
def whole(recipe, pictures):
    """The recipe's run, undisturbed."""
    run = pictures.parent / "whole"
    if not run.exists():
        loop.run(recipe, run)
    return run


def same(run: Path, whole: Path) -> bool:
    return hashes(run) == hashes(whole) and steps_noted(run) == steps_noted(whole)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, recipe, whole, monkeypatch):
    assert Checkpoints(whole).latest() == recipe.steps
    for at in (5, 12, 17):  # within the first stage, at the border, within the second
        run = tmp_path / f"stopped{at}"
        stop_after(at, recipe, run, monkeypatch)
        assert not (run / "deploy.safetensors").exists()
        loop.run(recipe, run, resume=True)
        assert same(run, whole)


def test_what_a_stage_has_left_is_not_made_again(tmp_path, recipe, whole, monkeypatch):
    """Stopped after the weights of a stage are written, or one form of those of the whole."""
    for files in range(1, 4):  # stages/00, stages/01, train.safetensors
        run = tmp_path / f"written{files}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(archive, "write_safetensors", _interrupting(files))
            loop.run(recipe, run)
        loop.run(recipe, run, resume=True)
        assert same(run, whole)


def _interrupting(after: int):
    """Write so many files, then fail."""
    write, count = archive.write_safetensors, iter(range(1, after + 1))

    def write_one(*args):
        write(*args)
        if next(count) == after:
            raise KeyboardInterrupt

    return write_one


def test_a_run_goes_on_with_other_feeds_and_saves(tmp_path, said, whole, monkeypatch):
    """What moves no weight may change from one start to the next."""
    stop_after(5, recipes.parse(said), tmp_path / "run", monkeypatch)
    for stage in said["stage"]:
        stage["save_every"] = 7
        stage["data"] = stage["data"] | {"feed": "device", "memory": 1.0}
    loop.run(recipes.parse(said), tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)
    assert recipes.load(tmp_path / "run" / "recipe.json").stage[1].save_every == 7


def test_of_several_processes_each_is_asked_by_a_count_that_grows_by_one(monkeypatch):
    """JAX stops at the largest count asked so far plus one, which steps may never be."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    reached = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(reached, lambda count: asked.append(count) or count == 3)
    with Interruption() as interruption:
        assert [interruption.asked() for _ in range(3)] == [False, False, True]
    assert asked == [1, 2, 3]


def test_told_to_stop_it_saves_and_goes_on(tmp_path, recipe, whole):
    """SIGTERM in either stage, also at the border; a second Ctrl-C does not wait."""
    for at in (3, 12, 18):
        run, steps = tmp_path / f"told{at}", count(1)

        def stop(at=at, steps=steps):
            if next(steps) == at:
                signal.raise_signal(signal.SIGTERM)
            return interruption.asked()

        with Interruption() as interruption, pytest.raises(loop.Stopped) as stopped:
            loop.carry_out(recipe, run, resume=False, tell=lambda _: None, stop=stop)
        assert stopped.value.step == Checkpoints(run).latest() == at
        loop.run(recipe, run, resume=True)
        assert same(run, whole)
    with Interruption(), pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)


def test_a_full_disk_stops_with_the_step_and_the_last_good_checkpoint(
    tmp_path, recipe, monkeypatch
):
    save = Checkpoints.save

    def save_until_full(self, step, state, facts):
        if step == 10:
            monkeypatch.setattr(self._manager, "save", _full)
        save(self, step, state, facts)

    monkeypatch.setattr(Checkpoints, "save", save_until_full)
    with pytest.raises(CheckpointFailed) as error:
        loop.run(recipe, tmp_path / "run")
    text = str(error.value)
    assert "the checkpoint of step 10 cannot be written" in text and "No space left" in text
    assert "the last whole checkpoint is of step 5" in text and "--resume" in text
    monkeypatch.undo()
    loop.run(recipe, tmp_path / "run", resume=True)


def test_a_full_disk_under_the_weights_of_a_stage(tmp_path, recipe, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(archive.UnwritableCheckpoint) as error:
        patch.setattr(Path, "write_bytes", _full)
        loop.run(recipe, tmp_path / "run")
    assert "No space left" in str(error.value) and "go on with --resume" in str(error.value)
    assert "stages/00-first" in str(error.value)
    assert not list((tmp_path / "run" / "stages").iterdir())
    loop.run(recipe, tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


def _full(*args, **kwargs):
    raise OSError(28, "No space left on device")


# --- real processes, killed --------------------------------------------------------------------


def _killed_and_resumed(tmp_path: Path, said, draw: random.Random, signals: list[int]) -> None:
    """End a training at a random moment, by one signal after the other; then let it end."""
    said["stage"][0] |= {"steps": 60, "save_every": 2}
    whole, run = tmp_path / "whole", tmp_path / "run"
    command = [sys.executable, "-m", "esrjax", "train"]
    if not whole.exists():
        subprocess.run([*command, written(tmp_path, said), "-o", whole], check=True)
    words = [written(tmp_path, said), "-o", run]
    for each in signals:
        process = subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert _wait_for_checkpoint(run, process), process.communicate()[1]
        time.sleep(draw.choice([0, draw.uniform(0, 0.05), draw.uniform(0, 0.5)]))
        told = time.perf_counter()
        process.send_signal(each)
        heard, complaint = process.communicate(timeout=120)
        assert process.returncode == (0 if each == signal.SIGTERM else -each), complaint
        assert each == signal.SIGKILL or time.perf_counter() - told < 30
        assert each == signal.SIGKILL or _says_how_to_go_on(heard, run)
        words = ["-o", run, "--resume"]
    subprocess.run([*command, *words], check=True)
    assert same(run, whole)


def _says_how_to_go_on(heard: str, run: Path) -> bool:
    """Where it was stopped before its end, after a step whose checkpoint is there."""
    if "safetensors" in heard:
        return True
    last = Checkpoints(run).latest()
    return f"stopped after step {last}; go on with: esrjax train --resume -o {run}" in heard


def _wait_for_checkpoint(run: Path, process: subprocess.Popen[str], whole: bool = False) -> bool:
    """Until a new entry appears among the checkpoints, half-written ones too where not `whole`."""
    place = run / "checkpoints"
    before = set(os.listdir(place)) if place.exists() else set()
    while process.poll() is None:
        new = set(os.listdir(place)) - before if place.exists() else set()
        if any(name.isdigit() or not whole for name in new):
            return True
        time.sleep(0.002)
    return False


def test_killed_and_stopped_it_ends_bit_identical(tmp_path, said):
    _killed_and_resumed(tmp_path, said, random.Random(0), [signal.SIGKILL, signal.SIGTERM])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_often_it_ends_bit_identical(tmp_path, said, seed):
    draw = random.Random(seed)
    signals = [signal.SIGKILL, signal.SIGTERM] * 2
    draw.shuffle(signals)
    _killed_and_resumed(tmp_path, said, draw, signals)


def test_a_disk_that_is_full_ends_it_with_words_and_it_goes_on(tmp_path, said):
    """Files may suddenly have no more than a hundred bytes."""
    said["stage"][0] |= {"steps": 60, "save_every": 2}
    run = tmp_path / "run"
    command = [sys.executable, "-m", "esrjax", "train"]
    process = subprocess.Popen(
        [*command, written(tmp_path, said), "-o", run], stderr=subprocess.PIPE, text=True
    )
    assert _wait_for_checkpoint(run, process, whole=True)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 2 and "esrjax: " in complaint and "Traceback" not in complaint
    last = Checkpoints(run).latest()
    assert last and "make room and use --resume: the last whole checkpoint is of step" in complaint
    assert f"of step {last}\n" in complaint
    loop.run(recipes.parse(said), run, resume=True)
    assert Checkpoints(run).latest() == 68
