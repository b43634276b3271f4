"""TensorBoard events of reports."""

import ast
import json
import struct
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from esrjax.training.logging import (
    Meter,
    MlflowLogger,
    TensorBoardLogger,
    TrainReport,
    WandbLogger,
)


def events(folder):
    """Yield the events in the TFRecord files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        rest = file.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            yield Event.FromString(rest[12 : 12 + length])
            rest = rest[16 + length :]


IMAGE = np.zeros((8, 8, 3), np.uint8)


def report(step, **metrics):
    metrics |= {"steps_per_s": 2.0, "images_per_s": 8.0, "data_wait": 0.25, "limit": "data"}
    metrics |= {"loss": 0.5, "learning_rate": 1e-3}
    return TrainReport(stage="only", step=step, total_steps=100, **metrics)


def test_every_scalar_is_logged_by_step(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra log")
    with TensorBoardLogger(tmp_path) as logger:
        logger.log(report(50))
        logger.log(report(100, psnr=26.5, ssim=0.75, images={"baby": IMAGE}))
    with TensorBoardLogger(tmp_path) as logger:  # resumed after a kill, from step 50
        logger.log(report(100))
    logged = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert {(50, "loss", 0.5), (100, "psnr", 26.5), (100, "images_per_s", 8.0)} <= set(logged)
    assert not any(step == 50 and tag == "psnr" for step, tag, _ in logged)
    tags = {tag for _, tag, _ in logged}
    assert "validation/baby" in tags
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status]
    assert starts == [50, 100]  # the first event of step 100 is purged


def test_missing_extra_is_reported_before_anything_is_written(
    esrjax, tmp_path, recipe_dict, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(recipe_dict))
    result = esrjax("train", config, "-o", tmp_path / "run", "--log", "tensorboard")
    assert result.code == 2 and 'pip install "tensorboardX>=' in result.err
    assert not (tmp_path / "run").exists()


class Calls:
    """A stub of a library: every call is recorded, and returns the stub."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


@pytest.mark.parametrize(
    ("module", "logger_class", "metric_call", "image_call", "end"),
    [
        ("wandb", WandbLogger, "log", "Image", ("finish", (), {"exit_code": 0})),
        ("mlflow", MlflowLogger, "log_metrics", "log_image", ("end_run", ("FINISHED",), {})),
    ],
)
def test_other_loggers_log_scalars_and_images(
    tmp_path, monkeypatch, module, logger_class, metric_call, image_call, end
):
    library = Calls()
    monkeypatch.setitem(sys.modules, module, library)
    with logger_class(tmp_path / "run") as logger:
        logger.log(report(50, psnr=26.5, images={"baby": IMAGE}))
    (metrics,) = (call for call in library.calls if call[0] == metric_call)
    assert metrics[1][0]["psnr"] == 26.5 and metrics[2] == {"step": 50}
    assert "ssim" not in metrics[1][0]
    (image,) = (call for call in library.calls if call[0] == image_call)
    assert image[1][0] is IMAGE
    assert library.calls[-1] == end


def test_run_of_wandb_goes_on_when_resumed_and_has_an_id_of_its_own(tmp_path, monkeypatch):
    library = Calls()
    monkeypatch.setitem(sys.modules, "wandb", library)
    for folder in ("a/run", "a/run", "b/run"):
        with WandbLogger(tmp_path / folder):
            pass
    first, resumed, other = (call[2] for call in library.calls if call[0] == "init")
    assert first["id"] == resumed["id"] != other["id"]
    assert {first["name"], other["name"]} == {"run"} and first["resume"] == "allow"


def test_training_with_a_logger_of_another_package(
    esrjax, package, recipe_dict, image_dir, tmp_path
):
    first = recipe_dict["stage"][0] | {"validation": {"dataset": str(image_dir), "every": 12}}
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(recipe_dict | {"stage": [first]}))
    source = """
class Lab:
    def __init__(self, folder):
        self.file = (folder.parent / "lab.txt").open("w")
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def log(self, report):
        print(report.step, sorted(report.images), file=self.file)
"""
    package("lab", source, "esrjax.loggers", {"lab": "Lab"})
    result = esrjax("train", config, "-o", tmp_path / "run", "--log", "lab")
    assert result.code == 0, result.err
    step, _, names = (tmp_path / "lab.txt").read_text().partition(" ")
    assert step == "12" and len(ast.literal_eval(names)) == 3  # of four images
    refused = esrjax("train", config, "-o", tmp_path / "run", "--log", "lab")
    assert refused.code == 2 and "already contains a run" in refused.err
    assert (tmp_path / "lab.txt").read_text() == f"12 {names}"  # the logger was not opened
    package("broken", "def Lab(folder): return 1 / 0", "esrjax.loggers", {"broken": "Lab"}, "site2")
    broken = esrjax("train", config, "-o", tmp_path / "run2", "--log", "broken")
    assert broken.code == 2 and "ZeroDivisionError" in broken.err
    unknown = esrjax("train", config, "-o", tmp_path / "run2", "--log", "labb")
    assert unknown.code == 2 and "did you mean 'lab'" in unknown.err


# --- Measurement of time spent waiting for data ---


class PendingLoss:
    """A loss that is not computed yet."""

    def is_ready(self):
        return False


def slow_source():
    for _ in range(3):
        time.sleep(0.02)
        yield ()


def test_slow_source_is_the_limit_if_devices_wait():
    loss, meter = jnp.float32(1), Meter()
    for _ in meter.timed(slow_source()):
        meter.add(loss)
    throughput = meter.throughput()
    assert throughput.data_wait > 0.5 and throughput.limit == "data"


def test_wait_does_not_count_while_devices_compute():
    meter = Meter()
    meter.losses.append(PendingLoss())
    for _ in meter.timed(slow_source()):
        pass
    assert meter.wait_s == 0
