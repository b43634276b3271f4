"""No command with `-o` destroys its inputs: it refuses them, or writes to a new folder only."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from esrjax.cli import app

# Commands, with IN for an input that is also given as the output.
REFUSED = {
    "upscale": "upscale IN:photo.png -o IN",
    "fuse": "fuse IN:photo.png other.png -o IN",
    "weights convert": "weights convert crumb IN:w.safetensors -o IN",
    "export": "export crumb --checkpoint IN:w.safetensors --format stablehlo -o IN",
    "report": "report IN:table.csv -o link.html",
    "parity": "parity crumb --golden IN:golden.json -o IN",
    "train": "train recipe.toml -o runs",
    "submit score": "submit score sr.zip --data photos --entry IN:entries/A.json -o IN",
    "submit merge": "submit merge entries -o entries/A.json",
}
# These write to a new or empty folder, or to files that nobody but the command itself has written.
NEW_FOLDER = {"data pack", "data select", "submit build", "method new", "weights get", "demo"}
RESULT_FILES = {"eval"}  # refuses an existing file that is not a result file

ENTRY = """{"77_net": {"valid_ave_runtime": 1.0, "test_ave_runtime": 1.0, "flops": 1.0,
"num_parameters": 1.0, "valid_ave_psnr": 27.0, "test_ave_psnr": null}}"""
RECIPE = """
method = "crumb"
seed = 0
[[stage]]
name = "only"
init_from = "runs/train.safetensors"
steps = 1
data = {{ datasets = ["{folder}"], batch_size = 1, hr_patch_sizes = [[32, 32]] }}
loss = {{ l1 = 1.0 }}
optimizer = {{ name = "adam", learning_rate = 1e-3 }}
schedule = {{ name = "constant" }}
"""


def commands_with_output() -> Iterator[str]:
    """Yield the names of all commands that have the option -o."""

    def walk(command, name):
        if hasattr(command, "commands"):
            for key, child in command.commands.items():
                yield from walk(child, f"{name} {key}")
        elif any("-o" in param.opts for param in command.params):
            yield name.strip()

    yield from walk(typer.main.get_command(app), "")


def test_every_command_with_an_output_is_covered():
    assert set(commands_with_output()) == {*REFUSED, *NEW_FOLDER, *RESULT_FILES}


@pytest.fixture
def folder(crumbs, tmp_path, monkeypatch) -> Path:
    """The current folder, with an input of each kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "other.png"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(name)
    weights = (crumbs / "crumbs/crumb.safetensors").read_bytes()
    Path("runs").mkdir()
    for name in ("w.safetensors", "runs/train.safetensors"):
        Path(name).write_bytes(weights)
    Path("table.csv").write_text("team\n")
    os.link("table.csv", "link.html")
    Path("golden.json").write_text("{}")
    Path("entries").mkdir()
    Path("entries/A.json").write_text(ENTRY)
    Path("recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", REFUSED)
def test_output_that_is_an_input_is_refused(esrjax, folder, monkeypatch, name):
    monkeypatch.setattr("esrjax.interop.export.check_libraries", lambda format: None)
    args = REFUSED[name].split()
    source = next((arg[3:] for arg in args if arg.startswith("IN:")), "")
    args = [source if arg == "IN" else arg.removeprefix("IN:") for arg in args]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = esrjax(*args)
    assert result.code == 2 and "would be overwritten, but is an input" in result.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
