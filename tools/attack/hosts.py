"""Hosts that lack what programs take for granted: a home, room, rights, a locale, descriptors."""

import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from attack.case import Case, Outcome, run_shell

METHOD = "spanv2"  # has shipped weights
RECIPE = """
method = "spanv2"
seed = 1
hparams = { channels = 4 }
[[stage]]
name = "tiny"
init_from = "scratch"
steps = 2
loss = { l1 = 1.0 }
optimizer = { name = "adam", learning_rate = 1e-3 }
save_every = 1
data = { datasets = ["images"], hr_patch_sizes = [[32, 32]], batch_size = 2 }
"""
# What a command does, and the file whose bytes it must write, if any.
COMMANDS: Mapping[str, tuple[str, str | None]] = {
    "upscale": (f"upscale lr.png --method {METHOD} -o out/sr.png", "out/sr.png"),
    "eval": (f"eval {METHOD} --data data/Tiny --json", None),
    "train": ("train recipe.toml -o out/run", "out/run/deploy.safetensors"),
    "list": ("method list --json", None),
}


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host: how a command is run there.

    Attributes:
        env: Variables that are set.
        unset: Variables that are not.
        before: A shell command before it, in the folder of the attack.
        wrapper: A command line before `esrjax`.
        after: Redirections after it.
        refuses: Commands that cannot work there, and must say so.
    """

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    unset: tuple[str, ...] = ()
    before: str = "true"
    wrapper: str = ""
    after: str = ""
    refuses: tuple[str, ...] = ()


_NO_HOME = ("HOME", "XDG_CACHE_HOME")
# A user whose id is in no password file, and who has no more rights than the files give.
_STRANGER = "unshare --user --map-user=54321 --map-group=54321"
_MOUNT = "unshare --mount sh -c"


def _small(folder: str, size: str = "64k") -> str:
    """Return a wrapper in which `folder` is a file system with little room."""
    return (
        f"{_MOUNT} 'mkdir -p {folder} && mount -t tmpfs -o size={size} none {folder} && \"$@\"' -"
    )


_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
HOSTS: Mapping[str, Host] = {
    "no home": Host(unset=_NO_HOME),
    "no home, unknown user": Host(unset=_NO_HOME, wrapper=_STRANGER),
    "empty HOME": Host(unset=_NO_HOME, env={"HOME": ""}),
    "HOME does not exist, unknown user": Host(
        unset=_NO_HOME, env={"HOME": "/nonexistent"}, wrapper=_STRANGER
    ),
    "read-only HOME": Host(
        unset=_NO_HOME,
        env={"HOME": "home"},
        before="mkdir home && chmod 555 home",
        wrapper=_STRANGER,
    ),
    "cache is read-only": Host(
        env={"XDG_CACHE_HOME": "cache"},
        before="mkdir -p cache/esrjax/programs && chmod -R 555 cache",
        wrapper=_STRANGER,
    ),
    "cache is a file": Host(env={"XDG_CACHE_HOME": "cache"}, before="touch cache"),
    "cache is a dangling link": Host(
        env={"XDG_CACHE_HOME": "cache"}, before="ln -s nowhere/deep cache"
    ),
    "cache is full": Host(env={"XDG_CACHE_HOME": "cache"}, wrapper=_small("cache")),
    "cache of another user": Host(
        env={"XDG_CACHE_HOME": "cache"},
        before="mkdir -p cache/esrjax/programs && chmod 777 cache/esrjax/programs "
        "&& chown -R 1234 cache",
    ),
    "no temporary folder": Host(env={"TMPDIR": "/nonexistent"}),
    "temporary folder is full": Host(env={"TMPDIR": "tmp"}, wrapper=_small("tmp", "4k")),
    "no home, no temporary folder": Host(
        unset=_NO_HOME, env={"TMPDIR": "/nonexistent"}, wrapper=_STRANGER
    ),
    "no /dev/shm": Host(wrapper=f"{_MOUNT} 'umount /dev/shm; \"$@\"' -"),
    "/dev/shm is full": Host(
        wrapper=f"{_MOUNT} 'mount -t tmpfs -o size=4k none /dev/shm && \"$@\"' -"
    ),
    "C locale, ASCII": Host(env=_ASCII),
    "POSIX locale": Host(env={"LC_ALL": "POSIX"}),
    "unknown locale": Host(env={"LC_ALL": "xx_YY.KOI-9"}),
    "ASCII streams": Host(env={"PYTHONIOENCODING": "ascii"}),
    "umask 077": Host(before="umask 077"),
    "umask 000": Host(before="umask 000"),
    "stdin is closed": Host(after="<&-"),
    "stderr is closed": Host(after="2>&-"),
    "stderr is full": Host(after="2>/dev/full"),
    "stdout is closed": Host(after=">&-"),
    "one core": Host(wrapper="taskset --cpu-list 0"),
    "64 descriptors": Host(before="ulimit -n 64"),
    "stack of 1 MiB": Host(before="ulimit -s 1024"),
    "no core files, nice 19": Host(before="ulimit -c 0", wrapper="nice -n 19"),
    "terminal of one column": Host(env={"COLUMNS": "1", "LINES": "1"}),
    "COLUMNS is a word": Host(env={"COLUMNS": "wide", "TERM": "unheard-of"}),
    "PYTHONOPTIMIZE": Host(env={"PYTHONOPTIMIZE": "2"}),
    "warnings of libraries are shown": Host(env={"PYTHONWARNINGS": "always"}),
    "no huge pages": Host(env={"ESRJAX_HUGE_PAGES": "0"}),
    "data folder does not exist": Host(env={"ESRJAX_DATA": "/nonexistent"}),
    "data folder is a file": Host(env={"ESRJAX_DATA": "recipe.toml"}),
    "unknown time zone": Host(env={"TZ": "Mars/Olympus"}),
    "no PATH": Host(env={"PATH": ""}),
}


def cases() -> Iterator[Case]:
    for name, host in HOSTS.items():
        for command in COMMANDS:
            yield Case(
                name=f"{name}: {command}",
                attack=functools.partial(_attack_host, host, command),
            )
    for name, damage in SPOILED.items():
        yield Case(name=f"compile cache {name}", attack=functools.partial(_attack_cache, damage))


def _attack_host(host: Host, command: str, folder: Path) -> str | None:
    outcome = _run(host, command, folder)
    if host.after.startswith((">", "2>")):
        return None if outcome.code in (0, 1) else f"exit code {outcome.code}"
    if fault := outcome.find_fault(refuses=command in host.refuses):
        return fault
    return _find_difference(command, folder)


def _run(host: Host, command: str, folder: Path) -> Outcome:
    _write_inputs(folder)
    unset = "".join(f"unset {name}; " for name in host.unset)
    env = "".join(f"export {key}='{value}'; " for key, value in host.env.items())
    wrapper = _absolute(host.wrapper, folder)
    python = f"{wrapper} {sys.executable} -m esrjax {COMMANDS[command][0]} {host.after}"
    return run_shell(f"{host.before}; {unset}{_absolute(env, folder)}{python}", folder)


def _absolute(text: str, folder: Path) -> str:
    """Return the text with the names of folders of the attack as absolute paths."""
    for name in ("home", "cache", "tmp"):
        for before, after in (("='", "'"), (" ", " ")):
            text = text.replace(f"{before}{name}{after}", f"{before}{folder / name}{after}")
    return text


def _write_inputs(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for path in ("images/a.png", "images/b.png", "data/Tiny/HR/a.png", "lr.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path)


@functools.cache
def _undisturbed(command: str) -> bytes | None:
    """Return the bytes of the file that a command writes on this host."""

    if (file := COMMANDS[command][1]) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="esrjax-attack-") as folder:
        outcome = _run(Host(), command, Path(folder))
        assert outcome.code == 0, outcome.err
        return (Path(folder) / file).read_bytes()


def _find_difference(command: str, folder: Path) -> str | None:
    if (expected := _undisturbed(command)) is None:
        return None
    file = folder / str(COMMANDS[command][1])
    if not file.is_file():
        return f"'{file.name}' is missing"
    return None if file.read_bytes() == expected else f"'{file.name}' has other bytes"


# --- the compilation cache ------------------------------------------------------------------------


def _cut(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])


def _flip(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 0x40
    entry.write_bytes(bytes(data))


def _make_folder(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


def _forbid(entry: Path) -> None:
    entry.unlink()
    entry.symlink_to("/proc/1/mem")


SPOILED: Mapping[str, Callable[[Path], object]] = {
    "is cut": _cut,
    "has a flipped bit": _flip,
    "is empty": lambda entry: entry.write_bytes(b""),
    "is text": lambda entry: entry.write_text("hello\n" * 1000),
    "has folders for files": _make_folder,
    "cannot be read": _forbid,
}


def _attack_cache(damage: Callable[[Path], object], folder: Path) -> str | None:
    """Run a command with a spoiled cache, then again: it works, and the second run is quiet."""
    host = Host(env={"XDG_CACHE_HOME": "cache"})
    _run(host, "upscale", folder)
    entries = [*(folder / "cache").rglob("*-cache")]
    if not entries:
        return "there is no cache"
    for entry in entries:
        damage(entry)
    errors: list[str] = []
    for _ in range(2):
        shutil.rmtree(folder / "out")
        outcome = _run(host, "upscale", folder)
        fault = outcome.find_fault(refuses=False) or _find_difference("upscale", folder)
        if fault:
            return fault
        errors.append(outcome.err)
    if "Warning" in errors[0]:
        return f"a foreign warning: {errors[0][:200]}"
    return None if "cache" not in errors[1] else f"not healed: {errors[1][:200]}"
