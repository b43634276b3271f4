"""A user's own PyTorch network beside ours, from the command line."""

import sys

import numpy as np
import pytest

from esrjax.pictures.files import write

ASKED = [
    "picture, float64",
    "noise, float64",
    "picture, float32",
    "noise, float32",
    "gradient, input, float64",
    "gradient, weights, float64",
    "weights after Adam, float64",
    "weights after AdamW, float64",
]


@pytest.fixture
def live(esrjax, crumbs):
    """`live(file, more words) -> what was said`."""
    return lambda file, *words: esrjax("parity", "crumb", "--torch", f"{file}:Net", *words)


def test_the_same_network_is_equal_in_everything(live, written, crumbs):
    found = live(written(), "--checkpoint", crumbs / "crumbs/crumb.safetensors", "--json")
    assert found.code == 0, found.err
    said = found.json
    assert (said["method"], said["form"], said["passed"]) == ("crumb", "deploy", True)
    assert [f"{case['case']}, {case['precision']}" for case in said["cases"]] == ASKED
    assert [case["changed"] for case in said["cases"][2:4]] == [0, 0]
    assert said["layers"]["first"] is None and said["layers"]["compared"] == 4
    assert (said["data"], said["notes"]) == (None, [])
    assert max(case["max_abs"] for case in said["cases"]) < 1e-6


def test_drawn_weights_do_where_there_is_no_checkpoint(live, written):
    assert live(written()).out.endswith("crumb, deploy form: equal to PyTorch\n")
    one, other = (live(written(), "--seed", seed, "--json").json for seed in (1, 2))
    assert one["cases"][0]["allowed"] != other["cases"][0]["allowed"]


def test_sizes_and_arguments_build_both_alike(live, written):
    words = ["--size", "side=5", "--torch-args", '{"side": 5}', "--json"]
    assert live(written(), *words).json["passed"] is True


def test_a_fault_is_named_and_both_values_are_told(live, written):
    found = live(written(ran="y = y + 0.25 * (y == y.max())"))
    assert found.code == 1
    assert (
        "they part in the forward of the network, after filter, before the end of the network\n"
        in found.out
    )
    assert "what it gives is " in found.out and "here and " in found.out
    assert found.out.endswith("crumb, deploy form: not equal to PyTorch\n")


def test_a_float32_constant_is_told_from_a_fault(live, written):
    found = live(written(ran="y = y + float(torch.tensor(3.3)) - 3.3"))
    assert found.code == 1 and "so little is often a constant in float32" in found.out


def test_weights_that_do_not_learn_are_told(live, written):
    said = live(written(built="self.filter.bias.requires_grad = False"), "--json").json
    assert said["passed"] is True
    assert said["notes"] == ["no gradient of PyTorch's reaches filter.bias: not compared"]


def test_what_asks_for_cuda_runs_on_the_cpu_and_that_is_told(live, written):
    file = written(
        built='self.filter.cuda(); self.by = torch.ones(1, device="cuda")',
        ran='y = y * self.by.to("cuda:0")',
    )
    said = live(file, "--json").json
    assert said["passed"] is True
    assert [note.rpartition(": ")[2] for note in said["notes"]] == (
        ["CUDA was asked for, the CPU was taken"] * 2
    )
    assert f"{file}:11: self.filter.cuda()" in said["notes"][0]


def test_a_set_is_run_through_both(live, written, tmp_path):
    draw = np.random.default_rng(0)
    for name in "ab":
        write(tmp_path / f"set/{name}.png", draw.integers(0, 256, (48, 40, 3), np.uint8))
    words = ["--data", tmp_path / "set", "--json"]
    same, other = written(), written("other.py", ran="y = y + 1 / 255")
    found = live(same, *words).json["data"]
    assert (found["pictures"], found["values"]) == (2, 2 * 48 * 40 * 3)
    assert (found["mdb"], found["changed"], found["passed"]) == (0.0, 0, True)
    moved = live(other, *words).json["data"]
    assert moved["mdb"] != 0 and moved["changed"] > 0 and moved["passed"] is False
    text = live(same, "--data", tmp_path / "set").out
    assert "2 pictures, ntire: " in text and "+0.000 mdB; 0 of 11,520" in text


def test_the_network_takes_the_form_that_the_weights_have(match):
    pair = match("span", "train")
    keys = set(pair.peer.module.state_dict())
    assert "conv_1.sk.weight" in keys and "conv_1.eval_conv.weight" not in keys


def test_files_that_the_file_imports_are_its_own(live, written, tmp_path):
    (tmp_path / "gain.py").write_text("GAIN = 1.0\n")
    file = written(imports="from gain import GAIN", ran="y = y * GAIN")
    words = ["-o", tmp_path / "c.json"]
    assert live(file, *words).code == 0
    assert '"beside torch: gain.py"' in (tmp_path / "c.json").read_text()


def test_official_weights_are_the_same_in_both(esrjax, reference, request):
    file = request.path.parents[1] / "twins/spanv2.py"
    words = ["--checkpoint", reference / "weights/team22_spanv2_c2.pth", "--json"]
    found = esrjax("parity", "spanv2", "--torch", f"{file}:Twin", *words)
    assert found.code == 0, found.out
    assert found.json["layers"]["compared"] == 78


def test_without_pytorch_that_is_what_is_missing(live, written, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = live(written())
    assert found.code == 2
    assert "comparing with a PyTorch network needs PyTorch" in found.err
    assert 'pip install "esrjax[torch]"' in found.err
