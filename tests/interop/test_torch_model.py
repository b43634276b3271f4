"""PyTorch code that cannot be used is reported with its line and a remedy."""

import pytest
import torch

from esrjax.errors import TorchModelError
from esrjax.interop.torch_model import build, load_state_dict, parse_source, state_dict_mismatches


def build_error(error_class, write_torch_file, kwargs=None, name="Net", **lines):
    with pytest.raises(error_class) as caught:
        build(parse_source(f"{write_torch_file(**lines)}:{name}", kwargs or {}))
    return caught.value


def test_network_is_built_with_its_arguments_in_eval_mode(write_torch_file):
    model = build(parse_source(f"{write_torch_file()}:Net", {"kernel_size": 5}))
    assert not model.module.training and not model.notes
    assert model.module.filter.weight.shape == (3, 1, 5, 5)


def test_building_does_not_change_the_global_random_state(write_torch_file):
    before = torch.random.get_rng_state()
    first, second = (build(parse_source(f"{write_torch_file()}:Net", {}), seed=3) for _ in range(2))
    assert torch.equal(first.module.filter.weight, second.module.filter.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_files_of_equal_names_are_separate_modules(write_torch_file, tmp_path):
    first = build(parse_source(f"{write_torch_file()}:Net", {}))
    (tmp_path / "more").mkdir()
    second_file = write_torch_file("more/crumb.py", init="self.two = 2")
    second = build(parse_source(f"{second_file}:Net", {}))
    assert not hasattr(first.module, "two") and second.module.two == 2


def test_missing_package_is_reported_with_its_line(write_torch_file):
    error = build_error(TorchModelError, write_torch_file, imports="import mamba_ssm")
    assert error.problem == "crumb.py needs 'mamba_ssm', which is not installed"
    assert error.location is not None and error.location.endswith("crumb.py:5: import mamba_ssm")
    assert error.remedy.startswith("install mamba_ssm, or use a copy of the file without it")


def test_code_that_needs_a_gpu_is_reported_with_its_line(write_torch_file):
    error = build_error(TorchModelError, write_torch_file, init="torch.cuda.FloatTensor(3)")
    assert error.problem.startswith("Building Net raised ")
    assert error.location is not None and "torch.cuda.FloatTensor(3)" in error.location
    assert error.remedy.startswith("remove CUDA from the file")


def test_exception_is_reported_with_its_line(write_torch_file):
    error = build_error(TorchModelError, write_torch_file, init="self.by = {}['by']")
    assert error.problem == "Building Net raised KeyError: 'by'"
    assert error.location is not None and error.location.endswith("self.by = {}['by']")
    error = build_error(TorchModelError, write_torch_file, imports="import (")
    assert error.problem.startswith("Importing it raised SyntaxError")


def test_unknown_torch_class_is_reported(write_torch_file):
    assert "FILE.py:Class" in parse_error("net.py").problem
    assert parse_error("nowhere.py:Net").problem == "No such file: 'nowhere.py'"
    error = build_error(TorchModelError, write_torch_file, name="Nets")
    assert error.problem == "crumb.py has no torch.nn.Module 'Nets'"
    assert error.rule.endswith(": Net") and error.remedy == "did you mean 'Net'?"
    error = build_error(TorchModelError, write_torch_file, kwargs={"width": 3})
    assert error.problem == "Net cannot be built: got an unexpected keyword argument 'width'"
    assert error.rule.endswith("Net(kernel_size=3)")


def parse_error(text):
    with pytest.raises(TorchModelError) as caught:
        parse_source(text, {})
    return caught.value


def test_every_mismatched_tensor_is_listed(write_torch_file):
    file = write_torch_file(init="self.register_buffer('mask', torch.ones(2))")
    model = build(parse_source(f"{file}:Net", {}))
    state_dict = {key: value.numpy() for key, value in model.module.state_dict().items()}
    assert state_dict_mismatches(model, state_dict, {}) == []
    state_dict["filters.bias"], state_dict["filter.weight"] = (
        state_dict.pop("filter.bias"),
        state_dict["mask"],
    )
    del state_dict["mask"]
    expected = [
        "not in the weights: filter.bias (3,)",
        "shape: filter.weight is (2,), PyTorch has (3, 1, 3, 3)",
        "not in the PyTorch network: filters.bias (3,) (is it filter.bias?)",
    ]
    before = model.module.filter.weight.clone()
    assert sorted(state_dict_mismatches(model, state_dict, {"mask": "recomputed"})) == sorted(
        expected
    )
    with pytest.raises(TorchModelError, match="4 tensors do not fit Net"):
        load_state_dict(model, state_dict, {}, "some.pth")
    assert torch.equal(before, model.module.filter.weight)


def test_sys_exit_is_reported_and_output_goes_to_stderr(write_torch_file, capsys):
    error = build_error(
        TorchModelError, write_torch_file, imports="import sys; print('hello'); sys.exit(0)"
    )
    assert error.problem == "Importing it raised SystemExit: 0"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_two_packages_of_equal_names_are_refused(write_torch_file, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "peerpackage").mkdir(parents=True)
        (tmp_path / folder / "peerpackage/__init__.py").touch()
    first, second = (write_torch_file(f"{folder}/peerpackage/net.py") for folder in ("one", "two"))
    build(parse_source(f"{first}:Net", {}))
    with pytest.raises(TorchModelError, match="a process can import only one package of a name"):
        build(parse_source(f"{second}:Net", {}))
