"""A PyTorch network gives the same output in every execution mode; failures are reported."""

import os

import numpy as np
import pytest
import torch

from esrjax.bench.bench import PROBE_SIZES
from esrjax.errors import TorchModelError
from esrjax.interop import torch_optim
from esrjax.interop.torch_model import build, parse_source
from esrjax.interop.torch_watch import Exercise

LR = np.random.default_rng(0).random((1, 6, 7, 3)).astype(np.float32)


@pytest.fixture
def build_model(write_torch_file):
    """Build the network of a PyTorch file: `build_model(forward="y = y * 2")`."""
    return lambda **lines: build(parse_source(f"{write_torch_file(**lines)}:Net", {}))


IS_CHANNELS_LAST = "y.is_contiguous(memory_format=torch.channels_last)"


def test_both_memory_formats_give_the_same_image_without_gradients(build_model):
    model = build_model(forward=f"y = 1 - y if {IS_CHANNELS_LAST} else y")
    eager, channels_last = (
        torch_optim.prepare(model, LR, 4, mode)() for mode in ("eager", "channels-last")
    )
    assert tuple(eager.shape) == (1, 3, 24, 28) and eager.is_inference()
    torch.testing.assert_close(channels_last, 1 - eager, rtol=0, atol=1e-6)
    assert model.module.filter.weight.is_contiguous()  # the user's module is unchanged


def test_each_compilation_has_an_empty_cache(build_model, monkeypatch):
    cache_folders = []

    def compile(module, *, dynamic):
        cache_folders.append(os.environ[torch_optim.INDUCTOR_CACHE_VAR])
        assert not dynamic and os.listdir(cache_folders[-1]) == []
        return module

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setenv(torch_optim.INDUCTOR_CACHE_VAR, "mine")
    for _ in range(2):
        torch_optim.prepare(build_model(), LR, 4, "compiled")()
    assert len(set(cache_folders)) == 2 and not any(map(os.path.exists, cache_folders))
    assert os.environ[torch_optim.INDUCTOR_CACHE_VAR] == "mine"


def test_failing_or_unfitting_network_is_reported(build_model):
    with pytest.raises(TorchModelError, match="Running it raised ValueError: flat"):
        torch_optim.prepare(build_model(forward="raise ValueError('flat')"), LR, 4, "eager")
    with pytest.raises(
        TorchModelError, match=r"Net returns \(1, 3, 24, 28\), expected \(1, 3, 12, 14\)"
    ):
        torch_optim.prepare(build_model(), LR, 2, "eager")


def test_bench_times_a_torch_model_with_its_method(esrjax, crumbs, write_torch_file, monkeypatch):
    def compile(module, **options):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setitem(PROBE_SIZES, "cpu", (2**16, 64))
    args = (
        "bench crumb --image-size 8x9 --seconds 0.01 --torch-compile --hparam kernel_size=5".split()
    )
    result = esrjax(*args, "--torch", f"{write_torch_file()}:Net", "--json").json
    rows = {row["engine"]: row for row in result["rows"]}
    assert list(rows) == ["jax-cpu", "pytorch", "pytorch-channels-last"]
    assert rows["jax-cpu"]["torch_eager_ratio"] > 0 and rows["pytorch"]["torch_eager_ratio"] is None
    assert rows["pytorch"]["compilations"] == 0 and rows["pytorch"]["compile_s"] is None
    assert result["notes"] == [
        "crumb: pytorch-compiled skipped, torch.compile raised RuntimeError: no compiler"
    ]
    text = esrjax(*args, "--torch", f"crumb={write_torch_file()}:Net").out
    assert "vs. eager PyTorch" in text and "precision" not in text.splitlines()[2]
    assert text.rstrip().endswith("RuntimeError: no compiler")


NAMED_OUTPUTS = """class Split(nn.Module):
            def forward(self, x):
                return Halves(x / 2, x / 2)
        self.split = Split()"""


def test_named_tuple_of_outputs_keeps_its_fields_and_has_gradients(build_model):
    model = build_model(
        imports="from collections import namedtuple\nHalves = namedtuple('Halves', 'a b')",
        init=NAMED_OUTPUTS,
        forward="halves = self.split(y); y = halves.a + 2 * halves.b",
    )
    run = torch_optim.run(model, LR.astype(np.float64), Exercise())
    (event,) = [event for event in run.events if (event.path, event.io) == ("split", "out")]
    assert len(event.tensors) == 2
    np.testing.assert_allclose(event.grads[1], 2 * event.grads[0])
