"""What cannot be run as it is is told, with its line and what to do about it."""

import pytest
import torch

from esrjax.bridge.cpu import PeerFailed
from esrjax.bridge.peer import NoPeer, PeerMismatch, build, fill, misfits, source


def refused(kind, written, arguments=None, name="Net", **lines):
    with pytest.raises(kind) as found:
        build(source(f"{written(**lines)}:{name}", arguments or {}))
    return found.value


def test_a_network_is_built_as_it_is_said(written):
    peer = build(source(f"{written()}:Net", {"side": 5}))
    assert not peer.module.training and not peer.notes
    assert peer.module.filter.weight.shape == (3, 1, 5, 5)


def test_building_one_draws_nothing_from_pytorchs_own_generator(written):
    before = torch.random.get_rng_state()
    first, second = (build(source(f"{written()}:Net", {}), seed=3) for _ in range(2))
    assert torch.equal(first.module.filter.weight, second.module.filter.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_files_of_one_name_are_not_each_other(written, tmp_path):
    first = build(source(f"{written()}:Net", {}))
    (tmp_path / "more").mkdir()
    more = written("more/crumb.py", built="self.two = 2")
    second = build(source(f"{more}:Net", {}))
    assert not hasattr(first.module, "two") and second.module.two == 2


def test_a_package_that_is_missing_is_named_with_its_line(written):
    error = refused(PeerFailed, written, imports="import mamba_ssm")
    assert error.problem == "crumb.py needs 'mamba_ssm', which is not installed"
    assert error.place is not None and error.place.endswith("crumb.py:5: import mamba_ssm")
    assert error.remedy.startswith("install mamba_ssm, or give a copy of the file without it")


def test_code_that_needs_a_gpu_is_named_with_its_line(written):
    error = refused(PeerFailed, written, built="torch.cuda.FloatTensor(3)")
    assert error.problem.startswith("building Net raised ")
    assert error.place is not None and "torch.cuda.FloatTensor(3)" in error.place
    assert error.remedy.startswith("leave CUDA out of the file")


def test_code_that_raises_is_named_with_its_line(written):
    error = refused(PeerFailed, written, built="self.by = {}['by']")
    assert error.problem == "building Net raised KeyError: 'by'"
    assert error.place is not None and error.place.endswith("self.by = {}['by']")
    error = refused(PeerFailed, written, imports="import (")
    assert error.problem.startswith("importing it raised SyntaxError")


def test_words_that_name_no_class(written):
    assert "names no PyTorch class" in refused_words("net.py").problem
    assert "there is no file" in refused_words("nowhere.py:Net").problem
    error = refused(NoPeer, written, name="Nets")
    assert error.problem == "crumb.py has no torch.nn.Module 'Nets'"
    assert (error.rule, error.remedy) == (
        "the class is one of the file: Net",
        "did you mean 'Net'?",
    )
    error = refused(NoPeer, written, arguments={"width": 3})
    assert error.problem == "Net cannot be built: got an unexpected keyword argument 'width'"
    assert error.rule == "it is built as Net(side=3)"


def refused_words(words):
    with pytest.raises(NoPeer) as found:
        source(words, {})
    return found.value


def test_every_tensor_that_does_not_fit_is_named(written):
    file = written(built="self.register_buffer('mask', torch.ones(2))")
    peer = build(source(f"{file}:Net", {}))
    held = {key: value.numpy() for key, value in peer.module.state_dict().items()}
    assert misfits(peer, held, {}) == []
    held["filters.bias"], held["filter.weight"] = held.pop("filter.bias"), held["mask"]
    del held["mask"]
    wrong = [
        "not in the weights: filter.bias (3,)",
        "misshapen: filter.weight is (2,), PyTorch has (3, 1, 3, 3)",
        "not in the PyTorch network: filters.bias (3,) (is it filter.bias?)",
    ]
    before = peer.module.filter.weight.clone()
    assert sorted(misfits(peer, held, {"mask": "made anew"})) == sorted(wrong)
    with pytest.raises(PeerMismatch, match="4 tensors do not fit Net"):
        fill(peer, held, {}, "some.pth")
    assert torch.equal(before, peer.module.filter.weight)


def test_a_file_that_leaves_is_told_and_what_it_prints_is_not_ours(written, capsys):
    error = refused(PeerFailed, written, imports="import sys; print('hello'); sys.exit(0)")
    assert error.problem == "importing it raised SystemExit: 0"
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")


def test_a_package_of_a_name_that_is_taken_is_not_taken_for_the_other(written, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "peerpackage").mkdir(parents=True)
        (tmp_path / folder / "peerpackage/__init__.py").touch()
    first, second = (written(f"{folder}/peerpackage/net.py") for folder in ("one", "two"))
    build(source(f"{first}:Net", {}))
    with pytest.raises(NoPeer, match="one process imports one package of a name"):
        build(source(f"{second}:Net", {}))
