"""Interrupted runs (stopped, killed, disk full) end with the same weights when resumed."""

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
import numpy as np
import pytest
from runs import WEIGHTS, hashes, logged_steps, stop_after, write_images, write_recipe

from esrjax.errors import CheckpointError, UnwritableFile
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import read_checkpoint
from esrjax.training import recipe_loader, train
from esrjax.training.checkpoint import Checkpointer
from esrjax.training.distributed import PreemptionHandler

# Runs in this process are compared bit by bit with those of commands.
pytestmark = pytest.mark.platform_lowering


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory):
    """The images of all tests in this file, so that they can share one uninterrupted run."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def recipe_dict(crumb_recipe_dict):
    return crumb_recipe_dict


@pytest.fixture
def recipe(recipe_dict):
    return recipe_loader.parse(recipe_dict)


@pytest.fixture
def full_run(recipe, image_dir):
    """An uninterrupted run of the recipe."""
    run = image_dir.parent / "full"
    if not run.exists():
        train.run(recipe, run)
    return run


def assert_same_run(run: Path, full_run: Path) -> None:
    """Two runs have the same logged steps and bit-identical weights."""
    assert logged_steps(run) == logged_steps(full_run)
    for name in WEIGHTS:
        result, expected = (read_checkpoint(folder / name).state_dict for folder in (run, full_run))
        for key, value in expected.items():
            np.testing.assert_array_equal(result[key], value, err_msg=f"{name}: {key}")
    assert hashes(run) == hashes(full_run)


# At the end of the first stage, and in the second, where SIGTERM stops it below.
@pytest.mark.parametrize("step", [12, pytest.param(17, marks=pytest.mark.slow)])
def test_stopped_run_resumes_to_the_same_weights(tmp_path, recipe, full_run, monkeypatch, step):
    assert Checkpointer(full_run).latest() == recipe.total_steps
    run = tmp_path / "run"
    stop_after(step, recipe, run, monkeypatch)
    assert not (run / "deploy.safetensors").exists()
    train.run(recipe, run, resume=True)
    assert_same_run(run, full_run)


def test_run_moves_between_replicated_and_sharded_states(
    tmp_path, recipe_dict, image_dir, monkeypatch
):
    """Sharded until step 5, with a validation there, then replicated; equal up to rounding."""
    recipe_dict |= {"method": "spanv2", "hparams": {"channels": 4}}
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0] |= {
        "steps": 8,
        "validation": {"dataset": str(image_dir), "every": 5},
        "select": "best",
    }
    recipe = recipe_loader.parse(recipe_dict)
    sharded = recipe_loader.parse(recipe_dict | {"parallel": "fsdp"})
    assert sharded.sha256 == recipe.sha256
    train.run(recipe, tmp_path / "replicated")
    stop_after(5, sharded, tmp_path / "both", monkeypatch)
    train.run(recipe, tmp_path / "both", resume=True)
    assert recipe_loader.load(tmp_path / "both/recipe.json").parallel == "jit"
    result, expected = (
        read_checkpoint(tmp_path / name / "train.safetensors").state_dict
        for name in ("both", "replicated")
    )
    for key, value in expected.items():
        np.testing.assert_allclose(result[key], value, rtol=0, atol=1e-5, err_msg=key)


def test_finished_stage_is_not_trained_again(tmp_path, recipe, full_run, monkeypatch):
    """Interrupted after the weights of a stage are written, and one form of the final weights."""
    for num_files, resume in ((1, False), (2, True)):  # stages/00; stages/01, train.safetensors
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoint_io, "write_safetensors", _interrupt_after(num_files))
            train.run(recipe, tmp_path / "run", resume=resume)
    assert (tmp_path / "run/train.safetensors").exists()
    assert not (tmp_path / "run/deploy.safetensors").exists()
    train.run(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", full_run)


def _interrupt_after(num_files: int):
    """Return a writer that raises after the given number of files."""
    write, count = checkpoint_io.write_safetensors, iter(range(1, num_files + 1))

    def write_one(*args):
        write(*args)
        if next(count) == num_files:
            raise KeyboardInterrupt

    return write_one


def test_resume_with_another_pipeline_and_save_interval(
    tmp_path, recipe_dict, full_run, monkeypatch
):
    """Fields that do not affect the weights may change."""
    stop_after(5, recipe_loader.parse(recipe_dict), tmp_path / "run", monkeypatch)
    for stage, fields in zip(
        recipe_dict["stage"], ({"crop_on": "device"}, {"cache_gib": 1.0}), strict=True
    ):
        stage["save_every"] = 7
        stage["data"] = stage["data"] | fields
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", full_run)
    assert recipe_loader.load(tmp_path / "run" / "recipe.json").stage[1].save_every == 7


def test_preemption_sync_count_grows_by_one(monkeypatch):
    """JAX stops at the largest count of any process plus one, which step numbers may skip."""
    counts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    reached = "jax.experimental.multihost_utils.reached_preemption_sync_point"
    monkeypatch.setattr(reached, lambda count: counts.append(count) or count == 3)
    with PreemptionHandler() as handler:
        assert [handler.should_stop() for _ in range(3)] == [False, False, True]
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("stop_step", [18, pytest.param(12, marks=pytest.mark.slow)])
def test_sigterm_saves_and_the_run_resumes(tmp_path, recipe, full_run, stop_step):
    """SIGTERM inside of a stage and at the end of one."""
    run, steps = tmp_path / "run", count(1)

    def should_stop():
        if next(steps) == stop_step:
            signal.raise_signal(signal.SIGTERM)
        return handler.should_stop()

    callbacks = {"on_report": lambda _: None, "should_stop": should_stop}
    with PreemptionHandler() as handler, pytest.raises(train.TrainingStopped) as error:
        train.run_stages(recipe, run, resume=False, **callbacks)
    assert error.value.step == Checkpointer(run).latest() == stop_step
    train.run(recipe, run, resume=True)
    assert_same_run(run, full_run)


def test_signal_before_the_first_step_stops_at_once():
    with PreemptionHandler(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_full_disk_is_reported_with_step_and_last_checkpoint(tmp_path, recipe, monkeypatch):
    save = Checkpointer.save

    def save_until_full(self, step, state, info):
        if step == 10:
            patch.setattr(self._orbax, "save", _disk_full)
        save(self, step, state, info)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError) as error:
        patch.setattr(Checkpointer, "save", save_until_full)
        train.run(recipe, tmp_path / "run")
    problem, remedy = error.value.problem, error.value.remedy
    assert "step 10" in problem and "No space left" in problem
    assert "step 5" in remedy and "--resume" in remedy
    train.run(recipe, tmp_path / "run", resume=True)


def test_full_disk_while_saving_the_result_of_a_stage(tmp_path, recipe, full_run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(UnwritableFile) as error:
        write = Path.write_bytes
        patch.setattr(
            Path,
            "write_bytes",
            lambda path, data: _disk_full() if path.parent.name == "stages" else write(path, data),
        )
        train.run(recipe, tmp_path / "run")
    assert "No space left" in error.value.problem and "--resume" in error.value.remedy
    assert "stages/00-first" in str(error.value)
    assert not list((tmp_path / "run" / "stages").iterdir())
    train.run(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", full_run)


def _disk_full(*args, **kwargs):
    raise OSError(28, "No space left on device")


# --- killed processes ----------------------------------------------------------------------------


def _kill_and_resume(tmp_path: Path, recipe_dict, rng: random.Random, signals: list[int]) -> None:
    """Interrupt a command at a random time by each signal, resume it, and check the result.

    The uninterrupted run and the last resume are of this process.
    """
    recipe_dict["stage"][0] |= {"steps": 15 + 15 * len(signals), "save_every": 2}
    full_run, run = tmp_path / "full", tmp_path / "run"
    train.run(recipe_loader.parse(recipe_dict), full_run)
    command = [sys.executable, "-m", "esrjax", "train"]
    args = [write_recipe(tmp_path, recipe_dict), "-o", run]
    for signum in signals:
        process = subprocess.Popen(
            [*command, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert _wait_for_checkpoint(run, process), process.communicate()[1]
        time.sleep(rng.choice([0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)]))
        sent_at = time.perf_counter()
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == (143 if signum == signal.SIGTERM else -signum), stderr
        assert signum == signal.SIGKILL or time.perf_counter() - sent_at < 30
        assert signum == signal.SIGKILL or _reports_how_to_resume(stdout, run)
        args = ["-o", run, "--resume"]
    train.run(recipe_loader.parse(recipe_dict), run, resume=True)
    assert_same_run(run, full_run)


def _reports_how_to_resume(stdout: str, run: Path) -> bool:
    """Return whether the run has finished, or reports its last step and how to resume."""
    if "safetensors" in stdout:
        return True
    latest = Checkpointer(run).latest()
    return f"after step {latest}" in stdout and f"esrjax train --resume -o {run}" in stdout


def _wait_for_checkpoint(run: Path, process: subprocess.Popen[str], complete: bool = False) -> bool:
    """Wait for a new checkpoint, also one that is being written unless `complete`."""
    path = run / "checkpoints"
    before = set(os.listdir(path)) if path.exists() else set()
    while process.poll() is None:
        new = set(os.listdir(path)) - before if path.exists() else set()
        if any(name.isdigit() or not complete for name in new):
            return True
        time.sleep(0.002)
    return False


def test_killed_run_is_bit_exact(tmp_path, recipe_dict):
    """SIGTERM is sent above, in this process."""
    _kill_and_resume(tmp_path, recipe_dict, random.Random(0), [signal.SIGKILL])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_run_killed_often_is_bit_exact(tmp_path, recipe_dict, seed):
    rng = random.Random(seed)
    signals = [signal.SIGKILL, signal.SIGTERM] * 2
    rng.shuffle(signals)
    _kill_and_resume(tmp_path, recipe_dict, rng, signals)


@pytest.mark.slow  # the tests above fill the disk in this process
def test_full_disk_ends_the_command_with_an_error_and_it_resumes(tmp_path, recipe_dict):
    """Simulated by a file size limit of 100 bytes."""
    recipe_dict["stage"][0] |= {"steps": 60, "save_every": 2}
    run = tmp_path / "run"
    command = [sys.executable, "-m", "esrjax", "train"]
    process = subprocess.Popen(
        [*command, write_recipe(tmp_path, recipe_dict), "-o", run],
        # JAX would leave truncated files in its cache, and this process would warn of them.
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert _wait_for_checkpoint(run, process, complete=True)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2 and "esrjax: " in stderr and "Traceback" not in stderr
    latest = Checkpointer(run).latest()
    assert latest and "--resume" in stderr and f"of step {latest};" in stderr
    train.run(recipe_loader.parse(recipe_dict), run, resume=True)
    assert Checkpointer(run).latest() == 68
