"""An entry is the organisers' own: their keys, their types, and what `rank` reads of it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from esrjax.contest import results, rules
from esrjax.contest.factsheet import factsheet
from esrjax.contest.gates import gates
from esrjax.contest.record import Companion, Harness, Quality, Result
from esrjax.contest.rows import measured
from esrjax.contest.submission import NoMemory, WrongNumber, entry, number, results_json

RULES = rules.load("ntire2026")
SMALL = replace(RULES, floors=replace(RULES.floors, pictures=2))  # a contest of two pictures a set
SHARED = "psnr_valid psnr_test runtime_ms params_m flops_g".split()


@pytest.fixture
def whole(result: Result) -> Result:
    """A result with both sets."""
    sets = {
        "valid": ({"a": 27.0, "b": 26.5}, {"a": 30.0, "b": 10.0}),
        "test": ({"c": 28.0, "d": 27.25}, {"c": 9.0, "d": 11.0}),
    }
    rest = {"warm_up": 0, "shapes": 1, "compile_s": 1.0, "device": "Some GPU", "peak_mib": 812.5}
    return replace(
        result,
        method="net",
        team="Ours",
        quality={
            split: Quality(psnr=sum(psnr.values()) / 2, pictures=2, each=psnr)
            for split, (psnr, _) in sets.items()
        },
        harness={split: Harness(each=times, **rest) for split, (_, times) in sets.items()},
    )


def test_an_entry_has_the_organisers_keys_in_their_order_and_types(
    reference: Path, whole: Result
) -> None:
    official = json.loads((reference / "protocol/results.json").read_text())
    ours = json.loads(results_json("23_net", entry(whole)))["23_net"]
    for theirs in official.values():
        assert list(theirs) == list(ours)
        assert {key: type(value) for key, value in theirs.items()} == {
            key: type(value) for key, value in ours.items()
        }


def test_what_rank_reads_of_an_entry_is_the_row_of_the_result(tmp_path: Path, whole: Result):
    (tmp_path / "results.json").write_text(results_json("23_net", entry(whole)))
    (read,) = results.read(tmp_path / "results.json", SMALL)
    ours = measured(whole, SMALL, harness=True)
    assert {name: getattr(read, name) for name in SHARED} == pytest.approx(
        {name: getattr(ours, name) for name in SHARED}
    )
    assert (read.method, read.psnr_valid, read.runtime_ms) == ("net", 26.75, 15.0)
    for split in ("valid", "test"):
        assert replace(read.series[split], pictures=(), cold=True) == replace(
            ours.series[split], pictures=()
        )


def test_units_are_millions_and_thousand_millions(whole: Result) -> None:
    made = entry(whole)
    assert (made.num_parameters, made.flops, made.num_conv) == (0.150688, 9.833807872, 22)
    assert (made.valid_memory, made.valid_runtime) == (812.5, (30.0, 10.0))


def test_where_no_allocator_tells_the_compiler_does(whole: Result) -> None:
    def told(**memory: float | None) -> Result:
        runs = {split: replace(run, **memory) for split, run in whole.harness.items()}
        return replace(whole, harness=runs)

    assert entry(told(peak_mib=None, program_mib=20.5)).test_memory == 20.5
    with pytest.raises(NoMemory, match="Some GPU tells neither"):
        entry(told(peak_mib=None))


@pytest.mark.parametrize(
    ("team", "asked", "found"),
    [("XiaomiMM", None, 22), ("XiaomiMM", 22, 22), ("XiaomiMM", 77, 77), ("Ours", 23, 23)],
)
def test_a_team_has_its_number_or_the_one_it_was_given(team, asked, found):
    assert number(RULES, team, asked) == found


def test_a_number_that_would_give_results_to_another_team() -> None:
    with pytest.raises(WrongNumber) as caught:
        number(RULES, "Ours", 22)
    assert caught.value.problem == "--id 22 belongs to XiaomiMM"
    with pytest.raises(WrongNumber, match="knows no team 'Ours'"):
        number(RULES, "Ours", None)


def test_a_factsheet_says_every_figure_beside_the_baseline(whole: Result) -> None:
    beside = Companion(method="span", team="O", params=1, macs=1, runtime=whole.runtime)
    held = replace(whole, baseline=replace(beside, runtime=replace(whole.runtime, median_ms=9.5)))
    means = {split: (quality.psnr, 200) for split, quality in held.quality.items()}
    found = gates(means, RULES, "Ours")
    text = factsheet("23_net", held, entry(held), found, ["on DIV2K"], ["net.pth"])
    assert text.startswith("# 23_net, Ours\n")
    for line in (
        "| FLOPs | 9.8338 G |",
        "| memory, test | 812.50 MiB | the allocator's peak |",
        "| runtime, average | 15.000 ms |",
        "| runtime, one size | 5.000 ms | median of 40 runs at 256x256",
        "| the same of span | 9.500 ms |",
        "| PSNR, valid | 26.7500 dB | floor 26.90: -150 mdB as rounded",
        "## Training\n\n- on DIV2K\n",
        "- device: Some GPU",
    ):
        assert line in text
    assert "the same of" not in factsheet("", whole, entry(whole), (), [], [])
    assert set(asdict(entry(held))) and text.endswith("\n")
