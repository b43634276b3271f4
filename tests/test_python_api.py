"""The functions of the package `esrjax`, which are those behind the commands."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import esrjax
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import InvalidArgument, TrainingFailed, UnreadableFile
from esrjax.training.train import TrainingStopped

OVERRIDES = (
    "method='crumb'",
    "method='crumb'",
    "stage.0.steps=4",
    "stage.0.data.datasets=['photos']",
    "stage.0.data.hr_patch_sizes=[[24, 24]]",
    "stage.0.data.batch_size=2",
    "stage.0.validation={dataset='photos', every=2}",
)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    for seed, name in enumerate("ab"):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 24, 3), np.uint8)
        write_image(tmp_path / f"photos/{name}.png", pixels)
    return tmp_path / "photos"


def test_import_is_fast_and_without_jax():
    code = "import esrjax, sys; assert not {'jax', 'numpy', 'flax'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    command = [sys.executable, "-X", "importtime", "-c", "import esrjax"]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(3)]
    times_us = [int(run.stderr.splitlines()[-1].split("|")[1]) for run in runs]
    assert min(times_us) < 100_000


def test_types_are_exported():
    assert esrjax.Model is type(esrjax.load("spanv2"))
    assert esrjax.TrainingStopped is TrainingStopped and "Model" in dir(esrjax)
    with pytest.raises(AttributeError, match="'Modell'"):
        _ = esrjax.Modell


def test_models_print_on_one_line_and_as_a_table():
    model = esrjax.load("spanv2")
    assert repr(model).startswith("<Model method: spanv2, scale: x4, parameters: 139,104, weights:")
    assert "\n" not in repr(model) and "<td>spanv2</td>" in model._repr_html_()


def test_files_are_upscaled(photos, tmp_path):
    (large,) = esrjax.upscale(photos / "a.png", tmp_path / "large.png")
    expected = esrjax.load("spanv2")(read_image(photos / "a.png").pixels)
    np.testing.assert_allclose(read_image(large).pixels.astype(int), expected, atol=1)
    net = esrjax.load("spanv2")
    paths = esrjax.upscale([photos], tmp_path / "out", net, self_ensemble=True)
    assert [path.name for path in paths] == ["ax4.png", "bx4.png"]
    assert read_image(paths[0]).pixels.shape == (128, 96, 3)


def test_unreadable_image_raises(photos, tmp_path):
    (photos / "c.png").write_bytes(b"no image")
    with pytest.raises(UnreadableFile):
        esrjax.upscale(photos, tmp_path / "out")


def test_training_calls_back_and_resumes_after_a_stop(crumbs, photos, tmp_path):
    reports = []

    def stop(report):
        reports.append(report.step)
        return report.step == 2

    run = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):  # that of optax
        with pytest.raises(TrainingStopped):
            esrjax.train("quick", run, overrides=OVERRIDES, callbacks=[stop])
        failing = [stop, lambda report: 1 / 0]
        with pytest.raises(TrainingFailed, match=r"(?s)ZeroDivisionError.*step 4 is saved"):
            esrjax.train("quick", run, overrides=OVERRIDES, resume=True, callbacks=failing)
        model = esrjax.train("quick", run, overrides=OVERRIDES, resume=True, callbacks=[stop])
    assert model.name == "crumb" and reports == [2, 4]


def test_parity_needs_a_pytorch_side():
    with pytest.raises(InvalidArgument, match="no PyTorch side"):
        esrjax.parity("span")


def test_rank_reads_a_table(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "team,method,psnr_valid,psnr_test,runtime_ms,params_m,flops_g\n"
        "EfficientSR Organizers,SPAN,26.94,27.01,8,0.15,10\n"
        "mine,net,26.95,27.02,4,0.1,5\n"
    )
    ranking = esrjax.rank(table)
    assert ranking.entries[0].row.team == "mine"
