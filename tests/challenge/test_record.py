"""Result files: round trip, atomic writes, and errors that list every problem."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esrjax.bench import Timing
from esrjax.challenge import record
from esrjax.challenge.record import Result
from esrjax.errors import UnreadableFile


def test_result_survives_a_round_trip(tmp_path: Path, result: Result):
    path = tmp_path / "new folder" / "span.json"
    record.save_result(result, path)
    assert record.load_result(path) == result
    assert path.read_text().endswith("}\n")


def test_conditions_cover_dtype_shape_and_precision(timing: Timing):
    assert timing.conditions == "float32[1, 256, 256, 3], highest precision"
    assert replace(timing, precision="default").conditions != timing.conditions


def test_all_problems_of_a_file_are_reported(tmp_path: Path, result: Result):
    path = tmp_path / "span.json"
    record.save_result(result, path)
    content = json.loads(path.read_text())
    del content["team"]
    content["runtime"]["median_ms"] = "fast"
    path.write_text(json.dumps(content))
    with pytest.raises(UnreadableFile) as error:
        record.load_result(path)
    missing, invalid = error.value.problem.splitlines()[1:]
    assert missing.strip().startswith("team ")
    assert invalid.strip().startswith("runtime.median_ms ") and "'fast'" in invalid
    assert error.value.location == str(path) and error.value.remedy


def test_broken_json_is_reported_as_one_problem(tmp_path: Path):
    path = tmp_path / "span.json"
    path.write_text("{")
    with pytest.raises(UnreadableFile, match="is not JSON") as error:
        record.load_result(path)
    assert len(error.value.problem.splitlines()) == 2


def test_optional_fields_may_be_missing(tmp_path: Path, result: Result):
    path = tmp_path / "span.json"
    record.save_result(result, path)
    content = json.loads(path.read_text())
    del content["baseline"], content["protocol_timing"]
    del content["quality"]["Set5"]["psnr_per_image"]
    del content["runtime"]["driver"], content["runtime"]["implementation"]
    path.write_text(json.dumps(content))
    assert record.load_result(path) == result


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, result: Result, monkeypatch):
    path = tmp_path / "span.json"
    record.save_result(result, path)
    before = path.read_bytes()
    monkeypatch.setattr(record.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record.save_result(replace(result, team="Other"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.json")] == ["span.json"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
