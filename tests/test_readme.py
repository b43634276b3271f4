"""What the README shows is what the program prints."""

import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esrjax import registry
from esrjax.cli import app
from esrjax.method import Method

README = Path(__file__).parents[1] / "README.md"


def block(name: str) -> str:
    found = re.search(
        rf"<!-- {name}: .*? -->\n(.*?)\n<!-- end of {name} -->", README.read_text(), re.S
    )
    assert found, f"the README has no block {name!r}"
    return found[1].strip()


def help_text() -> str:
    """Verb and first sentence, as `esrjax --help` has them."""
    printed = CliRunner().invoke(app, ["--help"], env={"TERMINAL_WIDTH": "100", "COLUMNS": "100"})
    verbs = re.findall(r"^│ ([a-z]+) {2,}(.*?)│$|^│ {8,}(\S.*?)│$", printed.output, re.M)
    lines: list[str] = []
    for verb, text, more in verbs:
        if verb:
            lines.append(f"esrjax {verb:<9} {text.strip()}")
        elif lines:
            lines[-1] += f" {more.strip()}"
    return "```text\n" + "\n".join(lines) + "\n```"


def method_table() -> str:
    """One line for each method of this distribution, the fastest of the challenge first."""
    rows = [
        "| method | team | params | MACs | PSNR valid / test | ms |",
        "|---|---|---:|---:|---|---:|",
    ]
    names = [name for name in registry.names() if registry.origin(name).startswith("esrjax ")]
    methods = {name: m for name in names if isinstance(m := registry.method(name), Method)}
    by_runtime = sorted(methods, key=lambda n: methods[n].reported.get("runtime_ms", math.inf))
    return "\n".join([*rows, *(_row(name, methods[name]) for name in by_runtime)])


def _row(name: str, method: Method) -> str:
    said = method.reported
    psnr = " / ".join(f"{said[k]:.2f}" for k in ("psnr_valid", "psnr_test") if k in said)
    runtime = f"{said['runtime_ms']:.3f}" if "runtime_ms" in said else ""
    cost = f"{said['params']:,} | {said['macs'] / 1e9:.2f} G"
    return f"| `{name}` | {method.team} | {cost} | {psnr} | {runtime} |"


@pytest.mark.parametrize(("name", "text"), [("help", help_text), ("methods", method_table)])
def test_the_readme_is_up_to_date(name, text):
    assert block(name) == text(), "run `make readme`"


def test_every_file_that_the_documents_name_exists():
    for document in (README, *README.parent.glob("docs/*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} names {link}"
