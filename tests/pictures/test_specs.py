"""Specs: found by name, told apart by words, each a metric of its own."""

from dataclasses import replace

import pytest

from esrjax.pictures.specs import NTIRE, SPECS, UnknownSpec, Y, named


def test_specs_are_found_by_name() -> None:
    assert {name: named(name) for name in SPECS} == SPECS
    assert (named("ntire"), named("y")) == (NTIRE, Y)
    with pytest.raises(UnknownSpec) as caught:
        named("basic_y")
    assert str(caught.value) == (
        "there is no metric spec 'basic_y'\n"
        f"  rule:   the specs are {', '.join(SPECS)}\n"
        "  remedy: did you mean 'basicsr_y'?"
    )
    with pytest.raises(UnknownSpec, match="remedy: choose one of these"):
        named("lpips")


def test_no_two_specs_are_one_metric_or_say_the_same() -> None:
    metrics = [replace(spec, name="", used="") for spec in SPECS.values()]
    assert all(metrics.count(spec) == 1 for spec in metrics)
    assert len({spec.words for spec in SPECS.values()}) == len(SPECS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ntire", "RGB in one mean; output rounded to 8 bits; border 4"),
        ("y", "luma of BT.601 (16 to 235), rounded; output rounded to 8 bits; border 4"),
        ("rgb_truncated", "RGB in one mean; output truncated to 8 bits; border 4"),
        (
            "pyiqa_y_border0",
            "luma of full range, rounded for SSIM; output rounded to 8 bits; border 0; "
            "squared error + 1e-08; no SSIM below 0",
        ),
    ],
)
def test_the_words_follow_from_the_fields(name: str, words: str) -> None:
    assert SPECS[name].words == words
