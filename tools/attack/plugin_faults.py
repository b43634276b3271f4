"""Plugins that exit, print, lie or break: each is named, and no other method is harmed."""

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attack.case import Case, find_refusal_fault, run_in_process
from esrjax import registry
from esrjax.errors import log_note
from esrjax.nn import ops

GOOD = """
from esrjax.method import Ensemble, Member, Method, Weights

class Net:
    def __init__(self, *, rngs, channels=4, scale=4):
        pass

METHOD = Method(network=Net, team="t", paper="p", license="MIT", reported={"params": 1, "macs": 1})
"""
MODULE = "hostile_plugin"
OTHERS = set(registry.names())


def _with(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# --- sources of a module with METHOD; None: there is no module -----------------------------------

UNUSABLE: Mapping[str, str | None] = {
    "sys.exit": "import sys; sys.exit('needs a GPU')",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "exit code of a megabyte": "raise SystemExit('x' * 10**6)",
    "os._exit": "import os; os._exit(0)",
    "BaseException": "class Odd(BaseException): pass\nraise Odd('odd')",
    "GeneratorExit": "raise GeneratorExit",
    "MemoryError": "raise MemoryError",
    "recursion": "def f(): f()\nf()",
    "exception without text": "raise RuntimeError",
    "exception of many lines": "raise RuntimeError('a\\n' * 9999)",
    "exception with escapes": "raise RuntimeError('\\x1b[2J\\x07 gone')",
    "exception whose text fails": "class E(Exception):\n def __str__(self): 1 / 0\nraise E",
    "ImportError": "import no_such_module_at_all",
    "syntax": "def broken(:",
    "null byte": "x = '\0'",
    "not UTF-8": "x = '\udcff'",
    "no module": None,
    "no attribute": GOOD.replace("METHOD", "METHODS"),
    "number": "METHOD = 3",
    "class": GOOD + "METHOD = Net",
    "factory": GOOD + "def make(): return METHOD\nMETHOD = make",
    "class that lies": "class Odd:\n __class__ = property(lambda self: 1 / 0)\nMETHOD = Odd()",
    "attribute that fails": "def __getattr__(name): raise SystemExit(name)",
    "other interface": _with("Method(net", "Method(api=7, net"),
    "interface of text": _with("Method(net", "Method(api='1', net"),
    "no rngs": _with("*, rngs, ", ""),
    "argument without default": _with("channels=4", "channels"),
    "network None": _with("network=Net", "network=None"),
    "network not callable": _with("network=Net", "network=3"),
    "team None": _with('team="t"', "team=None"),
    "paper bytes": _with('paper="p"', "paper=b'p'"),
    "license list": _with('license="MIT"', "license=['MIT']"),
    "scales int": _with("network=Net", "network=Net, scales=4"),
    "no scales": _with("network=Net", "network=Net, scales=()"),
    "scale 0": _with("network=Net", "network=Net, scales=(0,)"),
    "scale of text": _with("network=Net", "network=Net, scales=('4',)"),
    "scale True": _with("network=Net", "network=Net, scales=(True,)"),
    "data range 0": _with("network=Net", "network=Net, data_range=0"),
    "data range NaN": _with("network=Net", "network=Net, data_range=float('nan')"),
    "data range of text": _with("network=Net", "network=Net, data_range='1'"),
    "min side None": _with("network=Net", "network=Net, min_side=None"),
    "weights list": _with("network=Net", "network=Net, weights=[1]"),
    "weights of text": _with("network=Net", "network=Net, weights={'a': 'url'}"),
    "weights without name": _with("network=Net", "network=Net, weights={1: Weights(sha256='')}"),
    "weights of odd form": _with("network=Net", "network=Net, weights={'a': Weights(sha256='', "
    "form='half')}"),
    "url number": _with("network=Net", "network=Net, weights={'a': Weights(sha256='', url=3)}"),
    "reported list": _with('{"params": 1, "macs": 1}', "[]"),
    "reported text": _with('{"params": 1,', '{"params": "many",'),
    "pretrained path": _with("network=Net", "network=Net, pretrained=3"),
    "cost options None": _with("network=Net", "network=Net, cost_options=None"),
    "flag of text": _with("network=Net", "network=Net, needs_full_image='no'"),
    "unknown field": _with("network=Net", "network=Net, colour='red'"),
    "ensemble of names": GOOD
    + "METHOD = Ensemble(members=['span'], team='t', paper='p', license='MIT')",
    "ensemble of text": GOOD
    + "METHOD = Ensemble(members={'span': 'x8'}, team='t', paper='p', license='MIT')",
    "ensemble of odd fusion": GOOD + "METHOD = Ensemble(members={'span': Member()}, team='t', "
    "paper='p', license='MIT', fusion='sum')",
}  # fmt: skip
USABLE = {
    "prints": "print('loading ...')\n" + GOOD,
    "prints below Python": "import os; os.write(1, b'loading')\n" + GOOD,
    "starts a process that prints": "import os; os.system('echo loading')\n" + GOOD,
    "replaces standard output": "import sys; sys.stdout = None\n" + GOOD,
    "changes the folder": "import os; os.chdir('/')\n" + GOOD,
    "warns": "import warnings; warnings.warn('old')\n" + GOOD,
    "catches sys.exit": "import sys\ntry: sys.exit()\nexcept SystemExit: pass\n" + GOOD,
    "team with escapes": _with('team="t"', "team='\\x1b[31mred\\nline'"),
}
BAD_NAMES = (
    *("../up", "team/net", "..", ".hidden", "a\\b", "/etc/passwd", "C:", "-o", "a b", "a,b"),
    *("a\tb", "a\x1b[31m", "méthode", "\u202eevil", "nul", "CON", "com1.txt", "dot.", "x" * 101),
    *("a=", "a:b", "*", "[x]"),
)
METADATA = "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n"
DISTRIBUTIONS = {  # what is wrong -> files of its dist-info folder
    "entry point without value": {"entry_points.txt": "[esrjax.methods]\nhostile\n"},
    "value that is no object": {"entry_points.txt": "[esrjax.methods]\nhostile = a b METHOD\n"},
    "empty value": {"entry_points.txt": "[esrjax.methods]\nhostile =\n"},
    "no group": {"entry_points.txt": "hostile = m:METHOD\n"},
    "entry points not UTF-8": {"entry_points.txt": "[esrjax.methods]\nhostile = \udcff:METHOD\n"},
    "no metadata": {"METADATA": None},
    "empty metadata": {"METADATA": ""},
    "metadata not UTF-8": {"METADATA": "Name: \udcff\n"},
    "no version": {"METADATA": "Name: hostile\n"},
}
COMPONENTS = {  # what is wrong -> group, source
    "kernel that exits": (ops.KERNEL_GROUP, "import sys; sys.exit()"),
    "kernel of another type": (ops.KERNEL_GROUP, "METHOD = 3"),
    "loss that exits": (registry.LOSS_GROUP, "import sys; sys.exit()"),
    "loss that is no function": (registry.LOSS_GROUP, "METHOD = 3"),
    "optimizer that raises": (registry.OPTIMIZER_GROUP, "1 / 0"),
    "optimizer that is no function": (registry.OPTIMIZER_GROUP, "METHOD = 'adam'"),
    "metric that exits": (registry.METRIC_GROUP, "import os; os._exit(0)"),
    "metric of another type": (registry.METRIC_GROUP, "METHOD = 'psnr'"),
}


# --- how it is attacked --------------------------------------------------------------------------


@contextmanager
def _installed(
    folder: Path, source: str | None, files: Mapping[str, str | None]
) -> Generator[None]:
    """Put a distribution on the path, with a module and the files of its dist-info folder."""
    info = folder / "hostile-1.0.dist-info"
    info.mkdir()
    for name, text in ({"METADATA": METADATA} | dict(files)).items():
        if text is not None:
            (info / name).write_bytes(text.encode(errors="surrogateescape"))
    if source is not None:
        (folder / f"{MODULE}.py").write_bytes(source.encode(errors="surrogateescape"))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    ops.find_kernel.cache_clear()
    log_note.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)


def _entry(name: str, group: str = registry.METHOD_GROUP) -> dict[str, str]:
    return {"entry_points.txt": f"[{group}]\n{name} = {MODULE}:METHOD\n"}


def _list(folder: Path, name: str, *, is_usable: bool) -> str | None:
    """Return what is wrong with `method list --json` of the plugin and one of ours."""
    cwd, stdout = os.getcwd(), sys.stdout
    os.environ[registry.PLUGINS_ENV] = f"{name},span"
    try:
        outcome = run_in_process("method", "list", "--json", folder=folder)
    finally:
        del os.environ[registry.PLUGINS_ENV]
    if os.getcwd() != cwd or sys.stdout is not stdout:
        return "the folder or standard output is another one afterwards"
    if fault := outcome.find_fault(refuses=False):
        return fault
    names = [row["name"] for row in json.loads(outcome.out)]
    if names != sorted(["span", name] if is_usable else ["span"]):
        return f"listed are {names}"
    return None if is_usable or "esrjax: " in outcome.err else "it is not named"


def _attack_method(folder: Path, *, source: str | None, name: str, is_usable: bool) -> str | None:
    with _installed(folder, source, _entry(name)):
        load = functools.partial(registry.get_entry, name)
        if not is_usable and (fault := find_refusal_fault(load)):
            return fault
        return _list(folder, name, is_usable=is_usable)


def _attack_name(folder: Path, *, name: str) -> str | None:
    with _installed(folder, GOOD, _entry(name)):
        (name,) = set(registry.names()) - OTHERS or {name}  # as the parser of the file reads it
        if fault := find_refusal_fault(functools.partial(registry.get_entry, name)):
            return fault
        return None if "," in name else _list(folder, name, is_usable=False)


def _attack_distribution(folder: Path, *, files: Mapping[str, str | None]) -> str | None:
    with _installed(folder, GOOD, _entry("hostile") | dict(files)):
        outcome = run_in_process("method", "show", "span", "--json", folder=folder)
        names = registry.names()
        if "hostile" in names and "METADATA" not in files:
            return find_refusal_fault(functools.partial(registry.get_entry, "hostile"))
        return outcome.find_fault(refuses=False) or (None if "span" in names else "span is gone")


def _attack_component(folder: Path, *, group: str, source: str) -> str | None:
    def load() -> object:
        if group == ops.KERNEL_GROUP:
            return ops.find_kernel("hostile")
        return registry.get_component(group, "hostile", "component", Callable)

    with _installed(folder, source, _entry("hostile", group)):
        if fault := find_refusal_fault(load):
            return fault
        outcome = run_in_process("metrics", "list", "--json", folder=folder)
        return outcome.find_fault(refuses=False) or (json.loads(outcome.out) and None)


def cases() -> list[Case]:
    """Return a case for every plugin, name, distribution and component above."""
    attacks: dict[str, Callable[[Path], str | None]] = {}
    for what, source in UNUSABLE.items():
        attacks[what] = functools.partial(
            _attack_method, source=source, name="hostile", is_usable=False
        )
    for what, source in USABLE.items():
        attacks[what] = functools.partial(
            _attack_method, source=source, name="hostile", is_usable=True
        )
    for name in BAD_NAMES:
        attacks[f"name {name!r:.40}"] = functools.partial(_attack_name, name=name)
    for what, files in DISTRIBUTIONS.items():
        attacks[what] = functools.partial(_attack_distribution, files=files)
    for what, (group, source) in COMPONENTS.items():
        attacks[what] = functools.partial(_attack_component, group=group, source=source)
    return [Case(name=name, attack=attack, is_fast=True) for name, attack in attacks.items()]
