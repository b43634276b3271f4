"""What TensorBoard is told."""

import json
import struct
import sys

import pytest

from esrjax.training.board import Board
from esrjax.training.meter import Report


def events(folder):
    """Every event in the files of a folder, as TFRecords hold them."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        rest = file.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            yield Event.FromString(rest[12 : 12 + length])
            rest = rest[16 + length :]


def report(step, **said):
    speed = {"steps_per_s": 2.0, "images_per_s": 8.0, "waiting": 0.25, "limit": "data"}
    return Report(stage="only", step=step, steps=100, loss=0.5, lr=1e-3, **speed, **said)


def test_every_number_is_told_by_step(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra log")
    with Board(tmp_path) as board:
        board.tell(report(50))
        board.tell(report(100, psnr=26.5, ssim=0.75))
    with Board(tmp_path) as again:  # after a kill, from step 50
        again.tell(report(100))
    told = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert {(50, "loss", 0.5), (100, "psnr", 26.5), (100, "images_per_s", 8.0)} <= set(told)
    assert not any(step == 50 and tag == "psnr" for step, tag, _ in told)
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status]
    assert starts == [50, 100]  # what the first had noted of step 100 is dropped


def test_the_extra_is_named_before_anything_is_written(esrjax, tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(said))
    told = esrjax("train", config, "-o", tmp_path / "run", "--tensorboard")
    assert told.code == 2 and 'pip install "esrjax[log]"' in told.err
    assert not (tmp_path / "run").exists()
