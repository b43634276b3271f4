"""Deaths, failing file operations and signals at any point of a training, which then goes on.

A network of three parameters is trained without JAX's compiler. Every operation on files below the
run folder is a crash point. A death leaves the folder as it is before the operation, so that one
undisturbed run yields the folders of all deaths. An error (full disk, broken disk) is raised in
place of the operation. Afterwards the run goes on and must end with the same weights.
"""

import atexit
import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attack.case import Case, Outcome, run_in_process
from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.nn.layers import param
from esrjax.training import run_data, train
from esrjax.training.checkpoint import has_steps
from esrjax.training.init_from import LoadedModel
from esrjax.training.stage_trainer import StageTrainer
from esrjax.training.train_state import TrainState

_STAGE = {
    "init_from": "scratch",
    "steps": 4,
    "data": {"datasets": ["none"], "hr_patch_sizes": [[16, 16]], "batch_size": 2},
    "loss": {"l1": 1.0},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "save_every": 2,
}
RECIPE = {
    "method": "spanv2",
    "seed": 1,
    "stage": [_STAGE | {"name": "first"}, _STAGE | {"name": "second", "init_from": "previous"}],
}
WEIGHTS = ("train.safetensors", "deploy.safetensors")
_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


# --- a training without a compiler ---------------------------------------------------------------


class _Gain(nnx.Module):
    """A gain for each color."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.gain = param(jnp.ones(3))


_METHOD = Method(network=_Gain, team="t", paper="p", license="MIT")


class StubTrainer(StageTrainer):
    """A stage whose steps depend on the step and the state alone."""

    step_s = 0.0  # seconds of a step

    def __init__(self, recipe: Any, run: Any, load_stage: Any):
        self.recipe, self.run, self.stage, self.num_steps = recipe, run, run.stage, run.stage.steps
        net = load_stage(recipe.runs[run.index - 1]).net if run.index else _Gain(rngs=nnx.Rngs(0))
        self.model = LoadedModel(method="gain", net=net, form="train", hparams={})
        self.start_step = sum(r.stage.steps for r in recipe.runs[: run.index])
        self.lr_schedule, self.validator = float, None
        weights = {"gain": net.gain[...]}
        self.state = TrainState(
            params={"network": weights, "adapters": ()},
            frozen={},
            ema=None,
            opt_state={"momentum": jnp.zeros(3)},
            rest={},
            best=None,
            step=jnp.zeros((), jnp.int32),
            first_nonfinite_step=jnp.full((), -1, jnp.int32),
        )

    def batches(self, start_step: int) -> Any:
        return ((step, step) for step in range(start_step, self.num_steps))

    def train_step(self, state: TrainState, lr: Any, hr: Any) -> Any:
        time.sleep(self.step_s)
        gain = np.asarray(state.params["network"]["gain"])
        momentum = np.float32(0.9) * np.asarray(state.opt_state["momentum"])
        momentum = momentum + np.float32(0.1) * np.sin(np.float32(self.start_step + lr) + gain)
        params = {"network": {"gain": jnp.asarray(gain - momentum)}, "adapters": ()}
        new = TrainState(
            **{**vars(state), "params": params, "opt_state": {"momentum": jnp.asarray(momentum)}}
        )
        return new, jnp.asarray(momentum.sum())

    def _network(self, state: TrainState, *, best: bool = False) -> nnx.Module:
        net = _Gain(rngs=nnx.Rngs(0))
        net.gain.set_value(state.params["network"]["gain"])
        return net


@contextmanager
def stubs() -> Generator[None]:
    """Replace the network, and what reads images, within the block."""
    with (
        mock.patch.object(train, "StageTrainer", StubTrainer),
        mock.patch.object(train, "check_recipe"),
        mock.patch.object(registry, "get_method", lambda _: _METHOD),
        mock.patch.object(run_data, "summarize_data", lambda _: {}),
        mock.patch.object(run_data, "dataset_scales", lambda _: {}),
    ):
        yield


def run_training(folder: Path, *options: object) -> Outcome:
    """Start a run in `folder / "run"`, or go on with it, by the command in this process."""
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    resume = ["--resume"] if has_steps(folder / "run") else []
    with stubs():
        return run_in_process(
            "train", folder / "recipe.json", "-o", folder / "run", *resume, *options, folder=folder
        )


def expected_weights() -> tuple[bytes, ...]:
    """Return the files of final weights of an undisturbed run."""
    return final_weights(_deaths()[0].with_name("undisturbed"))


def final_weights(folder: Path) -> tuple[bytes, ...]:
    """Return the files of final weights of the run in `folder / "run"`."""
    return tuple((folder / "run" / name).read_bytes() for name in WEIGHTS)


def find_end_fault(folder: Path) -> str | None:
    """Go on with the run, and return what is wrong with its end: code, weights, leftovers."""
    outcome = run_training(folder)
    if fault := outcome.find_fault(refuses=False):
        return fault
    if final_weights(folder) != expected_weights():
        return "other weights than the undisturbed run"
    leftovers = [p for p in (folder / "run").rglob("*") if "partial" in p.name or p.name == "lock"]
    return f"leftovers: {leftovers}" if leftovers else None


# --- crash points --------------------------------------------------------------------------------


class _Operations:
    """Calls a function before every operation on files in a folder."""

    def __init__(self) -> None:
        self.folder, self.callback = "", None
        sys.addaudithook(self._on_event)  # it stays for the life of the process

    @contextmanager
    def watched(self, folder: Path, callback: Callable[[], None]) -> Generator[None]:
        self.folder, self.callback = str(folder), callback
        fsync = os.fsync

        def watched_fsync(descriptor: int) -> None:
            self._on_event("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
            fsync(descriptor)

        try:
            with mock.patch.object(os, "fsync", watched_fsync):
                yield
        finally:
            self.callback = None

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        callback = self.callback
        if callback is None or event not in (*_EVENTS, "os.fsync"):
            return
        if not str(args[0]).startswith(self.folder):
            return
        if event == "open" and "r" in str(args[1]) and "+" not in str(args[1]):
            return
        self.callback = None  # what the callback does is no crash point
        try:
            callback()
        finally:
            self.callback = callback if self.folder else None


@functools.cache
def _operations() -> _Operations:
    return _Operations()


@functools.cache
def _deaths() -> tuple[Path, ...]:
    """Return the folders that deaths before each of the operations of a run leave behind."""
    store = Path(tempfile.mkdtemp(prefix="esrjax-deaths-"))
    atexit.register(shutil.rmtree, store, ignore_errors=True)
    folder, deaths = store / "undisturbed", list[Path]()
    folder.mkdir()

    def keep() -> None:
        deaths.append(store / str(len(deaths)))
        with suppress(shutil.Error):  # threads of Orbax write meanwhile
            shutil.copytree(folder, deaths[-1], symlinks=True)

    with _operations().watched(folder / "run", keep):
        outcome = run_training(folder)
    assert outcome.code == 0, outcome.err
    return tuple(deaths)


def _at(fraction: float) -> int:
    return int(fraction * len(_deaths()))


def _die(folder: Path, fraction: float) -> str | None:
    shutil.copytree(_deaths()[_at(fraction)], folder, dirs_exist_ok=True)
    return find_end_fault(folder)


def _fail(folder: Path, fraction: float, number: int, times: int) -> str | None:
    """Raise an `OSError` in place of some operations from the given one on."""
    count, first = -1, _at(fraction)

    def fail() -> None:
        nonlocal count
        count += 1
        if first <= count < first + times:
            raise OSError(number, os.strerror(number))

    with _operations().watched(folder / "run", fail):
        outcome = run_training(folder)
    fault = outcome.find_fault(refuses=outcome.code != 0)
    return fault or find_end_fault(folder)


def _fill_disk(folder: Path, fraction: float) -> str | None:
    """Let files grow to no more than 20 bytes from the given operation on."""
    count, first = -1, _at(fraction)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        nonlocal count
        count += 1
        if count == first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, old[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with _operations().watched(folder / "run", fill):
            outcome = run_training(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    fault = outcome.find_fault(refuses=outcome.code != 0)
    return fault or find_end_fault(folder)


# --- exceptions ----------------------------------------------------------------------------------


def _raise_in(folder: Path, name: str, error: BaseException) -> str | None:
    """Raise in the third call of a method of the trainer: the state of that step is saved."""
    method, count = getattr(StubTrainer, name), 0

    def fail(self: StubTrainer, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == (2 if name == "report" else 7):
            raise error
        return method(self, *args)

    with mock.patch.object(StubTrainer, name, fail):
        outcome = run_training(folder)
    if fault := outcome.find_fault(refuses=True):
        return fault
    done = 8 if name == "report" else 6
    if f"step {done}" not in outcome.err or not (folder / f"run/checkpoints/{done}").exists():
        return f"step {done} is not saved: {outcome.err}"
    fault = find_end_fault(folder)
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    return fault or (None if steps == [4, 8] else f"reports of the steps {steps}")


def _diverge(folder: Path) -> str | None:
    """A state that is not finite is never saved."""
    method = StubTrainer.train_step

    def step(self: StubTrainer, state: TrainState, lr: Any, hr: Any) -> Any:
        state, loss = method(self, state, lr, hr)
        if self.start_step + lr == 4:
            state = TrainState(**{**vars(state), "first_nonfinite_step": jnp.zeros((), jnp.int32)})
        return state, loss

    with mock.patch.object(StubTrainer, "train_step", step):
        outcome = run_training(folder)
    if (folder / "run/checkpoints/5").exists() or (folder / "run/checkpoints/6").exists():
        return "saved after it"
    return outcome.find_fault(refuses=True) or find_end_fault(folder)


def _break_log(folder: Path, name: str) -> str | None:
    """A log that cannot be written stops nothing."""
    (folder / "run" / name).mkdir(parents=True)
    outcome = run_training(folder, *(["--log", "tensorboard"] if name == "tensorboard" else []))
    if outcome.code or final_weights(folder) != expected_weights():
        return outcome.err
    return None if "metrics" in outcome.err else "no note"


# --- real processes ------------------------------------------------------------------------------


def main(folder: str, die_at: int, step_s: float) -> None:
    """Run the command in this process, and leave it without a word at a crash point."""
    from esrjax import cli

    count = -1

    def die() -> None:
        nonlocal count
        count += 1
        if count == die_at:
            os._exit(9)

    StubTrainer.step_s = step_s
    resume = ["--resume"] if has_steps(Path(folder) / "run") else []
    sys.argv = ["esrjax", "train", f"{folder}/recipe.json", "-o", f"{folder}/run", *resume]
    with stubs(), _operations().watched(Path(folder) / "run", die):
        cli.main()


def _start(folder: Path, die_at: int = -1, step_s: float = 0.0) -> subprocess.Popen[str]:
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    code = f"from attack.crash_points import main; main({str(folder)!r}, {die_at}, {step_s})"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _exit(folder: Path, fraction: float) -> str | None:
    process = _start(folder, die_at=_at(fraction))
    process.communicate(timeout=300)
    if process.returncode != 9:
        return f"exit code {process.returncode}, not at the crash point"
    return find_end_fault(folder)


def _signal(folder: Path, signum: int, *, twice: bool = False) -> str | None:
    """Send a signal within a step; `twice`: once more, which ends the process at once."""
    process = _start(folder, step_s=3.0 if twice else 0.5)
    deadline = time.monotonic() + 200
    while not (folder / "run" / "checkpoints" / "2").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    if twice:
        time.sleep(1)
        process.send_signal(signum)
    out, err = process.communicate(timeout=200)
    if process.returncode != 128 + signum or "Traceback" in err:
        return f"exit code {process.returncode}: {err[-300:]}"
    if ("resume" in out) == twice:
        return f"printed {out!r}"
    return find_end_fault(folder)


def _close_output(folder: Path) -> str | None:
    process = _start(folder, step_s=0.3)
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    if code := process.wait(timeout=300):
        return f"exit code {code}"
    same = final_weights(folder) == expected_weights()
    return None if same else "other weights than the undisturbed run"


def _start_twice(folder: Path) -> str | None:
    """A second training in the folder of one that lives is refused, and harms nothing."""
    process = _start(folder, step_s=1.0)
    while not (folder / "run" / "checkpoints" / "2").exists() and process.poll() is None:
        time.sleep(0.05)
    second = run_training(folder)
    _, err = process.communicate(timeout=300)
    if process.returncode:
        return f"first: exit code {process.returncode}: {err[-300:]}"
    if str(process.pid) not in second.err:
        return f"second: {second.err[-300:]}"
    return second.find_fault(refuses=True) or find_end_fault(folder)


def _start_after_interrupt_of_setup(folder: Path) -> str | None:
    """An error before the first step leaves no folder."""
    error = UserError("an image cannot be read", rule="images can be read", remedy="replace it")
    with mock.patch.object(StubTrainer, "check_validation", side_effect=error):
        outcome = run_training(folder)
    if (folder / "run").exists():
        return "a folder was left behind"
    return outcome.find_fault(refuses=True) or find_end_fault(folder)


def cases() -> list[Case]:
    """Return deaths and errors, evenly over a run, and real processes."""

    def case(
        name: str, attack: Callable[..., str | None], *args: Any, is_fast: bool = True
    ) -> Case:
        return Case(name=name, attack=lambda folder: attack(folder, *args), is_fast=is_fast)

    user_error = UserError("an image is damaged", rule="it is whole", remedy="replace it")
    exceptions = [
        case(f"{type(error).__name__} in {name}", _raise_in, name, error)
        for name in ("train_step", "report")
        for error in (
            ValueError("wrong"),
            user_error,
            MemoryError(),
            SystemExit(0),
            RecursionError(),
            OSError(errno.EIO, "Input/output error"),
            GeneratorExit(),
        )
    ]
    num, errors = 80, (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
    deaths = [case(f"death at {i}/{num}", _die, i / num) for i in range(num)]
    failures = [
        case(f"{errno.errorcode[number]} x{times} at {i}/12", _fail, i / 12, number, times)
        for i in range(12)
        for number, times in ((errors[i % 4], 1), (errno.ENOSPC, 10**6))
    ]
    full = [case(f"disk full from {i}/12", _fill_disk, i / 12) for i in range(12)]
    exits = [case(f"process exits at {i}/3", _exit, i / 3, is_fast=False) for i in range(3)]
    signals = [
        case(f"{number.name}", _signal, number, is_fast=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    ]
    second = functools.partial(_signal, twice=True)
    return [
        *exceptions,
        case("loss not finite", _diverge),
        case("metrics.jsonl is a folder", _break_log, "metrics.jsonl"),
        *deaths,
        *failures,
        *full,
        *exits,
        *signals,
        case("second SIGTERM", second, signal.SIGTERM, is_fast=False),
        case("closed output", _close_output, is_fast=False),
        case("two trainings", _start_twice, is_fast=False),
        case("error before the first step", _start_after_interrupt_of_setup),
    ]
