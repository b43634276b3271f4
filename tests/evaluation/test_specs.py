"""Metric specs: lookup by name, distinct definitions, summaries."""

from dataclasses import replace

import pytest

from esrjax.evaluation.metrics import NTIRE, SPECS, UnknownMetricSpec, Y, get_spec


def test_specs_are_found_by_name() -> None:
    assert {name: get_spec(name) for name in SPECS} == SPECS
    assert (get_spec("ntire"), get_spec("y")) == (NTIRE, Y)
    with pytest.raises(UnknownMetricSpec) as caught:
        get_spec("basic_y")
    assert "'basic_y'" in caught.value.problem and ", ".join(SPECS) in caught.value.rule
    assert "'basicsr_y'" in caught.value.remedy
    with pytest.raises(UnknownMetricSpec, match="'lpips'"):
        get_spec("lpips")


def test_definitions_and_summaries_are_distinct() -> None:
    definitions = [replace(spec, name="", used_by="") for spec in SPECS.values()]
    assert all(definitions.count(definition) == 1 for definition in definitions)
    assert len({spec.summary for spec in SPECS.values()}) == len(SPECS)


@pytest.mark.parametrize(
    ("name", "clauses"),
    [
        ("ntire", ["RGB", "output rounded to 8 bits", "border 4"]),
        ("y", ["BT.601 luma (16 to 235), rounded;", "output rounded to 8 bits", "border 4"]),
        ("rgb_truncated", ["RGB", "output truncated to 8 bits", "border 4"]),
        (
            "pyiqa_y_border0",
            [
                "BT.601 luma (0 to 255), rounded for SSIM",
                "output rounded to 8 bits",
                "border 0",
                "MSE + 1e-08",
                "negative SSIM clipped",
            ],
        ),
    ],
)
def test_summary_follows_from_the_fields(name: str, clauses: list[str]) -> None:
    assert all(clause in SPECS[name].summary for clause in clauses)
