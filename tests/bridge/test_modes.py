"""A PyTorch network runs in every mode, gives the same, and is told where it does not fit."""

import os

import numpy as np
import pytest
import torch

from esrjax.bridge import modes
from esrjax.bridge.cpu import PeerFailed
from esrjax.bridge.peer import PeerMismatch, build, source
from esrjax.contest import roofline

LR = np.random.default_rng(0).random((1, 6, 7, 3)).astype(np.float32)


@pytest.fixture
def peer(written):
    """The network of a file with other lines: `peer(ran="y = y * 2")`."""
    return lambda **lines: build(source(f"{written(**lines)}:Net", {}))


LAST = "y.is_contiguous(memory_format=torch.channels_last)"


def test_both_layouts_give_the_same_picture_without_gradients(peer):
    theirs = peer(ran=f"y = 1 - y if {LAST} else y")
    eager, last = (modes.ready(theirs, LR, 4, mode)() for mode in ("eager", "channels-last"))
    assert tuple(eager.shape) == (1, 3, 24, 28) and eager.is_inference()
    torch.testing.assert_close(last, 1 - eager, rtol=0, atol=1e-6)
    assert theirs.module.filter.weight.is_contiguous()  # the user's own is left as it was


def test_a_compiled_network_takes_nothing_from_an_earlier_time(peer, monkeypatch):
    folders = []

    def compile(module, *, dynamic):
        folders.append(os.environ[modes.CACHE])
        assert not dynamic and os.listdir(folders[-1]) == []
        return module

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setenv(modes.CACHE, "mine")
    for _ in range(2):
        modes.ready(peer(), LR, 4, "compiled")()
    assert len(set(folders)) == 2 and not any(map(os.path.exists, folders))
    assert os.environ[modes.CACHE] == "mine"


def test_what_does_not_run_or_does_not_fit_is_told(peer):
    with pytest.raises(PeerFailed, match="running it raised ValueError: flat"):
        modes.ready(peer(ran="raise ValueError('flat')"), LR, 4, "eager")
    with pytest.raises(PeerMismatch, match=r"Net gives \(1, 3, 24, 28\), not \(1, 3, 12, 14\)"):
        modes.ready(peer(), LR, 2, "eager")


def test_bench_runs_a_peer_beside_its_method(esrjax, crumbs, written, monkeypatch):
    def compile(module, **options):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setitem(roofline.SIZES, "cpu", (2**16, 64))
    words = "bench crumb --sizes 8x9 --seconds 0.01 --compiled --size side=5".split()
    found = esrjax(*words, "--peer", f"{written()}:Net", "--json").json
    rows = {row["engine"]: row for row in found["rows"]}
    assert list(rows) == ["jax-cpu", "pytorch", "pytorch-channels-last"]
    assert rows["jax-cpu"]["ratio"] > 0 and rows["pytorch"]["ratio"] is None
    assert rows["pytorch"]["compilations"] == 0 and rows["pytorch"]["compile_s"] is None
    assert found["notes"] == [
        "crumb: no pytorch-compiled, torch.compile raised RuntimeError: no compiler"
    ]
    said = esrjax(*words, "--peer", f"crumb={written()}:Net").out
    assert "of eager PyTorch" in said and "precision" not in said.splitlines()[2]
    assert said.rstrip().endswith("RuntimeError: no compiler")
