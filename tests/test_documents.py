"""Commands and code of the documents: all are valid, and those of three pages run as they stand."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer

from esrjax.cli import app
from esrjax.data.image_io import write_image
from esrjax.training import recipe_loader

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if path.name != "log.md"]
PLUGINS_PAGE = ROOT / "docs/plugins.md"
CHALLENGE_PAGE = ROOT / "docs/challenge.md"
CODE_BLOCK = re.compile(r"^```(sh|python|toml) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAKE_PIP = """#!/bin/sh
# pip install -e DIR, but into a folder of the test instead of the environment
exec {python} -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \\
    --upgrade --target {site} "./$3"
"""


def code_blocks(language):
    return [
        pytest.param(text, id=f"{page.name}-{index}")
        for page in PAGES
        for index, (name, _, text) in enumerate(CODE_BLOCK.findall(page.read_text()))
        if name == language
    ]


def esrjax_commands(text):
    """Yield the arguments of every call of `esrjax` in a shell script."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        starts = [i for i, word in enumerate(words) if word == "esrjax"]
        for start in starts:
            if start == 0 or words[start - 1] in ("&&", "||", "srun"):
                ends = [i for i, w in enumerate(words) if i > start and w in ("&&", "||", "|")]
                yield words[start + 1 : min(ends, default=len(words))]


@pytest.mark.parametrize("text", code_blocks("sh"))
def test_commands_are_valid(text):
    root = typer.main.get_command(app)
    for words in esrjax_commands(text):
        command = root
        while getattr(command, "commands", None):
            name, command, words = command.resolve_command(typer.Context(command), words)
        command.make_context(name, list(words))


@pytest.mark.parametrize("text", code_blocks("python"))
def test_imports_of_python_code_resolve(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("esrjax."):
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.import_module(submodule)


@pytest.mark.parametrize("text", code_blocks("toml"))
def test_toml_is_valid(text):
    data = tomllib.loads(text)
    if "method" in data:
        recipe_loader.parse(data)


@pytest.fixture
def reader(tmp_path, reference):
    """Run shell commands as a reader would, with the files that the page takes for granted."""
    site_packages, bin = tmp_path / "site", tmp_path / "bin"
    bin.mkdir()
    (bin / "pip").write_text(FAKE_PIP.format(python=sys.executable, site=site_packages))
    (bin / "pip").chmod(0o755)
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (48, 40, 3), np.uint8)
        write_image(tmp_path / f"photos/{name}.png", noise)
    (tmp_path / "team00_SPAN.pth").symlink_to(reference / "weights/team00_SPAN.pth")
    path = f"{bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": f"{site_packages}:{ROOT}"}

    def run(commands):
        process = subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    return run


@pytest.mark.slow
def test_plugins_page_leads_to_a_ranked_row(reader, tmp_path):
    outputs = []
    for language, name, text in CODE_BLOCK.findall(PLUGINS_PAGE.read_text()):
        if language == "sh":
            outputs.append(reader(text))
        elif name:
            (tmp_path / name).write_text(text)
    checked, shown, weights, ranked, linen = outputs
    assert "my_net: 8 of 8 " in checked and " passed" in checked
    assert "from esrjax-my_net 0.1.0" in shown or "esrjax_my_net" in shown
    assert "my_net: equal to PyTorch" in weights
    title = "**NTIRE 2026 Efficient Super-Resolution.**"
    with_thresholds, without_thresholds = ranked.split(title)[1:]
    assert "Not ranked" in with_thresholds and "Rank |" not in with_thresholds
    assert re.search(r"\| +1 \| own weights \(my team\) +\| my_net ", without_thresholds)
    assert "score alone" in without_thresholds
    assert "linen_net: 8 of 8 " in linen and "3,728" not in linen


def test_challenge_page_shows_what_its_commands_print(reader, reference, tmp_path):
    for name in ("results.json", "table1.csv"):
        (tmp_path / name).symlink_to(reference / "protocol" / name)
    text = re.sub(
        r"^## From a method.*?(?=^## )", "", CHALLENGE_PAGE.read_text(), flags=re.M | re.S
    )
    outputs = [
        reader(f"python - <<'END'\n{block}\nEND\n" if language == "python" else block)
        for language, _, block in CODE_BLOCK.findall(text)
        if language != "toml"
    ]
    against, sensitivity, what_if, script = outputs
    assert "134 of 240 cells agree as printed" in against and "134 of 240 cells" in text
    assert len(re.findall(r"\| \([123]\)", against)) == 106 and "not explained" not in against
    assert "**without the first image (cold start)**: none" in sensitivity
    assert "**What if PKDSR runtime -0.1 ms, SPANV2 psnr -0.03 dB**: main: XiaomiMM 1" in what_if
    assert script.startswith("1 XiaomiMM 3.87") and "one run" in script


@pytest.mark.slow
def test_python_page_runs_as_it_stands(reader, tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (160, 144, 3), np.uint8)
        write_image(tmp_path / f"photos/{name}.png", noise)
    blocks = CODE_BLOCK.findall((ROOT / "docs/python.md").read_text())
    images, training = (
        reader(f"export ESRJAX_DATA=$PWD\npython - <<'END'\n{text}\nEND\n") for *_, text in blocks
    )
    assert "<Model method: spanv2" in images
    assert "(2, 96, 128, 3) (2, 24, 32, 3)" in images
    assert "stopped after step 10" in training


INSTALLATION = ("make demo", "python3 -m venv")  # blocks that set up an environment


@pytest.mark.slow
def test_readme_runs_as_it_stands(reader, reference, tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (96, 128, 3), np.uint8)
        write_image(tmp_path / f"data/Set5/HR/{name}.png", noise)
    write_image(tmp_path / "photo.png", noise[:48, :64])
    write_image(tmp_path / "photos/sub/a.png", noise[:16, :24])
    (tmp_path / "span.npz").symlink_to(reference / "golden/span.npz")
    for name in ("span", "parts"):
        twin = (ROOT / f"tests/twins/{name}.py").read_text().replace("Twin", "SPAN")
        (tmp_path / f"{name}.py").write_text(twin.replace("from .parts", "from parts"))
    for language, name, text in CODE_BLOCK.findall((ROOT / "README.md").read_text()):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "python":
            reader(f"export ESRJAX_DATA=data\npython - <<'END'\n{text}\nEND\n")
        elif not text.startswith(INSTALLATION):
            if importlib.util.find_spec("onnx") is None:  # the extra `export`
                text = re.sub(r"^esrjax export .*$", "", text, flags=re.MULTILINE)
            reader(f"export ESRJAX_DATA=data\n{text}")
    assert "spanv2" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "big/sub/ax4.webp").is_file()
    assert (tmp_path / "mean.png").read_bytes() == (tmp_path / "big.png").read_bytes()
