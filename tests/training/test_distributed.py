"""Training in several real processes: equal weights, failures, stop and resume."""

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
from arrays import load_npz

from esrjax.errors import DistributedError
from esrjax.training.distributed import DataParallel

pytestmark = pytest.mark.platform_lowering

HERE = Path(__file__).parent
RUNNING: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _kill_processes():
    """Kill the processes of a failed test."""
    yield
    for process in RUNNING:
        if process.poll() is None:
            process.kill()
            process.communicate()
    RUNNING.clear()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start_python(*args: object, devices: int = 1, **env: object) -> subprocess.Popen[str]:
    """Start a Python process with `devices` devices and more environment variables."""
    path = os.pathsep.join([str(HERE.parent / "thirdparty"), os.environ.get("PYTHONPATH", "")])
    xla_flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    flags = {"XLA_FLAGS": xla_flags, "PYTHONPATH": path}  # the last of equal flags counts
    process = subprocess.Popen(
        [sys.executable, *map(str, args)],
        env=os.environ | flags | {name: str(value) for name, value in env.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    RUNNING.append(process)
    return process


def test_weights_do_not_depend_on_processes_and_devices(tmp_path):
    """Two processes of two devices each, under SLURM, one process of four, and one device."""
    script = HERE / "twenty.py"
    slurm = {"SLURM_JOB_ID": 1, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 2}
    slurm |= {"JAX_COORDINATOR_PORT": free_port()}
    runs = [start_python(script, tmp_path / "alone", devices=4)]
    for i in range(2):
        env = slurm | {"SLURM_PROCID": i, "SLURM_LOCALID": i}
        runs.append(start_python(script, tmp_path / "pair", devices=2, **env))
    for run in runs:
        _, stderr = run.communicate(timeout=200)
        assert run.returncode == 0, stderr
    single, *pair = (load_npz(tmp_path / f"{name}.npz") for name in ("alone0", "pair0", "pair1"))
    assert [int(result["devices"]) for result in (single, *pair)] == [4, 4, 4]
    results = [(single, "one"), (pair[0], "all"), (pair[1], "all")]
    for index in range(sum(name.startswith("all") for name in single)):
        for result, name in results:
            weights, expected = result[f"{name}{index}"], single[f"all{index}"]
            assert weights.dtype == np.float64
            np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-10)


# --- the command in two processes ----------------------------------------------------------------


def start_pair(folder: Path, *args: object) -> list[subprocess.Popen[str]]:
    """Start `esrjax train ... -o folder` as two processes."""
    options = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id"]
    command = ["-m", "esrjax", "train", *args, "-o", folder, *options]
    return [start_python(*command, process_id) for process_id in range(2)]


def wait_for_checkpoint(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    """Wait until one more checkpoint is complete."""
    path = folder / "checkpoints"
    before = set(os.listdir(path)) if path.exists() else set()
    while not path.exists() or not {n for n in os.listdir(path) if n.isdigit()} - before:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_processes_fail_stop_and_resume_together(tmp_path, recipe_dict, image_dir, monkeypatch):
    """One is killed: the other reports it. One gets SIGTERM: both save. Then they finish."""
    validation = {"dataset": str(image_dir), "every": 20}
    recipe_dict["stage"][0] |= {"steps": 50, "validation": validation}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    file, run = tmp_path / "recipe.json", tmp_path / "run"
    file.write_text(json.dumps(recipe_dict))
    for victim in (1, 0):
        both = start_pair(run, *(["--resume"] if run.exists() else [file]))
        wait_for_checkpoint(run, both)
        both[victim].kill()
        killed_at = time.perf_counter()
        _, stderr = both[1 - victim].communicate(timeout=60)
        assert time.perf_counter() - killed_at < 45 and both[1 - victim].returncode == 2
        assert "esrjax: " in stderr and "--resume" in stderr, stderr
        assert "process" in stderr.split("esrjax: ")[1], stderr
        both[victim].communicate()
    both = start_pair(run, "--resume")
    wait_for_checkpoint(run, both)
    both[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [143, 143], outputs
    assert "esrjax train --resume -o" in outputs[0][0], outputs
    assert "stopped" not in outputs[1][0]  # only the main process prints
    both = start_pair(run, "--resume")
    assert [process.communicate(timeout=400) and process.returncode for process in both] == [0, 0]
    single = start_python("-m", "esrjax", "train", file, "-o", tmp_path / "single")
    assert single.communicate(timeout=200) and single.returncode == 0
    metrics, expected = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "single")
    )
    assert [line["step"] for line in metrics] == [line["step"] for line in expected]
    # In single precision the weights diverge later; other patches would differ at once.
    assert metrics[0]["psnr"] == pytest.approx(expected[0]["psnr"], abs=1e-3)


# --- errors --------------------------------------------------------------------------------------

SUPERVISED = """
import os, signal, sys, time
from pathlib import Path
from esrjax.cli import supervisor
from esrjax.errors import run_and_report_errors

def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)

supervisor.GRACE_PERIOD_S = 1
targets = {
    "abort": os.abort,
    "ignore": ignore_sigterm,
    "fail": lambda: 1 / 0,
    "return": lambda: None,
}
folder = Path("runs/mine")
if supervisor.is_child():
    supervisor.run_child(targets[sys.argv[1]], folder)
else:
    sys.exit(run_and_report_errors(lambda: supervisor.supervise(folder)))
"""


def test_supervisor_reports_how_the_process_ended():
    expected = {
        "abort": (2, ["esrjax: Another process", "runs/mine", "remedy"]),
        "ignore": (2, ["esrjax: ", " 1 s", "SIGTERM", "runs/mine"]),
        "fail": (1, ["ZeroDivisionError"]),
        "return": (0, []),
    }
    runs = {case: start_python("-c", SUPERVISED, case) for case in expected}
    for case, run in runs.items():
        _, stderr = run.communicate(timeout=100)
        code, parts = expected[case]
        assert run.returncode == code and all(part in stderr for part in parts), stderr


def test_incomplete_or_invalid_process_options_are_reported(esrjax, tmp_path):
    args = ["train", "quick", "-o", tmp_path / "run"]
    result = esrjax(*args, "--num-processes", 2)
    assert result.code == 2 and "--coordinator and --process-id" in result.err
    args += ["--coordinator", "127.0.0.1:1", "--num-processes", 2, "--process-id", 2]
    result = esrjax(*args)
    assert result.code == 2 and "--process-id 2 of 2" in result.err
    assert "from 0 to 1" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch_size", "parallel", "problem"),
    [(3, "jit", "3 images .* 2 processes"), (4, "pmap", "pmap .* 2 processes")],
)
def test_uneven_batch_is_reported(monkeypatch, batch_size, parallel, problem):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(DistributedError, match=problem):
        DataParallel.for_batch(batch_size, parallel)
