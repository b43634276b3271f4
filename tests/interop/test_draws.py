"""Random weights use every unit, so that a mistake behind a ReLU or a sigmoid shows at any seed."""

import jax
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.interop.draws import image_sizes, random_net
from esrjax.nn.hooks import taps
from esrjax.nn.state_dict import KeyMap, to_state_dict

torch = pytest.importorskip("torch", reason="torch is not installed")

# Contrast-aware channel attention (IMDN, arXiv:1909.11856): a squeeze layer of four channels, whose
# outputs are all negative for many random weights.
JAX_NET = """
import jax
import jax.numpy as jnp
from esrjax.method import Method
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential
from flax import nnx

class CCALayer(nnx.Module):
    def __init__(self, channels, *, rngs):
        self.down, self.up = Conv2d(channels, 4, 1, rngs=rngs), Conv2d(4, channels, 1, rngs=rngs)

    def __call__(self, x):
        contrast = jnp.std(x, (1, 2), keepdims=True, ddof=1) + jnp.mean(x, (1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.up(jax.nn.relu(self.down(contrast))))

class Block(nnx.Module):
    def __init__(self, channels, *, rngs):
        self.conv, self.cca = Conv2d(channels, channels, rngs=rngs), CCALayer(channels, rngs=rngs)

    def __call__(self, x):
        return x + self.cca(jax.nn.relu(self.conv(x)))

class Net(nnx.Module):
    def __init__(self, *, rngs, channels: int = 8):
        self.head, self.tail = Conv2d(3, channels, rngs=rngs), Conv2d(channels, 48, rngs=rngs)
        self.blocks = Sequential(Block(channels, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        return pixel_shuffle(self.tail(self.blocks(self.head(x))), 4)

METHOD = Method(network=Net, team="t", paper="p", license="MIT", description="Tests.")
"""

TORCH_NET = """
import torch
from torch import nn

class CCALayer(nn.Module):
    def __init__(self, channels, correction):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.correction = correction

    def forward(self, x):
        contrast = x.std((2, 3), correction=self.correction, keepdim=True)
        contrast = contrast + x.mean((2, 3), keepdim=True)
        squeezed = torch.relu(self.down(contrast) + SHIFT)
        return x * torch.sigmoid(self.up(squeezed))

class Block(nn.Module):
    def __init__(self, channels, correction):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cca = CCALayer(channels, correction)

    def forward(self, x):
        return x + self.cca(torch.relu(self.conv(x)))

class Net(nn.Module):
    def __init__(self, channels=8, correction=1):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(Block(channels, correction), Block(channels, 1))
        self.tail = nn.Conv2d(channels, 48, 3, padding=1)

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.tail(self.blocks(self.head(x))), 4)
"""


@pytest.fixture
def run_parity(esrjax, package, tmp_path):
    """Compare a network with contrast-aware channel attention: `run_parity(0, correction=0)`."""
    package("cca", JAX_NET, "esrjax.methods", {"cca": "METHOD"})

    def run(seed, jax_shift=0, **torch_args):
        (tmp_path / "cca.py").write_text(TORCH_NET.replace("SHIFT", str(jax_shift)))
        args = ["--torch", f"{tmp_path / 'cca.py'}:Net", "--torch-args", torch_args or "{}"]
        args[-1] = str(args[-1]).replace("'", '"')
        return esrjax("parity", "cca", *args, "--seed", seed, "--json")

    return run


@pytest.mark.parametrize("seed", range(3))
def test_variance_divisor_in_one_block_is_found_at_any_seed(run_parity, seed):
    result = run_parity(seed, correction=0)
    assert result.code == 1
    assert result.json["layers"]["first_divergence"]["location"] == (
        "in the forward of blocks.0.cca, before blocks.0.cca.down"
    )
    assert result.json["exercise"]["closed"] == []


def test_equal_networks_are_equal(run_parity):
    result = run_parity(0)
    assert result.code == 0, result.out
    assert len(result.json["cases"]) == 9  # three draws: two sizes, and train mode at one
    assert result.json["counts"]["differences"] == {}


def test_relu_that_never_opens_fails_the_comparison(run_parity):
    """Both agree wherever something can be seen: what comes before the ReLU cannot."""
    result = run_parity(0, jax_shift=-1000, correction=0)
    assert result.code == 1
    assert result.json["exercise"]["closed"] == [
        "relu in blocks.0.cca",
        "relu in blocks.1.cca",
    ]
    assert result.json["exercise"]["passed"] is False


def test_outputs_of_layers_have_both_signs_and_unit_variance():
    method = registry.get_method("hfenet")
    net = random_net(method, {"channels": 9, "num_blocks": 1}, seed=3)
    height, width = image_sizes(method)[0]
    x = np.random.default_rng(0).random((2, height, width, 3), np.float32)
    _, outputs = jax.jit(lambda x: taps(net, x))(x)
    squeezed = np.asarray(outputs["pipeline.0.eab.conv1"])
    assert squeezed.std() == pytest.approx(1, abs=0.5)
    assert (squeezed.min((0, 1, 2)) < 0).all() and (squeezed.max((0, 1, 2)) > 0).all()


def test_weights_depend_on_the_seed_alone():
    method = registry.get_method("spanv2")
    first, again, other = (
        to_state_dict(random_net(method, {"channels": 8}, seed), KeyMap(method.torch_names))
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not any(np.array_equal(first[key], other[key]) for key in first)


def test_weights_do_not_depend_on_rounding():
    """Scales are powers of two and biases multiples of 1/64: float32 on every CPU gives these."""
    net = random_net(registry.get_method("rfdn_span"), {"channels": 8}, seed=0)
    biases = [
        value.get_value()
        for path, value in nnx.iter_graph(net)
        if path and path[-1] == "bias" and isinstance(value, nnx.Param)
    ]
    assert biases and all(np.array_equal(np.rint(64 * bias), 64 * bias) for bias in biases)
