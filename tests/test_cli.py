"""The command line: quick to ask, and what it answers has a form that programs can rely on."""

import json
import subprocess
import sys

import pytest

from esrjax import registry
from esrjax.cli import app
from esrjax.contest import roofline
from esrjax.network import ops

VERBS = [command.name or command.callback.__name__ for command in app.registered_commands]
GROUPS = [group.name for group in app.registered_groups]
OURS = "list show check new doctor convert parity cost upscale eval bench rank".split()
HEAVY = {"jax", "flax", "numpy", "torch", "optax", "PIL", "safetensors", "esrjax_plugins"}

SPAN = {
    "method": "span",
    "params": 150_688,
    "params_honest": 150_688,
    "macs": 9_833_807_872,
    "macs_honest": 9_833_807_872,
    "activations": 41_680_896,
    "convs": 22,
}
SPANV2 = {
    "method": "spanv2",
    "params": 139_104,
    "params_honest": 139_104,
    "macs": 9_107_931_136,
    "macs_honest": 9_107_931_136,
    "activations": 51_380_224,
    "convs": 22,
}
ROW = set(
    """method size engine body precision median_ms low_ms high_ms first_ms samples_ms compile_s
    compilations peak_mib ratio ratio_low ratio_high compiled_ratio compiled_ratio_low
    compiled_ratio_high macs bytes floor_ms bound roofline""".split()
)


def test_help_of_every_verb_imports_nothing_heavy():
    code = f"""
import contextlib, io, json, sys
from esrjax import registry
from esrjax.cli import app
for words in [[]] + [[verb] for verb in {VERBS + GROUPS}]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        app([*words, "--help"], standalone_mode=False)
    assert "Usage:" in out.getvalue()
print(json.dumps(list(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in json.loads(run.stdout)} & HEAVY


def test_help_lists_every_verb(esrjax):
    said = esrjax("--help")
    assert said.code == 0
    assert set(OURS) <= set(VERBS)
    assert all(f" {verb} " in said.out for verb in VERBS + GROUPS)


def test_an_option_that_no_verb_has_is_a_mistake(esrjax):
    said = esrjax("list", "--jason")
    assert said.code == 2 and "No such option: --jason" in said.err


def test_list_gives_every_method(esrjax, crumbs, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, spanv2, crumb")
    rows = {row.pop("name"): row for row in esrjax("list", "--json").json}
    assert rows["span"] == {
        "team": "EfficientSR Organizers",
        "scale": 4,
        "params": 150_688,
        "macs": 9_833_807_872,
        "weights": ["ntire2026"],
        "pretrained": True,
    }
    assert set(rows) == {"span", "spanv2", "crumb"}
    assert (rows["spanv2"]["team"], rows["spanv2"]["params"]) == ("XiaomiMM", 139_104)
    assert rows["crumb"] == {
        "team": "Bakery",
        "scale": 4,
        "params": 30,
        "macs": 27 * 256 * 256,
        "weights": [],
        "pretrained": True,
    }


def test_tables_and_cards_are_not_wrapped_where_there_is_no_terminal(esrjax, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, spanv2")
    lines = esrjax("list").out.splitlines()
    assert lines[0].split() == "name team scale params macs weights pretrained".split()
    span = next(line for line in lines if line.startswith("span "))
    assert (
        span.split() == "span EfficientSR Organizers 4 150,688 9,833,807,872 ntire2026 yes".split()
    )
    card = esrjax("show", "span").out.splitlines()
    assert "conv_cat ─ upsampler ─ shuffle" in next(line for line in card if "conv_cat ─" in line)
    assert any(
        line.endswith("6c80f05048313289c6526e5fc9726688d7bb3dfdd6ae3c8b1e7dd09f601e5971")
        for line in card
    )


def test_show_says_what_a_method_is(esrjax):
    shown = esrjax("show", "spanv2", "--json").json
    assert shown["card"].startswith("SPANV2: the winner")
    assert shown["origin"].startswith("esrjax ")
    assert (shown["name"], shown["macs"]) == ("spanv2", 9_107_931_136)


@pytest.mark.parametrize("body", ops.BODIES)
@pytest.mark.parametrize("figures", [SPAN, SPANV2], ids=["span", "spanv2"])
def test_cost_is_the_same_under_every_body(esrjax, figures, body):
    with ops.body(body):
        assert esrjax("cost", figures["method"], "--json").json == figures


def test_cost_grows_with_the_picture_and_with_the_sizes(esrjax):
    quarter = esrjax("cost", "span", "--side", 128, "--json").json
    assert (quarter["macs"], quarter["params"]) == (SPAN["macs"] // 4, SPAN["params"])
    wide = esrjax("cost", "span", "--size", "channels=48", "--json").json
    square = 48 * 48 * 9 + 48  # of eighteen in blocks, conv_2 and the upsampler
    assert wide["params"] == (27 * 48 + 48) + 20 * square + (192 * 48 + 48)


def test_parts_add_up_to_the_whole(esrjax):
    found = esrjax("cost", "spanv2", "--parts", "--json").json
    assert sum(part["macs"] for part in found["parts"]) == found["macs"]
    assert sum(part["activations"] for part in found["parts"]) == found["activations"]
    assert found["parts"][0]["path"] == "block_1.c1"
    table = esrjax("cost", "spanv2", "--parts").out
    assert "block_5.guidance_map_conv" not in table and "block_5 " in table


def test_bench_times_methods_in_turn(esrjax, crumbs, monkeypatch):
    monkeypatch.setitem(roofline.SIZES, "cpu", (2**16, 64))
    words = "crumb loaf --sizes 16x16,8x24 --seconds 0.01 --json".split()
    found = esrjax("bench", *words).json
    assert set(found) == {"device", "machine", "ceilings", "rows", "notes"}
    asked = [(row["method"], row["size"]) for row in found["rows"]]
    assert asked == [(name, size) for size in ("16x16", "8x24") for name in ("crumb", "loaf")]
    for row in found["rows"]:
        assert set(row) == ROW
        assert row["engine"] == "jax-cpu"
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["compile_s"] > 0


def test_doctor_knows_versions_device_and_methods(esrjax, crumbs, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, crumb")
    found = esrjax("doctor", "--json").json
    assert found["versions"]["jax"] and found["device"]["platform"] == "cpu"
    assert found["methods"]["crumb"] == "crumbs 0.3"
    assert "crumbs 0.3" in esrjax("doctor").out


def test_rank_reproduces_the_published_table(esrjax, reference):
    found = esrjax("rank", reference / "protocol/table1.csv", "--json").json
    assert len(found["rows"]) == 16
    ranked = [row for row in found["rows"] if row["ranked"]]
    assert [row["rank_main"] for row in ranked] == list(range(1, 15))
    first = ranked[0]
    assert first["team"] == "XiaomiMM"
    assert (round(first["score_runtime"], 2), round(first["score_params"], 2)) == (3.95, 6.30)
    assert (round(first["score_flops"], 2), round(first["score_main"], 2)) == (6.38, 4.43)
    assert (first["rank_runtime"], first["rank_params"], first["rank_flops"]) == (1, 5, 6)
    last = found["rows"][-1]
    assert (last["team"], last["ranked"], last["rank_main"]) == (
        "EfficientSR Organizers",
        False,
        None,
    )
    assert found["notes"] == ["IN2GM: ranked 7th by the organisers at 26.98 dB on test."]


@pytest.mark.parametrize("figures", ["exact", "printed"])
def test_rank_says_which_raw_figure_is_wrong(esrjax, reference, figures):
    results = reference / "protocol/results.json"
    text = esrjax("rank", results, "--figures", figures).out
    assert "\n\nXiaomiMM: results.json gives 1.59 G FLOPs, because " in text
    assert "Table 1 has 9.11 G.\n" in text
    notes = esrjax("rank", results, "--figures", figures, "--json").json["notes"]
    assert sum("1.59 G" in note for note in notes) == 1


def test_numbers_that_are_none_are_null(esrjax, crumbs, tmp_path):
    import numpy as np

    golden = tmp_path / "golden.npz"
    np.savez(golden, x0=np.zeros((1, 3, 8, 8)), y0=np.full((1, 3, 32, 32), np.nan))
    said = esrjax("parity", "crumb", "--golden", golden, "--json")
    assert (said.code, said.json["passed"], said.json["max_abs"]) == (1, False, None)
