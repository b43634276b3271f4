"""What a user gets wrong is told in words: value, place, rule, remedy; and nothing is half done."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from esrjax import registry
from esrjax.network.kernel import kernel
from esrjax.pictures.files import write

MISTAKE = re.compile(
    r"esrjax: (?P<problem>.*?)(\n  place:  (?P<place>.*?))?"
    r"\n  rule:   (?P<rule>.*?)\n  remedy: (?P<remedy>.*)\n",
    re.DOTALL,
)
PLUGIN = """
from esrjax.method import Method
METHOD = Method(network=dict, team="theirs", paper="unsaid", license="MIT")
"""


def files(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def mistake(esrjax, tmp_path):
    """What the command line says to a mistake, by part; no file may have come of it."""

    def run(*words):
        before = files(tmp_path)
        said = esrjax(*words)
        assert (said.code, said.out) == (2, "")
        assert files(tmp_path) == before
        told = MISTAKE.fullmatch(said.err)
        assert told, said.err
        return told.groupdict()

    return run


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Puts a package that registers `names` on the path, as pip would."""

    def install(package, source, *names):
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:METHOD" for name in names]
        (info / "entry_points.txt").write_text("\n".join(["[esrjax.methods]", *lines]))
        monkeypatch.syspath_prepend(folder)

    registry._load.cache_clear()
    yield install
    registry._load.cache_clear()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


# --- methods -----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["show spam", "cost spam", "check spam", "bench spam"])
def test_an_unknown_method(mistake, words):
    told = mistake(*words.split())
    assert told["problem"] == "no method is called 'spam'"
    assert told["rule"].startswith("a method is an entry point of the group 'esrjax.methods'")
    assert told["remedy"] == "did you mean 'span'?"


def test_a_broken_plugin_spoils_its_own_name_alone(mistake, site, esrjax, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, bad")
    site("broken", "import no_such_module", "bad")
    told = mistake("show", "bad")
    assert told["problem"] == (
        "the plugin 'bad' cannot be loaded: importing it raised ModuleNotFoundError: "
        "No module named 'no_such_module'"
    )
    assert told["place"] == "broken:METHOD, of broken 1.0"
    listed = esrjax("list", "--json")
    assert listed.code == 0 and [row["name"] for row in listed.json] == ["span"]
    assert "the plugin 'bad' cannot be loaded" in listed.err


def test_a_plugin_whose_network_fails_is_listed_apart(site, esrjax, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, odd")
    site("odd", PLUGIN, "odd")  # a dict is no network
    listed = esrjax("list", "--json")
    assert listed.code == 0 and [row["name"] for row in listed.json] == ["span"]
    assert "odd" in listed.err and "Traceback" not in listed.err


def test_a_name_that_two_packages_claim(mistake, site):
    site("first", PLUGIN, "contested")
    site("second", PLUGIN, "contested")
    told = mistake("show", "contested")
    assert told["problem"] == "the method 'contested' is registered more than once"
    assert set(told["place"].split(" and ")) == {
        "first 1.0 (first:METHOD)",
        "second 1.0 (second:METHOD)",
    }


def test_an_operation_for_which_two_packages_bring_a_kernel(mistake, package, picture, tmp_path):
    package("theirs", "1 / 0", "esrjax.kernels", {"gated_residual": "KERNEL"})
    kernel.cache_clear()
    told = mistake("upscale", picture, "-o", tmp_path / "big.png")
    kernel.cache_clear()
    assert told["problem"] == "the operation 'gated_residual' has more than one kernel"
    assert "theirs 1.0 (fake_theirs:KERNEL)" in told["place"]
    assert 'body "reference"' in told["remedy"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("span", "'span' is taken by esrjax "),
        ("My Net", "'My Net' cannot be the name of a method"),
        ("class", "'class' cannot be the name of a method"),
    ],
)
def test_a_name_that_no_new_method_can_have(mistake, tmp_path, name, problem):
    assert mistake("new", name, "-o", tmp_path / "mine")["problem"].startswith(problem)


def test_a_folder_in_use_is_not_written_into(mistake, tmp_path, picture):
    told = mistake("new", "my_net", "-o", tmp_path)
    assert told["problem"] == f"'{tmp_path}' already exists"


def test_an_ensemble_has_no_network_to_check(mistake, crumbs):
    for words in (["check", "crumbs"], ["bench", "crumbs"]):
        told = mistake(*words)
        assert told["problem"] == "'crumbs' is an ensemble"
        assert told["remedy"] == "name one of its members: crumb, loaf"


# --- checkpoints -------------------------------------------------------------------------------


def test_a_method_without_weights(mistake, monkeypatch, tmp_path, picture):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))  # where none were brought to
    told = mistake("upscale", picture, "--method", "rfdn_span", "-o", tmp_path / "big.png")
    assert told["problem"] == "rfdn_span ships no weights"
    assert told["rule"].startswith("published for it: ntire2026 (")
    assert told["remedy"].startswith("get them with `esrjax weights get rfdn_span`, or give a file")


def test_every_tensor_that_does_not_fit_is_named(mistake, crumbs, tmp_path):
    path, target = tmp_path / "other.pth", tmp_path / "out.safetensors"
    torch.save({"filter.weight": torch.ones(3, 1, 5, 5), "filters.bias": torch.ones(3)}, path)
    told = mistake("convert", "crumb", path, "-o", target)
    assert told["problem"] == (
        "3 of 3 tensors do not match:\n"
        "    not in the checkpoint: filter.bias (3,) (is it filters.bias?)\n"
        "    misshapen: filter.weight is (3, 1, 5, 5), the network has (3, 1, 3, 3)\n"
        "    not in the network: filters.bias (3,)"
    )
    assert told["place"] == f"{path}, read as crumb in deploy form"
    assert told["remedy"].endswith("nothing was loaded")


class Code:
    """Runs when it is unpickled by somebody who trusts it."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_would_run_code_does_not(mistake, crumbs, tmp_path):
    torch.save({"filter.weight": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    told = mistake("convert", "crumb", tmp_path / "evil.pth", "-o", tmp_path / "out.safetensors")
    assert told["problem"] == ("this checkpoint would run code when loaded, so it was not loaded")
    assert "mkdir" in told["rule"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.pth", "junk.pth", "junk.safetensors", "."])
def test_a_file_that_is_no_checkpoint(mistake, crumbs, tmp_path, name):
    for junk in ("junk.pth", "junk.safetensors"):
        (tmp_path / junk).write_bytes(b"not tensors")
    told = mistake("cost", "crumb", "--checkpoint", tmp_path / name)
    assert told["problem"].startswith("cannot read the checkpoint: ")
    assert told["place"].startswith(str(tmp_path))


def test_weights_of_another_method(mistake, crumbs, picture, tmp_path):
    words = ["--method", "crumb", "--checkpoint", crumbs / "crumbs/loaf.safetensors"]
    told = mistake("upscale", picture, *words, "-o", tmp_path / "big.png")
    assert told["problem"] == "these are weights of 'loaf', not of 'crumb'"
    assert told["place"].endswith("loaf.safetensors")
    assert told["remedy"] == "name the method 'loaf', or give another file"


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("channels", "--size 'channels' is not key=value"),
        ("=48", "--size '=48' is not key=value"),
        ("width=48", "no such size: width"),
        ("channels=wide", "no network can be built of channels='wide': "),
        ("channels=0", "no network can be built of channels=0: "),
        ("channels=-3", "no network can be built of channels=-3: "),
    ],
)
def test_a_size_that_no_network_has(mistake, size, problem):
    told = mistake("cost", "span", "--size", size)
    assert told["problem"].startswith(problem)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ("further=[7]", "heads are of scale 1, 2, 3, 4; not 7"),
        ("heads=7", "180 channels are not shared evenly by 7 heads"),
        ("window=6", "a quarter of a window of 6 pixels is no number of pixels"),
    ],
)
def test_sizes_of_which_there_is_no_network(mistake, size, why):
    told = mistake("cost", "hat", "--size", size, "--size", "groups=1")
    name, value = size.split("=")
    assert told["problem"] == f"no network can be built of {name}={value} groups=1: {why}"


def test_sizes_that_the_weights_do_not_have(mistake, crumbs, tmp_path):
    given = crumbs / "crumbs/crumb.safetensors"
    words = ["--size", "side=5", "-o", tmp_path / "out.safetensors"]
    told = mistake("convert", "crumb", given, *words)
    assert (
        "misshapen: filter.weight is (3, 1, 3, 3), the network has (3, 1, 5, 5)" in told["problem"]
    )
    assert told["place"].endswith("read as crumb in deploy form side=5")


def test_a_file_for_two_methods_says_whose_it_is(mistake, crumbs, tmp_path):
    told = mistake("eval", "crumb", "loaf", "--data", tmp_path, "--checkpoint", "a.pth")
    assert told["problem"] == "--checkpoint 'a.pth' does not say whose it is"
    assert told["remedy"] == "write for instance --checkpoint crumb=a.pth"
    told = mistake("eval", "crumbs", "--data", tmp_path, "--checkpoint", "a.pth")
    assert "NAME one of crumb, loaf" in told["rule"]


def test_a_format_that_the_name_contradicts(mistake, crumbs, tmp_path):
    given = crumbs / "crumbs/crumb.safetensors"
    for format, name in (("torch", "a.safetensors"), ("safetensors", "a.pth")):
        told = mistake("convert", "crumb", given, "-o", tmp_path / name, "--to", format)
        assert told["problem"] == f"{name!r} is no name for a file of the format {format!r}"


# --- pictures and sets -------------------------------------------------------------------------


def test_a_picture_that_ends_too_early(mistake, crumbs, picture, tmp_path):
    picture.write_bytes(picture.read_bytes()[:300])
    told = mistake("upscale", picture, "--method", "crumb", "-o", tmp_path / "big.png")
    assert told["problem"].startswith(f"'{picture}' cannot be read: ")
    assert told["remedy"] == "save it again, or download it again"


def test_a_picture_that_is_too_small(mistake, crumbs, tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "tiny.png")
    words = ["--method", "crumb", "-o", tmp_path / "big.png"]
    told = mistake("upscale", tmp_path / "tiny.png", *words)
    assert told["problem"] == "the picture is 7 x 5 pixels"
    assert told["rule"] == "crumb accepts pictures of at least 6 pixels a side"
    assert mistake("cost", "crumb", "--side", 5)["problem"] == "the picture is 5 x 5 pixels"
    assert (
        mistake("bench", "crumb", "--sizes", "8x8,5x9")["problem"] == "the picture is 9 x 5 pixels"
    )


def test_a_picture_that_cannot_be_written(mistake, crumbs, picture):
    told = mistake("upscale", picture, "--method", "crumb", "-o", picture / "big.png")
    assert told["problem"] == (
        f"'{picture}/big.png' cannot be written: '{picture}' cannot be a folder, a file is there"
    )
    told = mistake("upscale", picture, "--method", "crumb", "-o", "big.gif")
    assert told["problem"] == "pictures are not written as '.gif'"


def test_several_pictures_do_not_fit_into_one_file(mistake, crumbs, picture, tmp_path):
    Image.new("RGB", (7, 9)).save(tmp_path / "other.png")
    words = ["--method", "crumb", "-o", tmp_path / "big.png"]
    told = mistake("upscale", picture, tmp_path / "other.png", *words)
    assert told["problem"] == "2 pictures cannot go into one file 'big.png'"


def test_a_checkpoint_or_a_result_that_cannot_be_written(mistake, crumbs, picture, tmp_path):
    given = crumbs / "crumbs/crumb.safetensors"
    told = mistake("convert", "crumb", given, "-o", picture / "a.safetensors")
    assert told["problem"].startswith("cannot write the checkpoint: ")
    assert told["place"] == f"{picture}/a.safetensors"
    told = mistake("eval", "crumb", "--data", tmp_path, "-o", picture)
    assert told["problem"].startswith(f"the results cannot be written into '{picture}'")


def test_an_lr_and_an_hr_picture_that_do_not_go_together(mistake, crumbs, tmp_path):
    for folder, name, size in (("HR", "a", (32, 32)), ("LR_bicubic_X4", "ax4", (8, 7))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", size).save(tmp_path / folder / f"{name}.png")
    told = mistake("eval", "crumb", "--data", tmp_path)
    assert told["problem"] == (
        "the LR picture is 7x8, the cropped HR picture 32x32 (height x width)"
    )
    assert "a.png' and '" in told["place"]


def test_a_spec_and_a_set_that_do_not_exist(mistake, crumbs, monkeypatch, tmp_path):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    (tmp_path / "Photos").mkdir()
    told = mistake("eval", "crumb", "--data", "Photos", "--spec", "psnr")
    assert told["problem"] == "there is no metric spec 'psnr'"
    assert told["rule"].startswith("the specs are ntire, y, basicsr_y, ")
    told = mistake("eval", "crumb", "--data", "Photo")
    assert told["problem"] == "there is no set or folder 'Photo'"
    assert told["remedy"] == "did you mean 'Photos'?"


@pytest.mark.parametrize("sizes", ["", "16", "16x", "16x0", "16x16,axb", "-4x4"])
def test_sizes_that_say_nothing(mistake, sizes):
    told = mistake("bench", "span", "--sizes", sizes)
    assert told["problem"].startswith("--sizes holds '")
    assert told["remedy"] == "write for instance --sizes 256x256,339x510"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--precision float16", "--precision is 'float16'"),
        ("--body auto,auto", "--body is 'auto,auto'"),
        ("--engine both --precision bfloat16", "--precision is given with --engine both"),
        ("--compiled", "--compiled is given without --peer"),
        ("--peer net.py", "'net.py' names no PyTorch class"),
        ("--peer net.py:Net", "there is no file 'net.py'"),
    ],
)
def test_options_of_bench_that_cannot_be(mistake, crumbs, words, problem):
    assert mistake("bench", "crumb", *words.split())["problem"] == problem


def test_a_peer_that_is_nobodys_or_broken(mistake, crumbs, tmp_path):
    told = mistake("bench", "crumb", "loaf", "--peer", "net.py:Net")
    assert told["problem"] == "--peer 'net.py:Net' does not say whose it is"
    assert told["remedy"] == "write for instance --peer crumb=net.py:Net"
    net = tmp_path / "net.py"
    net.write_text("import torch\nclass Net(torch.nn.Module):\n    pass\n")
    told = mistake("bench", "crumb", "--sizes", "8x8", "--peer", f"{net}:Net")
    assert told["problem"].startswith("running it raised NotImplementedError")
    assert mistake("bench", "crumb", "--peer", f"{net}:Ner")["remedy"] == "did you mean 'Net'?"
    net.write_text("import torch\nclass Net(:\n")
    told = mistake("bench", "crumb", "--peer", f"{net}:Net")
    assert told["problem"].startswith("importing it raised SyntaxError")


# --- results -----------------------------------------------------------------------------------


def test_an_ensemble_is_not_ranked(mistake, crumbs, tmp_path):
    told = mistake("eval", "crumbs", "--data", tmp_path, "-o", tmp_path / "results")
    assert told["problem"] == "'crumbs' is an ensemble"
    assert told["rule"] == "the contest ranks single networks"


def test_a_golden_of_another_network(mistake, crumbs, tmp_path):
    x, y = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 3, 32, 32), np.float32)
    golden = tmp_path / "golden.npz"
    np.savez(golden, x0=x, y0=y, act_block_1=y)
    told = mistake("parity", "crumb", "--golden", golden)
    assert told["problem"] == (
        "the golden file stores 'act_block_1', but the network runs no part 'block_1'; "
        "it runs filter"
    )
    assert (told["place"], told["remedy"]) == (
        str(golden),
        "check that file and method belong together",
    )
    np.savez(golden, x0=x, y0=y[..., 1:])
    assert (
        "is (1, 3, 32, 31) in the file" in mistake("parity", "crumb", "--golden", golden)["problem"]
    )
    np.savez(golden, x0=x)
    assert "no x0 with its y0" in mistake("parity", "crumb", "--golden", golden)["problem"]
    golden.write_bytes(b"PK")
    assert "cannot be read as .npz" in mistake("parity", "crumb", "--golden", golden)["problem"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "there is nothing to compare with"),
        (["--golden", "a", "--torch", "a"], "there is both --golden and --torch to compare with"),
        (["--golden", "a", "--data", "Set5"], "there is --golden together with --data"),
        (["--torch", "net.py"], "'net.py' names no PyTorch class"),
        (["--torch", "net.py:Net"], "there is no file 'net.py'"),
        (["--torch", "a:Net", "--torch-args", "{"], "--torch-args '{' is not JSON: "),
        (["--torch", "a:Net", "--torch-args", "[1]"], "--torch-args '[1]' is no JSON object"),
        (["--torch", "a:Net", "-o", "a.txt"], "no certificate can be written into a.txt: "),
        (["--torch", "a:Net", "-o", "a.safetensors"], "no certificate can be written into a.safe"),
    ],
)
def test_a_comparison_with_nothing(mistake, crumbs, words, problem):
    assert mistake("parity", "crumb", *words)["problem"].startswith(problem)


def test_a_pytorch_network_that_does_not_take_the_weights(mistake, crumbs, tmp_path):
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\nclass Net(nn.Conv2d): pass\n")
    words = ["--torch", f"{file}:Net", "--torch-args"]
    told = mistake("parity", "crumb", *words, "{}")
    assert told["problem"].startswith("Net cannot be built: missing a required argument")
    sides = '{"in_channels": 3, "out_channels": 3, "kernel_size": 3}'
    told = mistake("parity", "crumb", *words, sides)
    assert told["problem"] == (
        "4 tensors do not fit Net:\n"
        "    not in the weights: weight (3, 3, 3, 3)\n"
        "    not in the weights: bias (3,)\n"
        "    not in the PyTorch network: filter.bias (3,)\n"
        "    not in the PyTorch network: filter.weight (3, 1, 3, 3)"
    )
    assert told["remedy"].endswith("nothing was compared")


def test_a_file_that_holds_no_certificate(mistake, crumbs, tmp_path):
    file = tmp_path / "c.json"
    assert mistake("parity", "verify", file)["problem"].startswith("no certificate can be read")
    file.write_text('{"format": 2, "pased": true}')
    told = mistake("parity", "verify", file)
    assert "format should be 1, found 2" in told["problem"]
    assert "pased is not a known name; did you mean 'passed'?" in told["problem"]
    bare = mistake("parity", "verify", crumbs / "crumbs/crumb.safetensors")
    assert bare["problem"].endswith("its manifest holds no certificate")


def test_nothing_to_rank(mistake, tmp_path):
    assert mistake("rank", tmp_path / "none")["problem"] == f"no results at '{tmp_path}/none'"
    (tmp_path / "results.json").write_text(json.dumps([1]))
    told = mistake("rank", tmp_path / "results.json")
    assert told["problem"] == "results.json is not the organisers' results.json"


@pytest.mark.parametrize("option", ["--harness", "--alone"])
def test_a_way_of_timing_where_nothing_is_timed(mistake, option):
    told = mistake("eval", "span", "--data", "Set5", option)
    assert told["problem"] == f"{option} is given without -o"


TABLE = "team,method,psnr_val,psnr_test,runtime_avg_ms,params_m,flops_g\n"
LINES = "EfficientSR Organizers,SPAN,26.94,27.01,7.65,0.151,9.83\nOurs,net,26.9,27,5,0.1,5\n"


@pytest.fixture
def figures(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE + LINES)
    return path


def test_a_change_that_says_nothing_or_is_of_nobody(mistake, figures):
    told = mistake("rank", figures, "--what-if", "net:speed=1", "--what-if", "net")
    assert told["problem"] == "a change says nothing: 'net:speed=1', 'net'"
    told = mistake("rank", figures, "--what-if", "nets:runtime=-1")
    assert (told["problem"], told["remedy"]) == (
        "no one row is that of 'nets'",
        "did you mean 'net'?",
    )
    told = mistake("rank", figures, "--what-if", "net:runtime=-9")
    assert "runtime_ms should be greater than 0, found -4.0" in told["problem"]


def test_a_print_that_is_not_there_or_is_none(mistake, figures, tmp_path):
    told = mistake("rank", figures, "--against", tmp_path / "print.csv")
    assert told["problem"] == f"no table at '{tmp_path}/print.csv'"
    (tmp_path / "print.csv").write_text("team,psnr_val\nOurs,high\n,27\n")
    told = mistake("rank", figures, "--against", tmp_path / "print.csv")
    assert "2 mistakes" in told["problem"] and told["place"] == str(tmp_path / "print.csv")


def test_latex_is_of_the_table_alone(mistake, figures):
    told = mistake("rank", figures, "--format", "latex", "--sensitivity")
    assert told["problem"] == "--format latex writes the table alone"


# --- the report --------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A table of the baseline alone, and a set of one picture."""
    write(tmp_path / "Photos/a.png", np.zeros((64, 64, 3), np.uint8))
    head = "team,method,runtime_avg_ms,params_m,flops_g"
    (tmp_path / "table.csv").write_text(f"{head}\nEfficientSR Organizers,SPAN,8,0.15,10\n")
    return tmp_path / "table.csv"


def test_pictures_in_a_report_that_say_nothing(mistake, table, tmp_path):
    page, folder = tmp_path / "report.html", tmp_path / "Photos"
    told = mistake("report", table, "-o", page, "--pictures", f"mine={folder}")
    assert told["remedy"] == "name the set, for instance --data Set5"
    told = mistake("report", table, "-o", page, "--data", folder, "--pictures", folder)
    assert told["problem"] == f"--pictures {str(folder)!r} is not NAME=FOLDER"
    twice = ("--pictures", f"mine={folder}") * 2
    told = mistake("report", table, "-o", page, "--data", folder, *twice)
    assert told["problem"] == "two are called 'mine'"
    told = mistake("report", table, "-o", page, "--data", folder, "--checkpoint", "spam=a.pth")
    assert "did you mean 'span'" in told["remedy"]


def test_pictures_in_a_report_that_are_missing_or_of_another_size(mistake, table, tmp_path):
    page, folder = tmp_path / "report.html", tmp_path / "Photos"
    words = ("report", table, "-o", page, "--data", folder, "--pictures")
    told = mistake(*words, f"mine={tmp_path / 'none'}")
    assert f"mine: '{tmp_path / 'none'}' has no a" in told["problem"]
    write(tmp_path / "sr/ax4.png", np.zeros((60, 64, 3), np.uint8))
    told = mistake(*words, f"mine={tmp_path / 'sr'}")
    assert (told["place"], "60x64" in told["problem"]) == ("a of mine", True)


def test_a_report_that_cannot_be_put_there(mistake, table, tmp_path):
    for place in (tmp_path, table):
        told = mistake("report", table, "-o", place)
        assert told["problem"] == f"the report cannot be written to '{place}'"
    told = mistake("report", table, "-o", table / "report.html")
    assert told["place"] == str(table)


# --- strategies and fusion ---------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", "100,", "wide", "100:much", "100,100:2", "16x16"])
def test_windows_that_say_nothing(mistake, crumbs, picture, tmp_path, given):
    words = ["upscale", picture, "--method", "crumb", "-o", tmp_path / "big.png"]
    told = mistake(*words, "--windows", given)
    assert told["problem"] == f"--windows is {given!r}"
    assert told["remedy"] == "write for instance --windows 100,200,300:1.2"


@pytest.mark.parametrize("given", ["11", "20,-20", "20:0", "20:-1", "20:nan"])
def test_windows_that_a_method_cannot_be_run_in(mistake, crumbs, picture, tmp_path, given):
    words = ["upscale", picture, "--method", "crumb", "-o", tmp_path / "big.png"]
    told = mistake(*words, "--windows", given)
    assert told["problem"].startswith("windows of ")
    assert told["rule"].startswith("crumb takes windows of at least 12 pixels a side")


def test_results_of_more_than_one_pass(mistake, crumbs, tmp_path):
    words = ["eval", "crumb", "--data", tmp_path, "-o", tmp_path / "results"]
    for option in (["--self-ensemble"], ["--windows", "100"]):
        assert mistake(*words, *option)["problem"] == f"{option[0]} is given with -o"


@pytest.fixture
def fusible(tmp_path):
    """Three folders: `b` holds a picture of another size, `c` one that the others lack."""
    for folder, names in (("a", "xy"), ("b", "xy"), ("c", "xyz")):
        for name in names:
            size = (8, 9) if (folder, name) == ("b", "y") else (8, 8)
            write(tmp_path / folder / f"{name}.png", np.zeros((*size, 3), np.uint8))
    return [tmp_path / folder for folder in "abc"]


def test_folders_that_cannot_be_fused(mistake, fusible, tmp_path):
    a, b, c = fusible
    out = ("-o", tmp_path / "out")
    assert mistake("fuse", a, c, *out)["problem"] == f"'{a}' lacks z"
    assert mistake("fuse", a, *out)["problem"] == "there is one picture or folder"
    told = mistake("fuse", a, b, "-o", tmp_path / "out.png")
    assert told["problem"] == f"'{tmp_path / 'out.png'}' is the name of a picture"
    assert "there is nothing at" in mistake("fuse", a, tmp_path / "none", *out)["problem"]


def test_pictures_of_two_sizes_are_found_before_any_is_fused(mistake, fusible, tmp_path):
    a, b, _ = fusible
    told = mistake("fuse", a, b, "-o", tmp_path / "out")
    assert told["problem"] == "the pictures are 8x8, 8x9 (height x width)"
    assert told["place"] == f"{a / 'y.png'}, {b / 'y.png'}"


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("1", "the weights are 1, of 2 pictures or folders"),
        ("1,-1", "the weights are 1, -1, of 2 pictures or folders"),
        ("0,0", "the weights are 0, 0, of 2 pictures or folders"),
        ("1,inf", "the weights are 1, inf, of 2 pictures or folders"),
        ("half,half", "--weights is 'half,half'"),
    ],
)
def test_weights_that_fuse_nothing(mistake, fusible, tmp_path, weights, problem):
    words = ["fuse", *fusible[:2], "-o", tmp_path / "out"]
    assert mistake(*words, "--weights", weights)["problem"] == problem
    told = mistake(*words, "--weights", weights, "--adaptive")
    assert told["problem"] == "both --weights and --adaptive are given"


def test_an_ensemble_is_compared_with_what_is_stored(mistake, crumbs, tmp_path):
    for words in ([], ["--torch", "twin.py:Twin"], ["--golden", "a.npz", "-o", "a.json"]):
        told = mistake("parity", "crumbs", *words)
        assert told["problem"] == "'crumbs' is an ensemble, and not compared by --golden alone"


# --- selections --------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["clip", "clip:", "colours", "vgg:a.onnx"])
def test_features_that_there_are_not(mistake, fusible, tmp_path, said):
    words = ["data", "select", fusible[0], "--like", fusible[1], "--count", 1]
    told = mistake(*words, "-o", tmp_path / "new", "--features", said)
    assert told["problem"] == f"--features is {said!r}"


def test_a_selection_that_cannot_be_made(mistake, fusible, tmp_path):
    words = ["data", "select", fusible[0], "--like", fusible[1], "--count"]
    told = mistake(*words, 3, "-o", tmp_path / "new")
    assert told["problem"] == "3 pictures are asked for, of 2"
    assert mistake(*words, 1, "-o", tmp_path)["problem"] == f"'{tmp_path}' already exists"
    told = mistake(*words, 1, "-o", fusible[0] / "x.png/new")
    assert told["problem"].startswith(f"'{fusible[0] / 'x.png/new'}' cannot be written: ")


def test_an_encoder_without_the_extra(mistake, fusible, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["data", "select", fusible[0], "--like", fusible[1], "--count", 1]
    told = mistake(*words, "-o", tmp_path / "new", "--features", "clip:a.onnx")
    assert told["remedy"] == 'pip install "esrjax[clip]"'


# --- metrics and submissions -------------------------------------------------------------------


def test_pictures_that_no_metric_can_compare(mistake, picture, tmp_path):
    write(tmp_path / "larger.png", np.zeros((13, 16, 3), np.uint8))
    told = mistake("metrics", "explain", picture, tmp_path / "larger.png")
    assert told["problem"].startswith("the SR picture is 12x16, the HR picture 13x16")
    assert told["place"] == f"{picture} and {tmp_path / 'larger.png'}"
    told = mistake("metrics", "explain", picture, tmp_path / "none.png")
    assert str(tmp_path / "none.png") in told["problem"] + (told["place"] or "")


@pytest.fixture
def submit(crumbs, table, tmp_path):
    """`submit crumb` over a set of one picture, twice."""
    sets = ["--valid", tmp_path / "Photos", "--test", tmp_path / "Photos"]
    return lambda *words: ["submit", "crumb", *sets, *words]


def test_a_submission_that_cannot_be_put_there(mistake, submit, table, tmp_path):
    told = mistake(*submit("-o", tmp_path, "--id", 23))
    assert told["problem"] == "the submission cannot be written: it is not empty"
    for place in (table, table / "new"):
        assert mistake(*submit("-o", place, "--id", 23))["place"] == str(place)
    told = mistake(*submit())
    assert told["problem"] == "neither -o nor --check is given"
    told = mistake(*submit("-o", tmp_path / "new", "--check"))
    assert told["problem"] == "--check is given with -o"


def test_a_submission_under_no_number_or_another_teams(mistake, submit, tmp_path):
    told = mistake(*submit("-o", tmp_path / "new"))
    assert told["remedy"] == "give the number that the organisers gave you with --id"
    told = mistake(*submit("-o", tmp_path / "new", "--id", 22))
    assert told["problem"] == "--id 22 belongs to XiaomiMM"


def test_a_submission_by_the_recipe_of_another_method(mistake, submit, tmp_path):
    told = mistake(*submit("--check", "--id", 23, "--recipe", "quick"))
    assert told["problem"] == "the recipe trains 'spanv2', not 'crumb'"
    told = mistake(*submit("--check", "--id", 23, "--recipe", tmp_path / "none.toml"))
    assert "there is no recipe" in told["problem"]


# --- engines -----------------------------------------------------------------------------------


def test_an_export_under_a_name_of_another_format(mistake, crumbs, tmp_path):
    words = ["export", "crumb", "-o", tmp_path / "crumb.pb"]
    assert mistake(*words)["remedy"] == "name it crumb.onnx, or change --format"
    words = ["export", "crumb", "--format", "stablehlo", "-o", tmp_path / "crumb.onnx"]
    assert mistake(*words)["remedy"] == "name it crumb.stablehlo, or change --format"


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_an_engine_without_the_extra(mistake, crumbs, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, "onnx", object())
    monkeypatch.setitem(sys.modules, "onnxruntime", object())
    monkeypatch.setitem(sys.modules, library, None)
    told = mistake("export", "crumb", "-o", tmp_path / "crumb.onnx")
    assert told["problem"] == f"this needs {library}"
    assert told["remedy"] == 'pip install "esrjax[export]"'


def test_an_exported_file_in_jax(mistake, crumbs, picture, tmp_path):
    words = ["upscale", picture, "-o", tmp_path / "big.png", "--method", "crumb"]
    told = mistake(*words, "--engine", "jax", "--checkpoint", tmp_path / "crumb.onnx")
    assert told["problem"] == "an .onnx file is given, and --engine jax"


@pytest.mark.export
def test_an_exported_file_that_is_none(mistake, crumbs, picture, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    file = tmp_path / "crumb.onnx"
    words = ["upscale", picture, "-o", tmp_path / "big.png", "--method", "crumb"]
    words += ["--checkpoint", file]
    assert "No such file" in mistake(*words)["problem"]
    file.write_bytes(b"no model")
    told = mistake(*words)
    assert told["problem"].startswith("cannot run this as an exported network")
    assert told["place"] == str(file)


# --- sets of pictures --------------------------------------------------------------------------


@pytest.fixture
def sets_here(tmp_path, monkeypatch):
    """A folder of sets, with one set of one picture."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    write(tmp_path / "Photos/a.png", np.zeros((64, 64, 3), np.uint8))
    return tmp_path


def test_a_dataset_that_cannot_be_packed(mistake, sets_here, monkeypatch):
    told = mistake("data", "pack", "Photos", "--name", "Photos")
    assert told["problem"] == "the dataset cannot be written: it is there already"
    told = mistake("data", "pack", "Photos", "--name", "4k")
    assert told["remedy"] == "choose another --name"
    told = mistake("data", "pack", "Photos", "--name", "mine", "--side", 482)
    assert told["problem"] == "sub-images of 482 pixels every 240 cannot be cut"
    told = mistake("data", "pack", "Photo", "--name", "mine")
    assert told["remedy"] == "did you mean 'Photos'?"
    (sets_here / "Photos/a.png").write_bytes(b"none")
    assert "cannot be read" in mistake("data", "pack", "Photos", "--name", "mine")["problem"]
    monkeypatch.delenv("ESRJAX_DATA")
    told = mistake("data", "pack", sets_here / "Photos", "--name", "mine")
    assert told["problem"] == "there is no place for the dataset"


def test_a_dataset_that_is_not_there(mistake, sets_here):
    for words in (
        ["data", "verify", "tfds:mine"],
        ["data", "verify", "Photos", "--against", "tfds:mine"],
        ["eval", "span", "--data", "tfds:mine"],
        ["train", "quick", "-o", sets_here / "run", "--set", "stage.0.data.sets=['tfds:mine']"],
    ):
        told = mistake(*words)
        assert told["problem"] == "there is no dataset 'mine'"
        assert "esrjax data pack DIR --name NAME" in told["remedy"]


def test_workers_that_would_have_nothing_to_do(mistake, tmp_path):
    changes = ["stage.0.data.feed=device", "stage.0.data.workers=2"]
    words = ["train", "quick", "-o", tmp_path / "run"]
    told = mistake(*words, *(word for change in changes for word in ("--set", change)))
    assert 'workers belong to feed = "host"' in told["problem"]
