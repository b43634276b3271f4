"""Command-line errors: exit code 2, no traceback, and problem, location, rule and remedy."""

import json
import re
import sys

import numpy as np
import pytest
from optional import torch
from PIL import Image

from esrjax import registry
from esrjax.data.image_io import write_image
from esrjax.errors import log_note
from esrjax.nn.ops import find_kernel

ERROR = re.compile(
    r"([^\n]+: \d+ images?, LR: [^\n]+\n)*"  # of datasets that were listed before
    r"esrjax: (?P<problem>.+?)(\n  location: (?P<location>.+?))?"
    r"\n  rule: +(?P<rule>.+?)\n  remedy: +(?P<remedy>.+)\n",
    re.DOTALL,
)
PLUGIN = """
from esrjax.method import Method
METHOD = Method(network=dict, team="theirs", paper="unspecified", license="MIT")
"""


def file_sizes(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def user_error(esrjax, tmp_path):
    """Runs a command that must fail with a `UserError` and write no file; returns its parts."""

    def run(*args):
        before = file_sizes(tmp_path)
        result = esrjax(*args)
        assert (result.code, result.out) == (2, "")
        assert "Traceback" not in result.err
        assert file_sizes(tmp_path) == before
        match = ERROR.fullmatch(result.err)
        assert match, result.err
        return match.groupdict()

    return run


@pytest.fixture
def install_plugin(tmp_path, monkeypatch):
    """Puts a package that registers the methods `names` on the path, as pip would."""

    def install(package, source, *names):
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:METHOD" for name in names]
        (info / "entry_points.txt").write_text("\n".join(["[esrjax.methods]", *lines]))
        monkeypatch.syspath_prepend(folder)

    return install


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


# --- commands and options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(
            "plan quick",
            "list",
            "show span",
            "check span",
            "new net",
            "cost span",
            "convert span a",
        ),
        *("method spam", "recipes", "submit", "train --plan", "method cost span --size channels=8"),
        "bench span --seconds soon",
    ],
)
def test_unknown_command_or_option_is_a_usage_error(esrjax, command):
    result = esrjax(*command.split())
    assert result.code == 2 and "Traceback" not in result.out + result.err
    assert "Usage: esrjax" in result.out + result.err


@pytest.mark.parametrize(
    ("command", "suggestion"),
    [
        ("upscael a.png", "upscale"),
        ("list", "method list"),
        ("cost span", "method cost"),
        ("convert span", "weights convert"),
        ("recipes shwo quick", "show"),
    ],
)
def test_unknown_command_comes_with_a_suggestion(esrjax, command, suggestion):
    result = esrjax(*command.split())
    assert result.code == 2 and f"'{suggestion}'" in " ".join(result.err.split())


# --- methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["method show spam", "method cost spam", "method check spam", "bench spam"]
)
def test_unknown_method_is_reported_with_a_suggestion(user_error, command):
    error = user_error(*command.split())
    assert "'spam'" in error["problem"] and "'span'" in error["remedy"]
    assert "esrjax.methods" in error["rule"]


def test_broken_plugin_affects_only_its_own_method(user_error, install_plugin, esrjax, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, bad")
    install_plugin("broken", "import no_such_module", "bad")
    error = user_error("method", "show", "bad")
    assert "'bad'" in error["problem"]
    assert "ModuleNotFoundError: No module named 'no_such_module'" in error["problem"]
    assert "broken:METHOD" in error["location"] and "broken 1.0" in error["location"]
    result = esrjax("method", "list", "--json")
    assert result.code == 0 and [row["name"] for row in result.json] == ["span"]
    assert "'bad'" in result.err


def test_plugin_with_a_failing_network_is_left_out_of_the_list(install_plugin, esrjax, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, odd")
    install_plugin("odd", PLUGIN, "odd")  # a dict is not a network
    result = esrjax("method", "list", "--json")
    assert result.code == 0 and [row["name"] for row in result.json] == ["span"]
    assert "odd" in result.err and "Traceback" not in result.err


def test_method_registered_by_two_packages_is_reported(user_error, install_plugin):
    install_plugin("first", PLUGIN, "contested")
    install_plugin("second", PLUGIN, "contested")
    error = user_error("method", "show", "contested")
    assert "'contested'" in error["problem"]
    assert all(
        entry in error["location"]
        for entry in ("first 1.0 (first:METHOD)", "second 1.0 (second:METHOD)")
    )


def test_operation_with_two_kernels_runs_its_reference_and_says_so(
    esrjax, package, image, tmp_path
):
    package("theirs", "1 / 0", "esrjax.kernels", {"gated_residual": "KERNEL"})
    find_kernel.cache_clear()
    log_note.cache_clear()
    result = esrjax("upscale", image, "-o", tmp_path / "big.png", "--engine", "jax")
    find_kernel.cache_clear()
    assert result.code == 0 and "'gated_residual'" in result.err
    assert "theirs 1.0 (fake_theirs:KERNEL)" in result.err and "reference" in result.err


@pytest.mark.parametrize("name", ["span", "My Net", "class"])
def test_invalid_name_of_a_new_method_is_reported(user_error, tmp_path, name):
    assert f"'{name}'" in user_error("method", "new", name, "-o", tmp_path / "mine")["problem"]


def test_new_method_does_not_overwrite_a_folder(user_error, tmp_path, image):
    error = user_error("method", "new", "my_net", "-o", tmp_path)
    assert f"'{tmp_path}'" in error["problem"] and "-o" in error["remedy"]


def test_ensemble_cannot_be_checked_or_timed(user_error, crumbs):
    for command in ("method check crumbs", "bench crumbs"):
        error = user_error(*command.split())
        assert "'crumbs'" in error["problem"] and "ensemble" in error["problem"]
        assert "crumb, loaf" in error["remedy"]


# --- checkpoints -------------------------------------------------------------------------------


def test_method_without_weights_is_reported(user_error, monkeypatch, tmp_path, image):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))  # no weights are downloaded there
    error = user_error("upscale", image, "--method", "rfdn_span", "-o", tmp_path / "big.png")
    assert "rfdn_span" in error["problem"]
    assert "ntire2026 (" in error["rule"]
    assert "`esrjax weights get rfdn_span`" in error["remedy"]


def test_every_mismatched_tensor_is_listed(user_error, crumbs, tmp_path):
    path, target = tmp_path / "other.pth", tmp_path / "out.safetensors"
    torch.save({"filter.weight": torch.ones(3, 1, 5, 5), "filters.bias": torch.ones(3)}, path)
    error = user_error("weights", "convert", "crumb", path, "-o", target)
    summary, missing, mismatch, unexpected = error["problem"].splitlines()
    assert "3 of 3 tensors" in summary
    assert "filter.bias (3,)" in missing and "filters.bias" in missing
    assert all(part in mismatch for part in ("filter.weight", "(3, 1, 5, 5)", "(3, 1, 3, 3)"))
    assert "filters.bias (3,)" in unexpected
    assert str(path) in error["location"] and "crumb" in error["location"]


class CreatesFolder:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_checkpoint_with_code_is_not_executed(user_error, crumbs, tmp_path):
    torch.save({"filter.weight": CreatesFolder(tmp_path / "ran")}, tmp_path / "evil.pth")
    output = tmp_path / "out.safetensors"
    error = user_error("weights", "convert", "crumb", tmp_path / "evil.pth", "-o", output)
    assert "code" in error["problem"] and "mkdir" in error["rule"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.pth", "junk.pth", "junk.safetensors", "."])
def test_unreadable_checkpoint_is_reported(user_error, crumbs, tmp_path, name):
    for junk in ("junk.pth", "junk.safetensors"):
        (tmp_path / junk).write_bytes(b"not tensors")
    error = user_error("method", "cost", "crumb", "--checkpoint", tmp_path / name)
    assert error["location"].startswith(str(tmp_path))


def test_weights_of_another_method_are_reported(user_error, crumbs, image, tmp_path):
    options = ["--method", "crumb", "--checkpoint", crumbs / "crumbs/loaf.safetensors"]
    error = user_error("upscale", image, *options, "-o", tmp_path / "big.png")
    assert "'loaf'" in error["problem"] and "'crumb'" in error["problem"]
    assert error["location"].endswith("loaf.safetensors")
    assert "'loaf'" in error["remedy"]


@pytest.mark.parametrize(
    ("hparam", "value"),
    [
        ("channels", "'channels'"),
        ("=48", "'=48'"),
        ("width=48", "width"),
        ("channels=wide", "channels='wide'"),
        ("channels=0", "channels=0"),
        ("channels=-3", "channels=-3"),
    ],
)
def test_invalid_hparam_is_reported(user_error, hparam, value):
    assert value in user_error("method", "cost", "span", "--hparam", hparam)["problem"]


@pytest.mark.parametrize(
    ("hparam", "values"),
    [
        ("extra_scales=[7]", ["1, 2, 3, 4", "7"]),
        ("num_heads=7", ["180", "7"]),
        ("window_size=6", ["6"]),
    ],
)
def test_hparams_that_no_network_can_have_are_reported(user_error, hparam, values):
    error = user_error("method", "cost", "hat", "--hparam", hparam, "--hparam", "num_groups=1")
    assert f"{hparam} num_groups=1" in error["problem"]
    reason = error["problem"].partition("num_groups=1")[2]
    assert all(value in reason for value in values)


def test_hparams_that_do_not_fit_the_weights_are_reported(user_error, crumbs, tmp_path):
    weights = crumbs / "crumbs/crumb.safetensors"
    options = ["--hparam", "kernel_size=5", "-o", tmp_path / "out.safetensors"]
    error = user_error("weights", "convert", "crumb", weights, *options)
    assert all(
        part in error["problem"] for part in ("filter.weight", "(3, 1, 3, 3)", "(3, 1, 5, 5)")
    )
    assert error["location"].endswith("kernel_size=5")


def test_checkpoint_without_a_name_is_ambiguous_for_two_methods(user_error, crumbs, tmp_path):
    error = user_error("eval", "crumb", "loaf", "--data", tmp_path, "--checkpoint", "a.pth")
    assert "'a.pth'" in error["problem"]
    assert "--checkpoint crumb=a.pth" in error["remedy"]
    error = user_error("eval", "crumbs", "--data", tmp_path, "--checkpoint", "a.pth")
    assert "crumb, loaf" in error["rule"]


def test_suffix_that_contradicts_the_format_is_reported(user_error, crumbs, tmp_path):
    weights = crumbs / "crumbs/crumb.safetensors"
    for format, name in (("torch", "a.safetensors"), ("safetensors", "a.pth")):
        options = ["-o", tmp_path / name, "--to", format]
        error = user_error("weights", "convert", "crumb", weights, *options)
        assert repr(name) in error["problem"] and repr(format) in error["problem"]


# --- images and datasets -----------------------------------------------------------------------


def test_truncated_image_is_reported(user_error, crumbs, image, tmp_path):
    image.write_bytes(image.read_bytes()[:300])
    error = user_error("upscale", image, "--method", "crumb", "-o", tmp_path / "big.png")
    assert f"'{image}'" in error["problem"]


def test_too_small_image_is_reported(user_error, crumbs, tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "tiny.png")
    options = ["--method", "crumb", "-o", tmp_path / "big.png"]
    error = user_error("upscale", tmp_path / "tiny.png", *options)
    assert "7 x 5" in error["problem"]
    assert "crumb" in error["rule"] and "6" in error["rule"]
    error = user_error("method", "cost", "crumb", "--image-size", 5)
    assert "5 x 5" in error["problem"]
    error = user_error("bench", "crumb", "--image-size", "8x8,5x9")
    assert "9 x 5" in error["problem"]


def test_unwritable_image_is_reported(user_error, crumbs, image):
    error = user_error("upscale", image, "--method", "crumb", "-o", image / "big.png")
    assert f"'{image}/big.png'" in error["problem"] and f"'{image}'" in error["problem"]
    error = user_error("upscale", image, "--method", "crumb", "-o", "big.gif")
    assert "'.gif'" in error["problem"]


def test_several_images_cannot_go_into_one_file(user_error, crumbs, image, tmp_path):
    Image.new("RGB", (7, 9)).save(tmp_path / "other.png")
    options = ["--method", "crumb", "-o", tmp_path / "big.png"]
    error = user_error("upscale", image, tmp_path / "other.png", *options)
    assert "2 " in error["problem"] and "big.png'" in error["problem"]


def test_unwritable_checkpoint_or_results_are_reported(user_error, crumbs, image, tmp_path):
    weights = crumbs / "crumbs/crumb.safetensors"
    error = user_error("weights", "convert", "crumb", weights, "-o", image / "a.safetensors")
    assert error["location"] == f"{image}/a.safetensors"
    error = user_error("eval", "crumb", "--data", tmp_path, "-o", image)
    assert f"'{image}'" in error["problem"]


def test_lr_and_hr_of_different_sizes_are_reported(user_error, crumbs, tmp_path):
    for folder, name, size in (("HR", "a", (32, 32)), ("LR_bicubic_X4", "ax4", (8, 7))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", size).save(tmp_path / folder / f"{name}.png")
    error = user_error("eval", "crumb", "--data", tmp_path)
    assert "7x8" in error["problem"] and "32x32" in error["problem"]
    assert "a.png' and '" in error["location"]


def test_unknown_spec_or_dataset_is_reported(user_error, crumbs, monkeypatch, tmp_path):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    (tmp_path / "Photos").mkdir()
    error = user_error("eval", "crumb", "--data", "Photos", "--spec", "psnr")
    assert "'psnr'" in error["problem"]
    assert all(name in error["rule"] for name in ("ntire", "basicsr_y", "esrjax.metrics"))
    error = user_error("eval", "crumb", "--data", "Photo")
    assert "'Photo'" in error["problem"] and "'Photos'" in error["remedy"]


@pytest.mark.parametrize("command", ["bench", "method cost"])
@pytest.mark.parametrize("size", ["", "0", "16x", "16x0", "8x8x8", "axb", "-4x4"])
def test_invalid_image_size_is_reported(user_error, command, size):
    error = user_error(*command.split(), "span", "--image-size", size)
    assert "--image-size" in error["problem"] and repr(size) in error["problem"]
    assert "--image-size 256x256" in error["remedy"]


def test_one_invalid_image_size_of_several_is_reported(user_error):
    assert "'axb'" in user_error("bench", "span", "--image-size", "16x16,axb")["problem"]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ("--precision float16", ["--precision", "'float16'"]),
        ("--implementation auto,auto", ["--implementation", "'auto,auto'"]),
        ("--engine all --precision bfloat16", ["--precision", "--engine all"]),
        ("--torch-compile", ["--torch-compile", "--torch"]),
        ("--torch net.py", ["'net.py'"]),
        ("--torch net.py:Net", ["'net.py'"]),
    ],
)
def test_invalid_options_of_bench_are_reported(user_error, crumbs, options, values):
    problem = user_error("bench", "crumb", *options.split())["problem"]
    assert all(value in problem for value in values)


def test_ambiguous_or_broken_torch_class_of_bench_is_reported(user_error, crumbs, tmp_path):
    error = user_error("bench", "crumb", "loaf", "--torch", "net.py:Net")
    assert "'net.py:Net'" in error["problem"]
    assert "--torch crumb=net.py:Net" in error["remedy"]
    net = tmp_path / "net.py"
    net.write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    error = user_error("bench", "crumb", "--image-size", "8x8", "--torch", f"{net}:Net")
    assert "NotImplementedError" in error["problem"]
    assert "'Net'" in user_error("bench", "crumb", "--torch", f"{net}:Ner")["remedy"]
    net.write_text("import torch\nclass Net(:\n")
    error = user_error("bench", "crumb", "--torch", f"{net}:Net")
    assert "SyntaxError" in error["problem"]


# --- results -----------------------------------------------------------------------------------


def test_ensemble_cannot_be_ranked(user_error, crumbs, tmp_path):
    error = user_error("eval", "crumbs", "--data", tmp_path, "-o", tmp_path / "results")
    assert "'crumbs'" in error["problem"] and "ensemble" in error["problem"]


def test_golden_of_another_network_is_reported(user_error, crumbs, tmp_path):
    x, y = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 3, 32, 32), np.float32)
    golden = tmp_path / "golden.npz"
    np.savez(golden, x0=x, y0=y, act_block_1=y)
    error = user_error("parity", "crumb", "--golden", golden)
    assert all(part in error["problem"] for part in ("'act_block_1'", "'block_1'", "filter"))
    assert error["location"] == str(golden)
    np.savez(golden, x0=x, y0=y[..., 1:])
    assert "(1, 3, 32, 31)" in user_error("parity", "crumb", "--golden", golden)["problem"]
    np.savez(golden, x0=x)
    problem = user_error("parity", "crumb", "--golden", golden)["problem"]
    assert "x0" in problem and "y0" in problem
    golden.write_bytes(b"PK")
    assert ".npz" in user_error("parity", "crumb", "--golden", golden)["problem"]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ([], []),
        (["--golden", "a", "--torch", "a"], ["--golden", "--torch"]),
        (["--golden", "a", "--data", "Set5"], ["--golden", "--data"]),
        (["--torch", "net.py"], ["'net.py'"]),
        (["--torch", "net.py:Net"], ["'net.py'"]),
        (["--torch", "a:Net", "--torch-args", "{"], ["--torch-args '{'"]),
        (["--torch", "a:Net", "--torch-args", "[1]"], ["--torch-args '[1]'"]),
        (["--torch", "a:Net", "-o", "a.txt"], ["a.txt"]),
        (["--torch", "a:Net", "-o", "a.safetensors"], ["a.safetensors"]),
    ],
)
def test_invalid_options_of_parity_are_reported(user_error, crumbs, options, values):
    problem = user_error("parity", "crumb", *options)["problem"]
    assert all(value in problem for value in values)


def test_torch_class_that_does_not_fit_the_weights_is_reported(user_error, crumbs, tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\nclass Net(nn.Conv2d): pass\n")
    options = ["--torch", f"{file}:Net", "--torch-args"]
    error = user_error("parity", "crumb", *options, "{}")
    assert "Net" in error["problem"] and "missing a required argument" in error["problem"]
    args = '{"in_channels": 3, "out_channels": 3, "kernel_size": 3}'
    summary, *tensors = user_error("parity", "crumb", *options, args)["problem"].splitlines()
    assert "4 tensors" in summary and "Net" in summary
    assert [re.search(r"(filter\.)?(weight|bias) \(.*\)", line)[0] for line in tensors] == [
        "weight (3, 3, 3, 3)",
        "bias (3,)",
        "filter.bias (3,)",
        "filter.weight (3, 1, 3, 3)",
    ]


def test_file_without_a_parity_report_is_reported(user_error, crumbs, tmp_path):
    file = tmp_path / "c.json"
    assert str(file) in json.dumps(user_error("parity", "verify", file))
    file.write_text('{"format": 3, "pased": true}')
    error = user_error("parity", "verify", file)
    assert "format should be 1 or 2, found 3" in error["problem"]
    assert "pased" in error["problem"] and "'passed'" in error["problem"]
    bare = crumbs / "crumbs/crumb.safetensors"
    assert str(bare) in json.dumps(user_error("parity", "verify", bare))


def test_missing_or_malformed_results_are_reported(user_error, tmp_path):
    assert f"'{tmp_path}/none'" in user_error("rank", tmp_path / "none")["problem"]
    (tmp_path / "results.json").write_text(json.dumps([1]))
    assert "results.json" in user_error("rank", tmp_path / "results.json")["problem"]


@pytest.mark.parametrize("option", ["--protocol-timing", "--no-baseline"])
def test_timing_option_of_eval_without_output_is_reported(user_error, option):
    error = user_error("eval", "span", "--data", "Set5", option)
    assert option in error["problem"] and "-o" in error["problem"]


TABLE = "team,method,psnr_val,psnr_test,runtime_avg_ms,params_m,flops_g\n"
LINES = "EfficientSR Organizers,SPAN,26.94,27.01,7.65,0.151,9.83\nOurs,net,26.9,27,5,0.1,5\n"


@pytest.fixture
def results_csv(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE + LINES)
    return path


def test_invalid_what_if_is_reported(user_error, results_csv):
    error = user_error("rank", results_csv, "--what-if", "net:speed=1", "--what-if", "net")
    assert "'net:speed=1', 'net'" in error["problem"]
    error = user_error("rank", results_csv, "--what-if", "nets:runtime=-1")
    assert "'nets'" in error["problem"] and "'net'" in error["remedy"]
    error = user_error("rank", results_csv, "--what-if", "net:runtime=-9")
    assert "runtime_ms" in error["problem"] and "-4.0" in error["problem"]


def test_missing_or_malformed_published_table_is_reported(user_error, results_csv, tmp_path):
    error = user_error("rank", results_csv, "--against", tmp_path / "print.csv")
    assert f"'{tmp_path}/print.csv'" in error["problem"]
    (tmp_path / "print.csv").write_text("team,psnr_val\nOurs,high\n,27\n")
    error = user_error("rank", results_csv, "--against", tmp_path / "print.csv")
    assert "2 errors" in error["problem"] and error["location"] == str(tmp_path / "print.csv")


def test_latex_with_further_tables_is_reported(user_error, results_csv):
    error = user_error("rank", results_csv, "--format", "latex", "--sensitivity")
    assert "--format latex" in error["problem"]


# --- the report --------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A table with only the baseline, and a dataset of one image."""
    write_image(tmp_path / "Photos/a.png", np.zeros((64, 64, 3), np.uint8))
    head = "team,method,runtime_avg_ms,params_m,flops_g"
    (tmp_path / "table.csv").write_text(f"{head}\nEfficientSR Organizers,SPAN,8,0.15,10\n")
    return tmp_path / "table.csv"


def test_invalid_images_of_a_report_are_reported(user_error, table, tmp_path):
    page, folder = tmp_path / "report.html", tmp_path / "Photos"
    error = user_error("report", table, "-o", page, "--images", f"mine={folder}")
    assert "--data" in error["remedy"]
    error = user_error("report", table, "-o", page, "--data", folder, "--images", folder)
    assert f"--images {str(folder)!r}" in error["problem"]
    duplicate = ("--images", f"mine={folder}") * 2
    error = user_error("report", table, "-o", page, "--data", folder, *duplicate)
    assert "'mine'" in error["problem"]
    error = user_error("report", table, "-o", page, "--data", folder, "--checkpoint", "spam=a.pth")
    assert "'span'" in error["remedy"]


def test_missing_or_mismatched_images_of_a_report_are_reported(user_error, table, tmp_path):
    page, folder = tmp_path / "report.html", tmp_path / "Photos"
    args = ("report", table, "-o", page, "--data", folder, "--images")
    error = user_error(*args, f"mine={tmp_path / 'none'}")
    assert all(part in error["problem"] for part in ("mine", f"'{tmp_path / 'none'}'", " a"))
    write_image(tmp_path / "sr/ax4.png", np.zeros((60, 64, 3), np.uint8))
    error = user_error(*args, f"mine={tmp_path / 'sr'}")
    assert "60x64" in error["problem"] and "mine" in error["location"]


def test_unwritable_report_is_reported(user_error, table, tmp_path):
    for path in (tmp_path, table):
        error = user_error("report", table, "-o", path)
        assert f"'{path}'" in error["problem"]
    error = user_error("report", table, "-o", table / "report.html")
    assert error["location"] == str(table / "report.html")
    assert f"'{table}' is not a folder" in error["problem"]


# --- self-ensemble, windows and fusion ---------------------------------------------------------


@pytest.mark.parametrize("windows", ["", "100,", "wide", "100:much", "100,100:2", "16x16"])
def test_malformed_windows_are_reported(user_error, crumbs, image, tmp_path, windows):
    args = ["upscale", image, "--method", "crumb", "-o", tmp_path / "big.png"]
    error = user_error(*args, "--windows", windows)
    assert "--windows" in error["problem"] and repr(windows) in error["problem"]
    assert "--windows 100,200,300:1.2" in error["remedy"]


@pytest.mark.parametrize("windows", ["11", "20,-20", "20:0", "20:-1", "20:nan"])
def test_windows_that_do_not_suit_the_method_are_reported(
    user_error, crumbs, image, tmp_path, windows
):
    args = ["upscale", image, "--method", "crumb", "-o", tmp_path / "big.png"]
    error = user_error(*args, "--windows", windows)
    assert "crumb" in error["rule"] and "12" in error["rule"]


def test_results_need_a_single_pass(user_error, crumbs, tmp_path):
    args = ["eval", "crumb", "--data", tmp_path, "-o", tmp_path / "results"]
    for option in (["--self-ensemble"], ["--windows", "100"]):
        problem = user_error(*args, *option)["problem"]
        assert option[0] in problem and "-o" in problem


@pytest.fixture
def folders(tmp_path):
    """Three folders: `b` holds an image of another size, `c` one that the others lack."""
    for folder, names in (("a", "xy"), ("b", "xy"), ("c", "xyz")):
        for name in names:
            size = (8, 9) if (folder, name) == ("b", "y") else (8, 8)
            write_image(tmp_path / folder / f"{name}.png", np.zeros((*size, 3), np.uint8))
    return [tmp_path / folder for folder in "abc"]


def test_folders_that_cannot_be_fused_are_reported(user_error, folders, tmp_path):
    a, b, c = folders
    output = ("-o", tmp_path / "out")
    problem = user_error("fuse", a, c, *output)["problem"]
    assert f"'{a}'" in problem and " z" in problem
    user_error("fuse", a, *output)
    error = user_error("fuse", a, b, "-o", tmp_path / "out.png")
    assert f"'{tmp_path / 'out.png'}'" in error["problem"]
    assert str(tmp_path / "none") in user_error("fuse", a, tmp_path / "none", *output)["problem"]


def test_images_of_different_sizes_are_reported_before_fusing(user_error, folders, tmp_path):
    a, b, _ = folders
    error = user_error("fuse", a, b, "-o", tmp_path / "out")
    assert "8x8, 8x9" in error["problem"]
    assert error["location"] == f"{a / 'y.png'}, {b / 'y.png'}"


@pytest.mark.parametrize("weights", ["1", "1,-1", "0,0", "1,inf", "half,half"])
def test_invalid_weights_of_fuse_are_reported(user_error, folders, tmp_path, weights):
    args = ["fuse", *folders[:2], "-o", tmp_path / "out"]
    assert weights in user_error(*args, "--weights", weights)["problem"].replace(", ", ",")
    problem = user_error(*args, "--weights", weights, "--adaptive")["problem"]
    assert "--weights" in problem and "--adaptive" in problem


def test_ensemble_is_only_compared_with_a_golden(user_error, crumbs):
    for options in ([], ["--torch", "twin.py:Twin"], ["--golden", "a.npz", "-o", "a.json"]):
        error = user_error("parity", "crumbs", *options)
        assert "'crumbs'" in error["problem"] and "ensemble" in error["problem"]
        assert "--golden" in error["remedy"]


# --- selections --------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["clip", "clip:", "colours", "vgg:a.onnx"])
def test_unknown_features_are_reported(user_error, folders, tmp_path, features):
    args = ["data", "select", folders[0], "--like", folders[1], "--num-images", 1]
    error = user_error(*args, "-o", tmp_path / "new", "--features", features)
    assert "--features" in error["problem"] and repr(features) in error["problem"]


def test_impossible_selection_is_reported(user_error, folders, tmp_path):
    args = ["data", "select", folders[0], "--like", folders[1], "--num-images"]
    error = user_error(*args, 3, "-o", tmp_path / "new")
    assert "3" in error["problem"] and "2" in error["problem"]
    assert f"'{tmp_path}'" in user_error(*args, 1, "-o", tmp_path)["problem"]
    error = user_error(*args, 1, "-o", folders[0] / "x.png/new")
    assert f"'{folders[0] / 'x.png/new'}'" in error["problem"]


def test_missing_extra_of_an_encoder_is_reported(user_error, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    args = ["data", "select", folders[0], "--like", folders[1], "--num-images", 1]
    error = user_error(*args, "-o", tmp_path / "new", "--features", "clip:a.onnx")
    assert 'pip install "onnxruntime>=' in error["remedy"]


# --- metrics and submissions -------------------------------------------------------------------


def test_incomparable_images_are_reported(user_error, image, tmp_path):
    write_image(tmp_path / "larger.png", np.zeros((13, 16, 3), np.uint8))
    error = user_error("metrics", "explain", image, tmp_path / "larger.png")
    assert "12x16" in error["problem"] and "13x16" in error["problem"]
    assert error["location"] == f"{image} and {tmp_path / 'larger.png'}"
    error = user_error("metrics", "explain", image, tmp_path / "none.png")
    assert str(tmp_path / "none.png") in error["problem"] + (error["location"] or "")


@pytest.fixture
def submit(crumbs, table, tmp_path):
    """The arguments of `submit COMMAND crumb` with one dataset of one image as both splits."""
    datasets = ["--valid", tmp_path / "Photos", "--test", tmp_path / "Photos"]
    return lambda command, *options: ["submit", command, "crumb", *datasets, *options]


def test_unwritable_submission_is_reported(user_error, submit, table, tmp_path, esrjax):
    error = user_error(*submit("build", "-o", tmp_path, "--id", 23))
    assert error["location"] == str(tmp_path)
    for path in (table, table / "new"):
        error = user_error(*submit("build", "-o", path, "--id", 23))
        assert error["location"] == str(path)
    for usage in (submit("build"), submit("check", "-o", tmp_path / "new")):
        result = esrjax(*usage)
        assert result.code == 2 and "-o" in result.err and "Traceback" not in result.err
    assert not (tmp_path / "new").exists()


def test_missing_or_foreign_number_of_a_submission_is_reported(user_error, submit, tmp_path):
    error = user_error(*submit("build", "-o", tmp_path / "new"))
    assert "--id" in error["remedy"]
    error = user_error(*submit("build", "-o", tmp_path / "new", "--id", 22))
    assert "--id 22" in error["problem"] and "XiaomiMM" in error["problem"]


def test_recipe_of_another_method_in_a_submission_is_reported(user_error, submit, tmp_path):
    error = user_error(*submit("check", "--id", 23, "--recipe", "quick"))
    assert "'spanv2'" in error["problem"] and "'crumb'" in error["problem"]
    error = user_error(*submit("check", "--id", 23, "--recipe", tmp_path / "none.toml"))
    assert "none.toml" in error["problem"]


# --- engines -----------------------------------------------------------------------------------


def test_export_to_a_name_of_another_format_is_reported(user_error, crumbs, tmp_path):
    error = user_error("export", "crumb", "-o", tmp_path / "crumb.pb")
    assert "crumb.onnx" in error["remedy"] and "--format" in error["remedy"]
    output = tmp_path / "crumb.onnx"
    error = user_error("export", "crumb", "--format", "stablehlo", "-o", output)
    assert "crumb.stablehlo" in error["remedy"] and "--format" in error["remedy"]


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_missing_extra_of_export_is_reported(user_error, crumbs, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, "onnx", object())
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    monkeypatch.setitem(sys.modules, library, None)
    error = user_error("export", "crumb", "-o", tmp_path / "crumb.onnx")
    assert library in error["problem"]
    assert 'pip install "onnx>=' in error["remedy"]


def test_jax_engine_with_an_onnx_file_is_reported(user_error, crumbs, image, tmp_path):
    args = ["upscale", image, "-o", tmp_path / "big.png", "--method", "crumb"]
    error = user_error(*args, "--engine", "jax", "--checkpoint", tmp_path / "crumb.onnx")
    assert ".onnx" in error["problem"] and "--engine jax" in error["problem"]


def test_malformed_onnx_file_is_reported(user_error, crumbs, image, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    file = tmp_path / "crumb.onnx"
    args = ["upscale", image, "-o", tmp_path / "big.png", "--method", "crumb"]
    args += ["--checkpoint", file]
    assert "No such file" in user_error(*args)["problem"]
    file.write_bytes(b"no model")
    error = user_error(*args)
    assert error["location"] == str(file)


# --- packed datasets ---------------------------------------------------------------------------


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A folder of datasets with one dataset of one image."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    write_image(tmp_path / "Photos/a.png", np.zeros((64, 64, 3), np.uint8))
    return tmp_path


def test_dataset_that_cannot_be_packed_is_reported(user_error, data_folder, monkeypatch):
    pack = ["data", "pack", "Photos", "--name"]
    error = user_error(*pack, "Photos")
    assert "Photos" in error["problem"] + (error["location"] or "")
    assert "--name" in user_error(*pack, "4k")["remedy"]
    error = user_error(*pack, "mine", "--crop-size", 482)
    assert "482" in error["problem"] and "240" in error["problem"]
    error = user_error("data", "pack", "Photo", "--name", "mine")
    assert "'Photos'" in error["remedy"]
    (data_folder / "Photos/a.png").write_bytes(b"none")
    assert "a.png" in user_error(*pack, "mine")["problem"]
    monkeypatch.delenv("ESRJAX_DATA")
    error = user_error("data", "pack", data_folder / "Photos", "--name", "mine")
    assert "ESRJAX_DATA" in error["remedy"]


def test_missing_packed_dataset_is_reported(user_error, data_folder):
    for args in (
        ["data", "verify", "tfds:mine"],
        ["data", "verify", "Photos", "--against", "tfds:mine"],
        ["eval", "span", "--data", "tfds:mine"],
        [
            "train",
            "quick",
            "-o",
            data_folder / "run",
            "--set",
            "stage.0.data.datasets=['tfds:mine']",
        ],
    ):
        error = user_error(*args)
        assert "'mine'" in error["problem"]
        assert "esrjax data pack DIR --name NAME" in error["remedy"]


def test_workers_without_cropping_on_the_host_are_reported(user_error, tmp_path):
    changes = ["stage.0.data.crop_on=device", "stage.0.data.num_workers=2"]
    args = ["train", "quick", "-o", tmp_path / "run"]
    error = user_error(*args, *(arg for change in changes for arg in ("--set", change)))
    assert "num_workers" in error["problem"] and 'crop_on = "host"' in error["problem"]


# --- networks that fail when they are called ---------------------------------------------------


@pytest.mark.parametrize("output", [None, ValueError("no such window")])
def test_network_that_fails_when_called_is_reported(
    user_error, crumbs, monkeypatch, tmp_path, output
):
    import crumbs as plugin

    def call(self, x):
        if isinstance(output, Exception):
            raise output
        return output

    monkeypatch.setattr(plugin.Crumb, "__call__", call)
    write_image(tmp_path / "Photos/a.png", np.zeros((64, 64, 3), np.uint8))
    options = (tmp_path / "Photos/a.png", "-o", tmp_path / "b.png")
    for command in (
        ("method", "cost", "crumb"),
        ("bench", "crumb", "--image-size", "8", "--seconds", 0.01),
        ("eval", "crumb", "--data", tmp_path / "Photos"),
        ("upscale", *options, "--method", "crumb", "--engine", "jax"),
    ):
        error = user_error(*command)
        assert (str(output) if output else "NoneType") in error["problem"]
        assert error["location"] == "crumbs.Crumb"
    assert not (tmp_path / "b.png").exists()
