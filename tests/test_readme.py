"""Generated blocks of the README, and links of all documents."""

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
    """Return the contents of a generated block of the README."""
    match = re.search(
        rf"<!-- {name}: .*? -->\n(.*?)\n<!-- end of {name} -->", README.read_text(), re.S
    )
    assert match, f"the README has no block {name!r}"
    return match[1].strip()


def help_text() -> str:
    """Return the commands with their help by group, as `esrjax --help` prints them."""
    printed = CliRunner().invoke(app, ["--help"], env={"TERMINAL_WIDTH": "100", "COLUMNS": "100"})
    panels = re.findall(r"^╭─ (.+?) ─+╮\n(.*?)^╰", printed.output, re.M | re.S)
    lines: list[str] = []
    for title, rows in panels:
        commands = re.findall(r"^│ ([a-z]+) {2,}(.*?)│$|^│ {8,}(\S.*?)│$", rows, re.M)
        if not commands or title == "Options":
            continue
        lines += ["", title]
        for command, text, continuation in commands:
            if command:
                lines.append(f"  esrjax {command:<9} {text.strip()}")
            else:
                lines[-1] += f" {continuation.strip()}"
    return "```text\n" + "\n".join(lines[1:]) + "\n```"


def method_table() -> str:
    """Return a row for each method of this distribution, the fastest of the challenge first."""
    rows = [
        "| method | team | params | MACs | PSNR valid / test | ms |",
        "|---|---|---:|---:|---|---:|",
    ]
    names = [
        name for name in registry.names() if registry.distribution_of(name).startswith("esrjax ")
    ]
    methods = {name: m for name in names if isinstance(m := registry.get_entry(name), Method)}
    by_runtime = sorted(methods, key=lambda n: methods[n].reported.get("runtime_ms", math.inf))
    return "\n".join([*rows, *(_method_row(name, methods[name]) for name in by_runtime)])


def _method_row(name: str, method: Method) -> str:
    reported = method.reported
    psnr = " / ".join(f"{reported[k]:.2f}" for k in ("psnr_valid", "psnr_test") if k in reported)
    runtime = f"{reported['runtime_ms']:.3f}" if "runtime_ms" in reported else ""
    cost = f"{reported['params']:,} | {reported['macs'] / 1e9:.2f} G"
    return f"| `{name}` | {method.team} | {cost} | {psnr} | {runtime} |"


@pytest.mark.parametrize(("name", "text"), [("help", help_text), ("methods", method_table)])
def test_generated_block_is_up_to_date(name, text):
    assert block(name) == text(), "run `make readme`"


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_link_of_the_documents_resolves():
    for document in (*README.parent.glob("*.md"), *README.parent.glob("docs/*.md")):
        links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text())
        for path, anchor in links:
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name} links to {path}"
            if anchor:
                assert anchor in anchors(target), f"{document.name} links to {path}#{anchor}"
