"""Two of anything at once: downloads, results, images, packages, datasets into one place.

Each ends whole, or one of them says why not; what lies there is what one of them wrote alone.
Trainings in one folder are attacked elsewhere.
"""

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from attack.case import Case, run_command
from attack.http_answers import CONTENT, LIMITS, SHA256, serve, slow
from esrjax import hub, io, registry
from esrjax.data import image_io
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.nn import checkpoint_io

THREADS, ROUNDS = 4, 8
VERSIONS = [np.full((64, 64, 3), level, np.uint8) for level in range(THREADS)]
METADATA = checkpoint_io.CheckpointMetadata(method="span", form="deploy")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- threads of this process that write one path, while another reads it -------------------------


def _write_tree(path: Path, version: int) -> None:
    with io.atomic_write(path) as partial:
        partial.mkdir()
        for name in "abc":
            (partial / name).write_bytes(bytes([version]) * 10_000)


WRITERS: Mapping[str, Callable[[Path, int], object]] = {  # name of the file -> writes a version
    "bytes.bin": lambda path, n: io.write_bytes(path, bytes([n]) * 100_000),
    "image.png": lambda path, n: image_io.write_image(path, VERSIONS[n]),
    "image.jpg": lambda path, n: image_io.write_image(path, VERSIONS[n]),
    "image.tif": lambda path, n: image_io.write_image(path, VERSIONS[n]),
    "net.safetensors": lambda path, n: checkpoint_io.write_safetensors(
        path, {"a": np.full(10_000, n, np.float32)}, METADATA
    ),
    "net.pth": lambda path, n: checkpoint_io.write_torch(
        path, {"a": np.full(10_000, n, np.float32)}
    ),
}


def _attack_writers(folder: Path, *, name: str) -> str | None:
    write, path = WRITERS[name], folder / "out" / name
    for version in range(THREADS):
        write(folder / str(version) / name, version)
    digests = {_digest(folder / str(version) / name) for version in range(THREADS)}
    torn, is_done = set[str](), threading.Event()

    def read() -> None:
        while not is_done.is_set():
            if path.exists():
                torn.update({_digest(path)} - digests)

    with ThreadPoolExecutor(THREADS + 1) as pool:
        reader = pool.submit(read)
        runs = [pool.submit(write, path, n) for _ in range(ROUNDS) for n in range(THREADS)]
        failures = [str(error) for run in runs if (error := run.exception())]
        is_done.set()
        reader.result()
    if failures or torn:
        return failures[0] if failures else "a reader saw half of a file"
    return None if os.listdir(path.parent) == [name] else f"left {os.listdir(path.parent)}"


def _attack_folder(folder: Path) -> str | None:
    """A new folder is written by several; one wins, and it is whole."""
    path = folder / "out" / "tree"
    with ThreadPoolExecutor(THREADS) as pool:
        runs = [pool.submit(_write_tree, path, n) for n in range(THREADS)]
        errors = [run.exception() for run in runs]
    if sum(error is None for error in errors) != 1:
        return f"{errors} instead of one that wins"
    if odd := [error for error in errors if error and not isinstance(error, UserError)]:
        return f"{odd[0]!r}"
    contents = {(path / name).read_bytes() for name in "abc"}
    return None if len(contents) == 1 and os.listdir(path.parent) == ["tree"] else "mixed"


def _attack_downloads(folder: Path, *, num: int, pause: float) -> str | None:
    """Several downloads of one file, begun a moment after each other."""
    target = folder / "net.pth"
    limits = hub.Limits(max_bytes=LIMITS.max_bytes, first_pause_s=0.01)
    with serve(slow(0.02)) as url, ThreadPoolExecutor(num) as pool:

        def download(index: int) -> bool:
            threading.Event().wait(index * pause)
            return hub.download_file(url, target, SHA256, limits=limits).read_bytes() == CONTENT

        are_whole = [*pool.map(download, range(num))]
    if not all(are_whole):
        return "another content"
    return None if os.listdir(folder) == ["net.pth"] else f"left {os.listdir(folder)}"


def _attack_registry(folder: Path) -> str | None:
    """Methods are loaded by several threads at once."""
    names = ("span", "spanv2", "pds", "zenosr")
    with ThreadPoolExecutor(THREADS) as pool:
        entries = [*pool.map(registry.get_entry, names * ROUNDS)]
    return None if all(isinstance(entry, Method) for entry in entries) else "no method"


# --- two commands at once ------------------------------------------------------------------------

_HR = "data pack data/Tiny --name tiny --crop-size 32 --step 32 -o packed"
COMMANDS: Mapping[str, tuple[str, ...]] = {  # what -> the two commands, or the one that runs twice
    "upscale of a folder": ("upscale lr --method spanv2 -o out",),
    "upscale of one image": ("upscale lr/0.png --method spanv2 -o out.png",),
    "upscale of two folders into one": (
        "upscale lr --method spanv2 -o out",
        "upscale lr --method spanv2 -o out --self-ensemble",
    ),
    "eval": ("eval spanv2 --data data/Tiny -o results",),
    "weights convert": ("weights convert spanv2 {shipped} -o out.pth",),
    "method new": ("method new my_net -o package",),
    "data pack": (_HR,),
    "recipes": ("recipes show quick",),
    "fuse": ("fuse lr lr -o fused",),
}


def _attack_commands(folder: Path, *, commands: tuple[str, ...]) -> str | None:
    noise = np.random.default_rng(0)
    for index in range(2):
        pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
        image_io.write_image(folder / f"lr/{index}.png", pixels)
        image_io.write_image(folder / f"data/Tiny/{index}.png", pixels.repeat(2, 0).repeat(2, 1))
    shipped = hub.shipped_path(registry.get_method("spanv2"))
    with ThreadPoolExecutor(2) as pool:
        pairs = (commands * 2)[:2]
        lines = [command.format(shipped=shipped).split() for command in pairs]
        outcomes = [*pool.map(lambda line: run_command(*line, folder=folder), lines)]
    if not any(outcome.code == 0 for outcome in outcomes):
        return f"none ends: {outcomes[0].err[-200:]}"
    faults = [outcome.find_fault(refuses=outcome.code != 0) for outcome in outcomes]
    partials = [str(path) for path in folder.rglob("*partial*")]
    return next(filter(None, faults), None) or (f"left {partials}" if partials else _broken(folder))


def _broken(folder: Path) -> str | None:
    """Return the error of an image or a checkpoint that cannot be read."""
    try:
        for path in folder.rglob("*.png"):
            image_io.read_image(path)
        for path in folder.rglob("*.pth"):
            checkpoint_io.read_checkpoint(path)
    except UserError as error:
        return error.problem
    return None


def cases() -> list[Case]:
    """Return the cases in this process, which are fast, and pairs of commands."""
    fast: dict[str, Callable[[Path], str | None]] = {
        f"writers of {name}": functools.partial(_attack_writers, name=name) for name in WRITERS
    }
    fast |= {"writers of a folder": _attack_folder, "loading of methods": _attack_registry}
    for num, pause in ((2, 0.0), (2, 0.05), (2, 0.15), (4, 0.0), (4, 0.05), (8, 0.02)):
        attack = functools.partial(_attack_downloads, num=num, pause=pause)
        fast[f"{num} downloads, {pause:g} s after each other"] = attack
    slow_cases = {
        what: functools.partial(_attack_commands, commands=commands)
        for what, commands in COMMANDS.items()
    }
    return [
        *(Case(name=name, attack=attack, is_fast=True) for name, attack in fast.items()),
        *(Case(name=f"two of {name}", attack=attack) for name, attack in slow_cases.items()),
    ]
