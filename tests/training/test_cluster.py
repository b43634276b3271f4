"""Several processes, real ones: the same weights, one end for all, and the way on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from esrjax.training.devices import Devices, UnevenBatch

HERE = Path(__file__).parent
RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _none_is_left():
    """A test that fails leaves no process behind."""
    yield
    for process in RUNNING:
        if process.poll() is None:
            process.kill()
            process.communicate()
    RUNNING.clear()


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(*command: object, devices: int = 1, **said: object) -> subprocess.Popen[str]:
    """A Python on so many devices. said: further variables of its environment."""
    path = os.pathsep.join([str(HERE.parent / "thirdparty"), os.environ.get("PYTHONPATH", "")])
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | flags | {name: str(value) for name, value in said.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    RUNNING.append(process)
    return process


def test_processes_and_devices_do_not_change_the_weights(tmp_path):
    """Two processes with two devices each, as SLURM starts them, one with four, and one device."""
    script = HERE / "twenty.py"
    slurm = {"SLURM_JOB_ID": 1, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 2}
    slurm |= {"JAX_COORDINATOR_PORT": port()}
    runs = [started(script, tmp_path / "alone", devices=4)]
    for i in range(2):
        place = slurm | {"SLURM_PROCID": i, "SLURM_LOCALID": i}
        runs.append(started(script, tmp_path / "pair", devices=2, **place))
    for run in runs:
        _, complaint = run.communicate(timeout=200)
        assert run.returncode == 0, complaint
    alone, *pair = (np.load(tmp_path / f"{name}.npz") for name in ("alone0", "pair0", "pair1"))
    assert [int(each["devices"]) for each in (alone, *pair)] == [4, 4, 4]
    ways = [(alone, "one"), (pair[0], "all"), (pair[1], "all")]
    for index in range(sum(name.startswith("all") for name in alone.files)):
        for held, name in ways:
            ours, theirs = held[f"{name}{index}"], alone[f"all{index}"]
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


# --- the command, twice --------------------------------------------------------------------------


def pair(folder: Path, *words: object) -> list[subprocess.Popen[str]]:
    """`esrjax train ... -o folder` as two processes."""
    place = ["--coordinator", f"127.0.0.1:{port()}", "--processes", 2, "--process"]
    command = ["-m", "esrjax", "train", *words, "-o", folder, *place]
    return [started(*command, process) for process in range(2)]


def after_the_next_checkpoint(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Wait until one more checkpoint is whole."""
    place = folder / "checkpoints"
    before = set(os.listdir(place)) if place.exists() else set()
    while not place.exists() or not {n for n in os.listdir(place) if n.isdigit()} - before:
        assert all(each.poll() is None for each in processes), processes[0].communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_one_end_for_all_and_they_go_on(tmp_path, said, pictures, monkeypatch):
    """A pair: one killed, the other ends with a word; one told to stop, both save; then the end."""
    said["stage"][0] |= {"steps": 50, "validate": {"set": str(pictures), "every": 20}}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    file, run = tmp_path / "recipe.json", tmp_path / "run"
    file.write_text(json.dumps(said))
    for victim in (1, 0):
        both = pair(run, *(["--resume"] if run.exists() else [file]))
        after_the_next_checkpoint(run, both)
        both[victim].kill()
        dead = time.perf_counter()
        _, complaint = both[1 - victim].communicate(timeout=60)
        assert time.perf_counter() - dead < 45 and both[1 - victim].returncode == 2
        assert "esrjax: " in complaint and "--resume" in complaint, complaint
        assert "process" in complaint.split("esrjax: ")[1], complaint
        both[victim].communicate()
    both = pair(run, "--resume")
    after_the_next_checkpoint(run, both)
    both[1].send_signal(signal.SIGTERM)
    told = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], told
    assert "go on with: esrjax train --resume -o" in told[0][0], told
    assert "stopped" not in told[1][0]  # the first speaks for all
    both = pair(run, "--resume")
    assert [each.communicate(timeout=400) and each.returncode for each in both] == [0, 0]
    whole = started("-m", "esrjax", "train", file, "-o", tmp_path / "whole")
    assert whole.communicate(timeout=200) and whole.returncode == 0
    ours, theirs = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (run, tmp_path / "whole")
    )
    assert [note["step"] for note in ours] == [note["step"] for note in theirs]
    # In single precision the two drift apart later; other patches would show at once.
    assert ours[0]["psnr"] == pytest.approx(theirs[0]["psnr"], abs=1e-3)


# --- what goes wrong -----------------------------------------------------------------------------

WATCHED = """
import os, signal, sys, time
from pathlib import Path
from esrjax.cli import told, watch

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)

watch.GRACE = 1
body = {"abort": os.abort, "deaf": deaf, "fail": lambda: 1 / 0, "end": lambda: None}[sys.argv[1]]
sys.exit(told(lambda: watch.watched(body, Path("runs/mine"))))
"""


def test_the_end_of_a_process_is_worded_by_the_one_that_waits_for_it():
    wanted = {
        "abort": (2, "esrjax: another process has died or cannot be reached\n  place:  runs/mine"),
        "deaf": (2, "esrjax: the running step was not over 1 s after the word to stop"),
        "fail": (1, "ZeroDivisionError"),
        "end": (0, ""),
    }
    runs = {how: started("-c", WATCHED, how) for how in wanted}
    for how, run in runs.items():
        _, complaint = run.communicate(timeout=100)
        code, words = wanted[how]
        assert run.returncode == code and words in complaint, complaint


def test_half_a_place_and_one_that_is_not_there(esrjax, tmp_path):
    words = ["train", "quick", "-o", tmp_path / "run"]
    said = esrjax(*words, "--processes", 2)
    assert said.code == 2 and "--coordinator and --process missing" in said.err
    said = esrjax(*words, "--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 2)
    assert said.code == 2 and "--process 2 of 2" in said.err and "from 0 to 1" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pictures", "parallel", "words"),
    [
        (3, "jit", "3 pictures cannot be shared by 2 processes"),
        (4, "pmap", "pmap does not go with 2 processes"),
    ],
)
def test_what_processes_cannot_share(monkeypatch, pictures, parallel, words):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UnevenBatch, match=words):
        Devices.dividing(pictures, parallel)
