"""tools/gpu_run.py and tools/gpu_report.py, rehearsed on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_report  # noqa: E402
import gpu_run  # noqa: E402
from gpu_results import Results  # noqa: E402


def gpu_tool(name, *args):
    command = [sys.executable, ROOT / "tools" / name, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def records(out, step):
    return json.loads((out / f"{step}.json").read_text())["records"]


def test_rehearsal_and_its_report(tmp_path):
    process = gpu_tool("gpu_run.py", tmp_path, "--rehearse", "--steps", "machine")
    assert process.returncode == 0 and process.stdout.count(": complete,") == 1, process.stdout
    matmuls = [record for record in records(tmp_path, "machine") if record["name"] == "matmul"]
    assert len(matmuls) == 3 and all(record["tflop_per_s"] > 0 for record in matmuls)
    report = gpu_tool("gpu_report.py", tmp_path, "--write")
    assert "A rehearsal: these numbers mean nothing" in report.stdout
    assert "which are not written" in report.stderr and report.returncode == 1
    assert "machine" in report.stdout


@pytest.mark.slow
def test_every_step_runs_without_an_error(tmp_path):
    process = gpu_tool("gpu_run.py", tmp_path, "--rehearse", "--budget", "3000")
    assert process.stdout.count(": complete,") == len(gpu_run.STEPS), process.stdout
    gates = [record["gate"] for record in records(tmp_path, "networks-default")]
    assert gates == 2 * ["conv", "dot"]
    for step in gpu_run.STEPS:
        for record in records(tmp_path, step.name):
            # XLA's attention runs everywhere, cuDNN's on GPUs alone.
            assert "error" not in record or record.get("engine") == "cudnn", (step.name, record)


def test_step_that_exceeds_its_limit_keeps_its_records(tmp_path, monkeypatch):
    (tmp_path / "gpu_slow.py").write_text(
        "import time\ndef step(results):\n    results.add(x=1)\n    time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    step = gpu_run.Step(name="slow", function="gpu_slow:step", limit_s=3)
    gpu_run.run_step(step, tmp_path, 100, rehearse=False)
    results = json.loads((tmp_path / "slow.json").read_text())
    assert results["status"] == "killed after 3 s" and results["records"] == [{"x": 1}]
    assert not gpu_run.is_complete(tmp_path, step)
    assert "killed after 3 s" in gpu_report.report(gpu_report.read_steps(tmp_path), tmp_path)


def test_step_without_time_left_is_left_out(tmp_path, capsys):
    gpu_run.run_step(gpu_run.STEPS[0], tmp_path, 5, rehearse=True)
    assert "left out, 5 s are left" in capsys.readouterr().out and not os.listdir(tmp_path)


def test_error_of_a_measurement_is_a_record(tmp_path):
    results = Results(tmp_path / "a.json")
    results.attempt(lambda: 1 / 0, name="a")
    results.attempt(lambda: {"ms": 2.0}, name="b")
    (first, second) = json.loads((tmp_path / "a.json").read_text())["records"]
    assert first["error"] == "ZeroDivisionError: division by zero" and second["ms"] == 2.0


def test_registers_are_read_from_the_log_of_ptxas(tmp_path):
    log = tmp_path / "kernels.log"
    log.write_text(
        "== spab (1, 8, 8, 32) float32 Lane\n"
        "ptxas info    : 0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 168 registers, 128 bytes smem\n"
    )
    assert gpu_report.read_registers(log) == [["spab (1, 8, 8, 32) float32 Lane", "168", "8"]]


def test_speedup_is_the_mean_over_the_sizes_in_float32():
    times = {"kernel": (1.0, 2.0), "reference": (2.0, 16.0)}
    all_records = [
        {"name": "spab", "dims": [size], "dtype": dtype, "implementation": name, "ms": ms}
        for name, values in times.items()
        for size, ms in enumerate(values)
        for dtype in ("float32", "bfloat16")
    ]
    assert gpu_report.speedups(all_records) == {"spab": 4.0}


def test_requirements_are_pinned():
    names = [line.partition("==")[0] for line in gpu_run.requirements()]
    assert sorted(names) == sorted(gpu_run.REQUIREMENTS)


@pytest.mark.parametrize("args, fragment", [([], "OUT is missing"), (["x", "--steps", "a"], "'a'")])
def test_wrong_arguments_are_reported(args, fragment):
    process = gpu_tool("gpu_run.py", *args)
    assert process.returncode == 2 and fragment in process.stderr
