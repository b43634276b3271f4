"""Both sides are followed through their parts, however they are cut and laid out."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from esrjax.bridge import trace
from esrjax.bridge.divergence import survey
from esrjax.bridge.layouts import layouts
from esrjax.bridge.peer import Peer, Source
from esrjax.bridge.pytorch import moments
from esrjax.network.layers import Conv2d
from esrjax.network.naming import Naming
from esrjax.network.weights import tensors

NAMES = Naming({"body.conv.{leaf}": "body.{leaf}"})
X = np.random.default_rng(0).random((2, 5, 7, 3), np.float32)


class Ours(nnx.Module):
    """Two runs of a convolution, then another one, its ReLU outside of it."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.body, self.tail = Conv2d(3, 3, rngs=rngs), Conv2d(3, 4, 1, rngs=rngs)

    def __call__(self, x):
        x = self.body(self.body(x))
        return self.tail(jnp.maximum(x, 0))


class Body(torch.nn.Module):
    """A convolution that keeps the ReLU to itself, in the run of that number."""

    def __init__(self):
        super().__init__()
        self.conv, self.runs = torch.nn.Conv2d(3, 3, 3, padding=1), 0

    def forward(self, x):
        self.runs += 1
        return functional.relu(self.conv(x)) if self.runs % 2 == 0 else self.conv(x)


class Theirs(torch.nn.Module):
    """The same, but for what `fault` makes of the tail's input in place, and of the output."""

    def __init__(self, fault=0.0, scale=1.0):
        super().__init__()
        self.body, self.tail = Body(), torch.nn.Conv2d(3, 4, 1)
        self.fault, self.scale = fault, scale

    def forward(self, x):
        x = self.body(self.body(x))
        y = self.tail(x)
        x += self.fault
        return self.scale * y


@pytest.fixture
def parted(tmp_path):
    """What is seen of ours beside theirs: `parted(scale=2.0)`."""

    def run(change=lambda net: None, **said):
        ours, theirs = Ours(), Theirs(**said)
        held = {key: torch.tensor(np.array(v)) for key, v in tensors(ours, NAMES).items()}
        theirs.load_state_dict(held)
        change(theirs)
        source = Source(file=tmp_path / "net.py", name="Theirs")
        seen = moments(Peer(module=theirs, source=source, notes=set()), X)
        calls = trace.calls(ours, X)
        steps = [rounded(step) for step in trace.follow(seen, calls, NAMES)]
        return survey(steps, [path for path, _ in calls])

    return run


def rounded(step):
    """In single precision: what its rounding explains is no difference."""
    if step.gap is None or step.gap.max_abs > 1e-5 * step.gap.spread:
        return step
    return trace.Step(**{**vars(step), "gap": trace.Gap(**{**vars(step.gap), "max_abs": 0.0})})


def test_parts_that_are_cut_differently_are_told_apart_from_a_fault(parted):
    layers = parted()
    assert layers.first is None
    assert layers.apart == ("body (Body)",)
    assert (layers.only_theirs, layers.only_ours, layers.unfit) == ((), (), ())
    assert layers.compared == 12  # two runs of two, one of the tail and of the whole; both ends


def test_what_comes_after_the_last_part_lies_at_the_end(parted):
    first = parted(scale=2.0).first
    assert (first.kind, first.part, first.after, first.inside) == ("code", "", "tail", "")
    assert first.place == "in the forward of the network, after tail, before the end of the network"


def test_what_is_changed_in_place_afterwards_is_seen_as_it_was(parted):
    assert parted(fault=1.0).first is None


def test_a_fault_of_the_second_run_is_told_as_one(parted):
    def plant(net):
        plain, runs = net.body.conv.forward, []

        def forward(x):
            runs.append(x)
            return plain(x) + (len(runs) == 2)

        net.body.conv.forward = forward

    first = parted(plant).first
    assert first.place == "in body.conv (Conv2d, ours body), run 2"
    assert first.call == 2


def test_numbers_that_are_none_are_a_difference(parted):
    first = parted(scale=float("nan")).first
    assert first.part == "" and np.isnan(first.gap.theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((2, 5, 7, 4), (2, 4, 5, 7)),
        ((2, 5, 7, 4), (2, 5, 7, 4)),
        ((2, 5, 7, 4), (2, 35, 4)),
        ((2, 5, 7, 4), (2, 4, 35)),
        ((2, 35, 4), (2, 4, 5, 7)),
        ((2, 35, 4), (2, 4, 35)),
        ((2, 4), (2, 4)),
        ((2, 5, 7, 4), (2, 3, 5, 7)),
    ],
)
def test_layouts_are_found(ours, theirs):
    array = np.arange(np.prod(ours)).reshape(ours)
    found = layouts(array, theirs)
    assert found and all(each.shape == theirs for each in found)
    assert all(each.flat[0] == 0 and len(np.unique(each)) == each.size for each in found)
    first = array.reshape(2, -1, ours[-1])[0, :, 0]
    assert any(
        set(first) == set(np.take(each[0], 0, axis).flat) for each in found for axis in (0, -1)
    )


def test_what_has_no_common_layout_is_not_compared():
    assert layouts(np.zeros((2, 5, 7, 4)), (2, 4, 10, 14)) == []
    assert trace.gap(np.zeros((2, 5, 7, 4)), np.zeros((2, 3, 5, 7))) is None
