"""Damages of a run's folder, after which the run goes on or is refused with nothing lost.

The run of `crash_points` is stopped between its stages' ends: three checkpoints, the result of the
first stage, recipe, data and metrics. It must end with the weights of the undisturbed run; or the
command refuses in words, and every file is as the damage has left it.
"""

import atexit
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from attack.case import Case
from attack.crash_points import (
    RECIPE,
    StubTrainer,
    expected_weights,
    final_weights,
    run_training,
    stubs,
)
from esrjax.training import recipe_loader
from esrjax.training.checkpoint import Checkpointer, CheckpointInfo, RunDir

# Files of the newest checkpoint, and of the folder, as glob patterns.
CHECKPOINT_FILES = (
    "checkpoint.json",
    "_METADATA",
    "_CHECKPOINT_METADATA",
    "_sharding",
    "manifest.ocdbt",
    "commit_success.txt",
    "d/*",
    "ocdbt.process_0/manifest.ocdbt",
    "ocdbt.process_0/d/*",
    "array_metadatas/*",
)
RUN_FILES = ("recipe.json", "data.json", "metrics.jsonl", "stages/*")
NEWEST = 6


# --- damages of a file ---------------------------------------------------------------------------


def _flip(path: Path, fraction: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(fraction * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


def _replace_by_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


FILE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without its last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "all NUL": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "first byte flipped": lambda path: _flip(path, 0.0),
    "byte in the middle flipped": lambda path: _flip(path, 0.5),
    "last byte flipped": lambda path: _flip(path, 1.0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\xff\xfe[1]\n"),
    "a folder": _replace_by_folder,
    "foreign JSON": lambda path: path.write_text('{"a": [1, null]}'),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "a dangling link": lambda path: _replace_by_link(path, "nothing"),
    "a link to itself": lambda path: _replace_by_link(path, path.name),
    "unreadable": lambda path: path.chmod(0),
}


# --- damages of the folder -----------------------------------------------------------------------


def _save(run: Path, step: int, change: Callable[[jax.Array], jax.Array], stage: str = "") -> None:
    """Save a checkpoint that is whole, but whose state is not that of the run."""
    recipe = recipe_loader.parse(RECIPE)
    with stubs():
        trainer = StubTrainer(recipe, recipe.runs[1], RunDir(run, recipe).load)
    state = jax.tree.map(change, trainer.state)
    info = CheckpointInfo(recipe=recipe.sha256, stage=stage or "second")
    Checkpointer(run).save(step, state, info)


def _is_float(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _break_all(run: Path) -> None:
    for path in run.glob("checkpoints/*/d/*"):
        path.write_bytes(b"")


def _replace_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("x")


def _make(path: Path) -> None:
    path.mkdir(parents=True)


def _copy(run: Path, source: int, target: int) -> None:
    shutil.rmtree(run / f"checkpoints/{target}", ignore_errors=True)
    shutil.copytree(run / f"checkpoints/{source}", run / f"checkpoints/{target}")


def _move_away(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.symlink_to("elsewhere")


RUN_DAMAGES: dict[str, Callable[[Path], object]] = {
    "newest checkpoint gone": lambda run: shutil.rmtree(run / f"checkpoints/{NEWEST}"),
    "all checkpoints gone": lambda run: shutil.rmtree(run / "checkpoints"),
    "all checkpoints broken": _break_all,
    "checkpoints is a file": lambda run: _replace_folder(run / "checkpoints"),
    "stages is a file": lambda run: _replace_folder(run / "stages"),
    "stages gone": lambda run: shutil.rmtree(run / "stages"),
    "empty folder 99999": lambda run: _make(run / "checkpoints/99999"),
    "empty folder 8": lambda run: _make(run / "checkpoints/8"),
    "file 8": lambda run: (run / "checkpoints/8").write_text("x"),
    "link 8 to 6": lambda run: (run / "checkpoints/8").symlink_to("6"),
    "folder 007": lambda run: _make(run / "checkpoints/007"),
    "folder -1": lambda run: _make(run / "checkpoints/-1"),
    "folder of many digits": lambda run: _make(run / "checkpoints" / ("9" * 200)),
    "folder of other digits": lambda run: _make(run / "checkpoints/\u0663"),
    "folder with a line break": lambda run: _make(run / "checkpoints/8\n"),
    "name that is no text": lambda run: os.mkdir(os.fsencode(run) + b"/checkpoints/\xff"),
    "leftover of Orbax": lambda run: _make(run / "checkpoints/.8.partial.orbax-checkpoint-tmp/d"),
    "leftover file": lambda run: (run / "stages/.00-first.safetensors.aa.partial").write_text("x"),
    "checkpoint of the stage before": lambda run: _copy(run, 4, NEWEST),
    "checkpoint under a later step": lambda run: _copy(run, NEWEST, 8),
    "checkpoint of another stage": lambda run: _save(run, 7, jnp.array, "third"),
    "NaN": lambda run: _save(run, 7, lambda x: x * jnp.nan if _is_float(x) else x),
    "arrays of other shapes": lambda run: _save(run, 7, lambda x: x[:2] if x.ndim else x),
    "arrays of another type": lambda run: _save(run, 7, lambda x: x.astype(jnp.float16)),
    "result of a stage that is not done": lambda run: shutil.copy(
        run / "stages/00-first.safetensors", run / "stages/01-second.safetensors"
    ),
    "result and checkpoints of the first stage": lambda run: [
        (run / "stages/00-first.safetensors").write_bytes(b""),
        shutil.rmtree(run / "checkpoints/4"),
    ],
    "final weights are a folder": lambda run: _make(run / "deploy.safetensors/x"),
    "final weights are broken": lambda run: (run / "deploy.safetensors").write_bytes(b"x"),
    "lock of a dead process": lambda run: (run / "lock").write_text(
        json.dumps({"host": os.uname().nodename, "pid": 2**22 + 1, "start_time": "x 1"})
    ),
    "lock of another host": lambda run: (run / "lock").write_text('{"host": "other", "pid": 1}'),
    "damaged lock": lambda run: (run / "lock").write_text("[" * 100_000),
    "empty lock": lambda run: (run / "lock").write_text(""),
    "lock is a folder": lambda run: _make(run / "lock"),
    "lock is a link": lambda run: (run / "lock").symlink_to("nowhere/lock"),
    "TensorBoard's folder is a file": lambda run: (run / "tensorboard").write_text("x"),
    "error.txt is a folder": lambda run: _replace_by_folder(run / "error.txt"),
    "stray files": lambda run: [(run / name).write_text("x") for name in ("a", ".b", "c.json")],
    "metrics of a megabyte": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff" * 10**6),
    "metrics without steps": lambda run: (run / "metrics.jsonl").write_text('[1]\n{}\nnull\n"a"\n'),
    "moved, with a link": _move_away,
    "not writable": lambda run: run.chmod(0o500),
}


# --- cases ---------------------------------------------------------------------------------------


@functools.cache
def _stopped_run() -> Path:
    """Return a folder with a run that has died after its third checkpoint."""
    folder = Path(tempfile.mkdtemp(prefix="esrjax-damage-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save = Checkpointer.save

    class Death(BaseException):
        pass

    def save_and_die(self: Checkpointer, step: int, *args: object) -> None:
        save(self, step, *args)  # pyright: ignore[reportArgumentType]
        if step == NEWEST:
            raise Death

    with mock.patch.object(Checkpointer, "save", save_and_die):
        run_training(folder)
    assert not (folder / "run/deploy.safetensors").exists()
    return folder


def _tree(folder: Path) -> dict[str, str]:
    """Return what identifies every file, folder and link below a folder."""
    tree: dict[str, str] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            is_file = os.path.isfile(path)
            tree[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_file else "-"
    return tree


def _attack(folder: Path, damage: Callable[[Path], object]) -> str | None:
    shutil.copytree(_stopped_run(), folder, dirs_exist_ok=True, symlinks=True)
    damage(folder / "run")
    before = _tree(folder / "run")
    outcome = run_training(folder)
    if outcome.code == 0:
        same = final_weights(folder) == expected_weights()
        if not same:
            return "other weights than the undisturbed run"
        return outcome.find_fault(refuses=False) or _find_metrics_fault(folder / "run")
    if fault := outcome.find_fault(refuses=True):
        return fault
    after = _tree(folder / "run")
    changes = [path for path in before if before[path] != after.get(path)]
    return f"refused, but changed {changes}" if changes else None


def _find_metrics_fault(run: Path) -> str | None:
    """Both reports are logged, unless the file is no file or has lost what it had."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else ['{"step": 8}']
    steps = [json.loads(line)["step"] for line in lines]
    return None if steps in ([4, 8], [8]) else f"reports of the steps {steps}"


def _damage_file(run: Path, pattern: str, damage: Callable[[Path], object]) -> None:
    damage(sorted(run.glob(pattern))[0])


def cases() -> list[Case]:
    """Return damages of every file of the newest checkpoint and of the folder, and others."""
    patterns = [*(f"checkpoints/{NEWEST}/{name}" for name in CHECKPOINT_FILES), *RUN_FILES]
    damages = {
        f"{pattern} {name}": functools.partial(_damage_file, pattern=pattern, damage=damage)
        for pattern in patterns
        for name, damage in FILE_DAMAGES.items()
    }
    return [
        Case(name=name, attack=functools.partial(_attack, damage=damage), is_fast=True)
        for name, damage in (damages | RUN_DAMAGES).items()
    ]
