"""A result survives its file, and a broken file says all that is wrong with it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esrjax.contest import record
from esrjax.contest.record import Result, Timing


def test_a_result_survives_its_file(tmp_path: Path, result: Result):
    path = tmp_path / "new folder" / "span.json"
    record.save(result, path)
    assert record.load(path) == result
    assert path.read_text().endswith("}\n")


def test_conditions_are_what_runtimes_must_share(timing: Timing):
    assert timing.conditions == "float32[1, 256, 256, 3], highest precision"
    assert replace(timing, precision="default").conditions != timing.conditions


def test_a_broken_file_says_all_that_is_wrong(tmp_path: Path, result: Result):
    path = tmp_path / "span.json"
    record.save(result, path)
    said = json.loads(path.read_text())
    del said["team"]
    said["runtime"]["median_ms"] = "fast"
    path.write_text(json.dumps(said))
    with pytest.raises(record.ResultError) as error:
        record.load(path)
    assert str(error.value).splitlines()[:4] == [
        "the result has 2 mistakes:",
        "    team is missing",
        "    runtime.median_ms should be a valid number, found 'fast'",
        f"  place:  {path}",
    ]


def test_what_is_not_json_is_one_mistake(tmp_path: Path):
    path = tmp_path / "span.json"
    path.write_text("{")
    with pytest.raises(record.ResultError, match="1 mistake:\n    the whole is not JSON"):
        record.load(path)


def test_a_file_of_an_earlier_version_still_loads(tmp_path: Path, result: Result):
    path = tmp_path / "span.json"
    record.save(result, path)
    said = json.loads(path.read_text())
    del said["baseline"], said["harness"], said["quality"]["Set5"]["each"]
    del said["runtime"]["driver"], said["runtime"]["body"]
    path.write_text(json.dumps(said))
    assert record.load(path) == result


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, result: Result, monkeypatch):
    path = tmp_path / "span.json"
    record.save(result, path)
    before = path.read_bytes()
    monkeypatch.setattr(record.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.save(replace(result, team="Else"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.glob("*.json")] == ["span.json"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
