"""What can be learned about this project on a GPU in ten minutes: `python tools/gpu_run.py OUT`.

Each step is a process with a time limit. It writes OUT/STEP.json after every measurement, so that
nothing measured is lost, and OUT/STEP.log has what it printed. Steps whose results are complete are
not repeated. No network is needed. `tools/gpu_report.py OUT` writes the tables.

--rehearse runs the same code with tiny sizes on any machine, in four times the limits; its numbers
mean nothing.
--budget SECONDS ends the run; steps that would not fit are left out.
--steps A,B runs these steps only, again if need be.
--requirements prints what an offline machine needs beside JAX, flax, optax, orbax and PyTorch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Packages that the run needs, and that a machine made for JAX alone lacks.
REQUIREMENTS = (
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "grain",
    "array_record",
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of the run.

    Attributes:
        name: Name of its files in OUT.
        function: `MODULE:FUNCTION`, of a module beside this file.
        limit_s: Seconds after which it is killed.
        env: Environment variables.
    """

    name: str
    function: str
    limit_s: int
    env: Mapping[str, str] = field(default_factory=dict)


XLA_VARIANTS = {
    "default": "",
    "no-command-buffer": "--xla_gpu_enable_command_buffer=",
    "conv-fusion": "--xla_gpu_experimental_enable_conv_fusion=true",
    "triton-gemm": "--xla_gpu_triton_gemm_any=true",
}
DUMP_PTXAS = {"MOSAIC_GPU_DUMP_PTXAS": "1"}  # registers and spills, on standard error
STEPS = (
    Step(name="machine", function="gpu_steps:machine", limit_s=40),
    Step(name="kernels", function="gpu_steps:kernels", limit_s=120, env=DUMP_PTXAS),
    Step(name="kernel-times", function="gpu_steps:kernel_times", limit_s=110),
    Step(name="attention", function="gpu_steps:attention", limit_s=60),
    Step(name="networks", function="gpu_steps:networks", limit_s=60),
    Step(name="torch-networks", function="gpu_torch:networks", limit_s=100),
    Step(name="training", function="gpu_steps:training", limit_s=80),
    Step(name="torch-training", function="gpu_torch:training", limit_s=60),
    *(
        Step(
            name=f"networks-{variant}",
            function="gpu_steps:spanv2",
            limit_s=40,
            env={"XLA_FLAGS": flags},
        )
        for variant, flags in XLA_VARIANTS.items()
    ),
    Step(name="kernels-warpgroup", function="gpu_steps:kernels_warpgroup", limit_s=60),
    Step(name="profile", function="gpu_steps:profile", limit_s=60),
)


def main() -> None:
    """Run the steps that are still to be done and fit into the budget."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--budget", type=float, default=570)
    parser.add_argument("--steps", default="")
    parser.add_argument("--requirements", action="store_true")
    args = parser.parse_args()
    if args.requirements:
        print("\n".join(requirements()))
        return
    if args.out is None:
        parser.error("OUT is missing: the folder of the results")
    names = args.steps.split(",") if args.steps else [step.name for step in STEPS]
    if unknown := sorted({*names} - {step.name for step in STEPS}):
        parser.error(f"no step is called {unknown[0]!r}: {', '.join(s.name for s in STEPS)}")
    deadline = time.monotonic() + args.budget
    args.out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step.name in names and (args.steps or not is_complete(args.out, step)):
            run_step(step, args.out, deadline - time.monotonic(), rehearse=args.rehearse)


def requirements() -> list[str]:
    """Return the pinned packages of `REQUIREMENTS`, to be downloaded with `pip download -r`."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    return [pin for pin in pins if pin.partition("==")[0] in REQUIREMENTS]


def is_complete(out: Path, step: Step) -> bool:
    """Return whether a step has run to its end."""
    file = out / f"{step.name}.json"
    return file.is_file() and json.loads(file.read_text()).get("status") == "complete"


def run_step(step: Step, out: Path, seconds_left: float, *, rehearse: bool) -> None:
    """Run one step in a process, and write how it ended into its results."""
    if seconds_left < min(step.limit_s, 20):
        print(f"{step.name}: left out, {max(seconds_left, 0):.0f} s are left", flush=True)
        return
    file = out / f"{step.name}.json"
    file.unlink(missing_ok=True)
    module, function = step.function.split(":")
    code = f"import {module}, gpu_results; gpu_results.run({module}.{function})"
    env = {
        **os.environ,
        **step.env,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]),
        "GPU_RUN_FILE": str(file.absolute()),
        "GPU_RUN_REHEARSE": "1" if rehearse else "",
        **({"NPROC": "8"} if rehearse else {}),  # the kernels' interpreter needs threads of XLA
    }
    start = time.monotonic()
    with (out / f"{step.name}.log").open("wb") as log:
        command = [sys.executable, "-c", code]
        try:
            limit_s = min(step.limit_s * (4 if rehearse else 1), seconds_left)
            process = subprocess.run(
                command, cwd=ROOT, env=env, stdout=log, stderr=log, timeout=limit_s
            )
            status = "complete" if process.returncode == 0 else f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            status = f"killed after {limit_s:.0f} s"
    seconds = round(time.monotonic() - start, 1)
    results = json.loads(file.read_text()) if file.is_file() else {"records": []}
    results |= {"step": step.name, "status": status, "seconds": seconds, "rehearsal": rehearse}
    file.write_text(json.dumps(results, indent=1))
    print(f"{step.name}: {status}, {seconds} s, {len(results['records'])} records", flush=True)


if __name__ == "__main__":
    main()
