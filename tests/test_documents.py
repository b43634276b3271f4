"""What the documents tell a reader to do works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esrjax.pictures.files import write

PLUGINS = Path(__file__).resolve().parents[1] / "docs/plugins.md"
CONTEST = PLUGINS.with_name("contest.md")
BLOCK = re.compile(r"^```(sh|python) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PIP = """#!/bin/sh
# Installs into a folder of the test's own what is to be installed into the environment.
exec {python} -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \\
    --upgrade --target {site} "./$3"
"""


@pytest.fixture
def reader(tmp_path, reference):
    """Runs shell commands where a reader would, with what the page takes for granted."""
    site, bin = tmp_path / "site", tmp_path / "bin"
    bin.mkdir()
    (bin / "pip").write_text(PIP.format(python=sys.executable, site=site))
    (bin / "pip").chmod(0o755)
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (48, 40, 3), np.uint8)
        write(tmp_path / f"photos/{name}.png", noise)
    (tmp_path / "team00_SPAN.pth").symlink_to(reference / "weights/team00_SPAN.pth")
    path = f"{bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(site)}

    def run(commands):
        done = subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_page_on_plugins_leads_to_a_ranked_row(reader, tmp_path):
    said = []
    for language, name, text in BLOCK.findall(PLUGINS.read_text()):
        if language == "sh":
            said.append(reader(text))
        elif name:
            (tmp_path / name).write_text(text)
    start, known, weights, ranked, linen = said
    assert "my_net: 8 of 8 laws hold" in start and " passed" in start
    assert "from esrjax-my_net 0.1.0" in known or "esrjax_my_net" in known
    assert "my_net: equal to PyTorch" in weights
    apart, alone = ranked.split("**NTIRE 2026 Efficient Super-Resolution.**")[1:]
    assert "Not ranked: no PSNR on the contest's own sets" in apart and "Rank |" not in apart
    assert re.search(r"\| +1 \| my team +\| my_net ", alone)
    assert "Ranked by score alone" in alone
    assert "linen_net: 8 of 8 laws hold" in linen and "3,728" not in linen


def test_the_page_on_the_contest_says_what_its_commands_print(reader, reference, tmp_path):
    for name in ("results.json", "table1.csv"):
        (tmp_path / name).symlink_to(reference / "protocol" / name)
    text = CONTEST.read_text()
    said = [
        reader(f"python - <<'END'\n{block}\nEND\n" if language == "python" else block)
        for language, _, block in BLOCK.findall(text)
    ]
    against, sensitivity, what_if, python = said
    assert "134 of 240 cells agree as printed" in against and "134 of 240 cells" in text
    assert len(re.findall(r"\| \([123]\)", against)) == 106 and "not explained" not in against
    assert "**without the first picture (cold start)**: none" in sensitivity
    assert "**What if PKDSR runtime -0.1 ms, SPANV2 psnr -0.03 dB**: main: XiaomiMM 1" in what_if
    assert python.startswith("1 XiaomiMM 3.87") and "one run" in python
