"""TensorBoard events of reports."""

import json
import struct
import sys
import time

import jax.numpy as jnp
import pytest

from esrjax.training.logging import Meter, TensorBoardLogger, TrainReport


def events(folder):
    """Yield the events in the TFRecord files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        rest = file.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            yield Event.FromString(rest[12 : 12 + length])
            rest = rest[16 + length :]


def report(step, **metrics):
    metrics |= {"steps_per_s": 2.0, "images_per_s": 8.0, "data_wait": 0.25, "limit": "data"}
    metrics |= {"loss": 0.5, "learning_rate": 1e-3}
    return TrainReport(stage="only", step=step, total_steps=100, **metrics)


def test_every_scalar_is_logged_by_step(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra log")
    with TensorBoardLogger(tmp_path) as logger:
        logger.log(report(50))
        logger.log(report(100, psnr=26.5, ssim=0.75))
    with TensorBoardLogger(tmp_path) as logger:  # resumed after a kill, from step 50
        logger.log(report(100))
    logged = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert {(50, "loss", 0.5), (100, "psnr", 26.5), (100, "images_per_s", 8.0)} <= set(logged)
    assert not any(step == 50 and tag == "psnr" for step, tag, _ in logged)
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status]
    assert starts == [50, 100]  # the first event of step 100 is purged


def test_missing_extra_is_reported_before_anything_is_written(
    esrjax, tmp_path, recipe_dict, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(recipe_dict))
    result = esrjax("train", config, "-o", tmp_path / "run", "--tensorboard")
    assert result.code == 2 and 'pip install "tensorboardX>=' in result.err
    assert not (tmp_path / "run").exists()


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
