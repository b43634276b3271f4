"""The command line: help that imports nothing heavy, and output that programs can rely on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.main import get_command

from esrjax import registry
from esrjax.bench.bench import PROBE_SIZES
from esrjax.cli import PANELS, app
from esrjax.data.image_io import write_image
from esrjax.nn import ops

COMMANDS = [name for commands in PANELS.values() for name in commands]
GROUPS = {
    group.name: [command.name or command.callback.__name__ for command in typer.registered_commands]
    for group in app.registered_groups
    if (typer := group.typer_instance)
}
TREE = {
    "recipes": ["list", "show", "schema"],
    "metrics": ["list", "explain"],
    "submit": ["build", "check", "score", "merge"],
    "method": ["list", "show", "check", "new", "cost"],
    "weights": ["list", "get", "convert"],
    "data": ["list", "pack", "verify", "select"],
}
HEAVY = {"jax", "flax", "numpy", "torch", "optax", "PIL", "safetensors", "esrjax_plugins"}

SPAN = {
    "method": "span",
    "params": 150_688,
    "params_full": 150_688,
    "macs": 9_833_807_872,
    "macs_full": 9_833_807_872,
    "activations": 41_680_896,
    "convs": 22,
}
SPANV2 = {
    "method": "spanv2",
    "params": 139_104,
    "params_full": 139_104,
    "macs": 9_107_931_136,
    "macs_full": 9_107_931_136,
    "activations": 51_380_224,
    "convs": 22,
}
ROW = set(
    """method image_size engine implementation precision median_ms low_ms high_ms first_ms
    samples_ms compile_s compilations peak_mib torch_eager_ratio torch_eager_ratio_low
    torch_eager_ratio_high torch_compile_ratio torch_compile_ratio_low torch_compile_ratio_high
    macs bytes min_time_ms bound roofline_fraction""".split()
)


# --- help --------------------------------------------------------------------------------------


def test_help_of_every_command_imports_nothing_heavy():
    commands = [[], *([name] for name in COMMANDS), ["parity", "verify"]]
    commands += [[group, name] for group, names in GROUPS.items() for name in names]
    code = f"""
import contextlib, io, json, sys
from esrjax import registry
from esrjax.cli import app
for args in {commands}:
    for option in ("-h", "--help"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            app([*args, option], standalone_mode=False)
        assert "Usage:" in out.getvalue()
print(json.dumps(list(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in json.loads(run.stdout)} & HEAVY


def test_help_lists_every_command_in_its_panel(esrjax):
    result = esrjax("--help")
    assert result.code == 0
    assert all(f" {name} " in result.out for name in COMMANDS)
    positions = [result.out.index(f" {panel} ") for panel in PANELS]
    assert positions == sorted(positions)
    assert GROUPS == TREE


def test_every_argument_and_option_has_help():
    commands = dict(get_command(app).commands)
    for name in GROUPS:
        group = commands.pop(name)
        commands |= {f"{name} {command}": c for command, c in group.commands.items()}
    for name, command in commands.items():
        assert "Args:" not in command.help
        assert [param.name for param in command.params if not param.help] == [], name
        assert not any(param.secondary_opts for param in command.params), name


def test_version_and_shell_completion(esrjax, monkeypatch):
    result = esrjax("--version")
    assert result.code == 0 and result.out.startswith("esrjax ")
    assert "--install-completion" in esrjax("--help").out
    monkeypatch.setenv("_ESRJAX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "esrjax method ")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert set(TREE["method"]) <= set(esrjax().out.split())


def test_quiet_prints_no_notes_and_verbose_a_traceback(esrjax, tmp_path):
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    upscale = ("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png")
    noted = esrjax("rank", tmp_path, "--verbose")
    assert noted.code == 2 and "Traceback" in noted.err
    assert "Traceback" not in esrjax("rank", tmp_path).err
    packed = ("data", "verify", tmp_path)
    assert "1 image, LR: bicubic from HR" in esrjax(*packed).err
    for args in (("--quiet", *packed), (*packed, "--quiet")):
        assert esrjax(*args).err == ""
    both = esrjax("--quiet", *upscale, "--verbose")
    assert both.code == 2 and "--quiet" in both.err and not (tmp_path / "b.png").exists()


def test_unknown_option_is_reported(esrjax):
    result = esrjax("method", "list", "--jason")
    assert result.code == 2 and "No such option: --jason" in result.err


# --- methods -----------------------------------------------------------------------------------


def test_list_has_every_method(esrjax, crumbs, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, spanv2, crumb")
    rows = {row.pop("name"): row for row in esrjax("method", "list", "--json").json}
    assert rows["span"] == {
        "team": "EfficientSR Organizers",
        "scales": [2, 3, 4],
        "params": 150_688,
        "macs": 9_833_807_872,
        "weights": ["ntire2026"],
        "pretrained": True,
    }
    assert set(rows) == {"span", "spanv2", "crumb"}
    assert (rows["spanv2"]["team"], rows["spanv2"]["params"]) == ("XiaomiMM", 139_104)
    assert rows["crumb"] == {
        "team": "Bakery",
        "scales": [2, 4],
        "params": 30,
        "macs": 27 * 256 * 256,
        "weights": [],
        "pretrained": True,
    }


def test_second_list_is_the_same_imports_no_plugin_and_repeats_errors(
    esrjax, package, monkeypatch, tmp_path
):
    network = """
from esrjax.method import Method

FIGURES = {"params": 3, "macs": 27}
METHOD = Method(network=dict, team="Dü", paper="", license="", reported=FIGURES)
"""
    group = registry.METHOD_GROUP
    package("quick", network, group, {"quick": "METHOD"})
    package("broken", "import no_such_module", group, {"broken": "METHOD"}, "other")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, quick, broken")
    first = esrjax("method", "list", "--json")
    assert [row["name"] for row in first.json] == ["quick", "span"]
    assert first.err.count("'broken' cannot be loaded") == 1
    assert sys.modules.pop("fake_quick")
    assert esrjax("method", "list", "--json") == first
    assert "fake_quick" not in sys.modules
    table = esrjax("method", "list")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert esrjax("method", "list") == table and "fake_quick" in sys.modules


def test_list_from_the_cache_imports_no_jax(esrjax, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(registry.PLUGINS_ENV, "span")
    first = esrjax("method", "list", "--json")
    code = (
        "import sys; from esrjax.cli import app; app(standalone_mode=False); print([*sys.modules])"
    )
    command = [sys.executable, "-c", code, "method", "list", "--json"]
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    listed, _, modules = run.stdout.rpartition("\n[")
    assert json.loads(listed) == first.json
    assert not {"'jax'", "'flax'", "'esrjax_plugins.span'"} & set(modules.rstrip("]\n").split(", "))


def test_output_is_not_wrapped_without_a_terminal(esrjax, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, spanv2")
    lines = esrjax("method", "list").out.splitlines()
    assert lines[0].split() == "name team scales params macs weights pretrained".split()
    span = next(line for line in lines if line.startswith("span "))
    figures = "2, 3, 4 150,688 9,833,807,872 ntire2026 yes"
    assert span.split() == f"span EfficientSR Organizers {figures}".split()
    lines = esrjax("method", "show", "span").out.splitlines()
    assert "conv_cat ─ upsampler ─ shuffle" in next(line for line in lines if "conv_cat ─" in line)
    assert any(
        line.endswith("6c80f05048313289c6526e5fc9726688d7bb3dfdd6ae3c8b1e7dd09f601e5971")
        for line in lines
    )


def test_show_has_description_and_package(esrjax):
    method = esrjax("method", "show", "spanv2", "--json").json
    assert method["description"].startswith("SPANV2: the winner")
    assert method["package"].startswith("esrjax ")
    assert (method["name"], method["macs"]) == ("spanv2", 9_107_931_136)


@pytest.mark.parametrize("implementation", ops.IMPLEMENTATIONS)
@pytest.mark.parametrize("figures", [SPAN, SPANV2], ids=["span", "spanv2"])
def test_cost_is_the_same_with_every_implementation(esrjax, figures, implementation):
    with ops.implementation(implementation):
        assert esrjax("method", "cost", figures["method"], "--json").json == figures


def test_cost_depends_on_image_size_and_hparams(esrjax):
    half_side = esrjax("method", "cost", "span", "--image-size", 128, "--json").json
    half_area = esrjax("method", "cost", "span", "--image-size", "128x256", "--json").json
    assert (half_side["macs"], half_side["params"]) == (SPAN["macs"] // 4, SPAN["params"])
    assert (half_area["macs"], half_area["params"]) == (SPAN["macs"] // 2, SPAN["params"])
    larger = esrjax("method", "cost", "span", "--hparam", "channels=48", "--json").json
    square = 48 * 48 * 9 + 48  # eighteen in the blocks, conv_2 and the upsampler
    assert larger["params"] == (27 * 48 + 48) + 20 * square + (192 * 48 + 48)


def test_costs_of_modules_add_up_to_the_total(esrjax):
    cost = esrjax("method", "cost", "spanv2", "--per-module", "--json").json
    for figure in ("macs", "macs_full", "activations"):
        assert sum(module[figure] for module in cost["modules"]) == cost[figure]
    assert cost["modules"][0]["path"] == "block_1.c1"
    table = esrjax("method", "cost", "spanv2", "--per-module").out
    assert "block_5.guidance_map_conv" not in table and "block_5 " in table


# --- measurements ------------------------------------------------------------------------------


def test_bench_times_methods_interleaved(esrjax, crumbs, monkeypatch):
    monkeypatch.setitem(PROBE_SIZES, "cpu", (2**16, 64))
    args = "crumb loaf --image-size 16x16,8x24 --seconds 0.01 --json".split()
    report = esrjax("bench", *args).json
    assert set(report) == {"device", "machine", "peaks", "rows", "notes"}
    order = [(row["method"], row["image_size"]) for row in report["rows"]]
    assert order == [(name, size) for size in ("16x16", "8x24") for name in ("crumb", "loaf")]
    for row in report["rows"]:
        assert set(row) == ROW
        assert row["engine"] == "jax-cpu"
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["compile_s"] > 0


def test_doctor_reports_versions_device_and_methods(esrjax, crumbs, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, crumb")
    environment = esrjax("doctor", "--json").json
    assert environment["versions"]["jax"] and environment["device"]["platform"] == "cpu"
    assert environment["methods"]["crumb"] == "crumbs 0.3"
    assert "crumbs 0.3" in esrjax("doctor").out


def test_rank_reproduces_the_published_table(esrjax, reference):
    report = esrjax("rank", reference / "protocol/table1.csv", "--json").json
    assert len(report["rows"]) == 16
    ranked = [row for row in report["rows"] if row["ranked"]]
    assert [row["rank_main"] for row in ranked] == list(range(1, 15))
    first = ranked[0]
    assert first["team"] == "XiaomiMM"
    assert (round(first["score_runtime"], 2), round(first["score_params"], 2)) == (3.95, 6.30)
    assert (round(first["score_flops"], 2), round(first["score_main"], 2)) == (6.38, 4.43)
    assert (first["rank_runtime"], first["rank_params"], first["rank_flops"]) == (1, 5, 6)
    last = report["rows"][-1]
    assert (last["team"], last["ranked"], last["rank_main"]) == (
        "EfficientSR Organizers",
        False,
        None,
    )
    (note,) = report["notes"]
    assert all(part in note for part in ("IN2GM", "7th", "26.98 dB"))


@pytest.mark.parametrize("figures", ["exact", "printed"])
def test_rank_notes_the_wrong_raw_figure(esrjax, reference, figures):
    results = reference / "protocol/results.json"
    text = esrjax("rank", results, "--figures", figures).out
    (line,) = [line for line in text.splitlines() if line.startswith("XiaomiMM: ")]
    assert "1.59 G" in line and "9.11 G" in line
    notes = esrjax("rank", results, "--figures", figures, "--json").json["notes"]
    assert sum("1.59 G" in note for note in notes) == 1


def test_nan_becomes_null_in_json(esrjax, crumbs, tmp_path):
    golden = tmp_path / "golden.npz"
    np.savez(golden, x0=np.zeros((1, 3, 8, 8)), y0=np.full((1, 3, 32, 32), np.nan))
    result = esrjax("parity", "crumb", "--golden", golden, "--json")
    assert (result.code, result.json["passed"], result.json["max_abs_diff"]) == (1, False, None)
