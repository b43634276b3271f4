"""Commands and code of the documents, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esrjax.data.image_io import write_image

PLUGINS_PAGE = Path(__file__).resolve().parents[1] / "docs/plugins.md"
CHALLENGE_PAGE = PLUGINS_PAGE.with_name("challenge.md")
CODE_BLOCK = re.compile(r"^```(sh|python) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAKE_PIP = """#!/bin/sh
# pip install -e DIR, but into a folder of the test instead of the environment
exec {python} -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \\
    --upgrade --target {site} "./$3"
"""


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
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(site_packages)}

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
    assert re.search(r"\| +1 \| my team +\| my_net ", without_thresholds)
    assert "score alone" in without_thresholds
    assert "linen_net: 8 of 8 " in linen and "3,728" not in linen


def test_challenge_page_shows_what_its_commands_print(reader, reference, tmp_path):
    for name in ("results.json", "table1.csv"):
        (tmp_path / name).symlink_to(reference / "protocol" / name)
    text = CHALLENGE_PAGE.read_text()
    outputs = [
        reader(f"python - <<'END'\n{block}\nEND\n" if language == "python" else block)
        for language, _, block in CODE_BLOCK.findall(text)
    ]
    against, sensitivity, what_if, script = outputs
    assert "134 of 240 cells agree as printed" in against and "134 of 240 cells" in text
    assert len(re.findall(r"\| \([123]\)", against)) == 106 and "not explained" not in against
    assert "**without the first image (cold start)**: none" in sensitivity
    assert "**What if PKDSR runtime -0.1 ms, SPANV2 psnr -0.03 dB**: main: XiaomiMM 1" in what_if
    assert script.startswith("1 XiaomiMM 3.87") and "one run" in script
