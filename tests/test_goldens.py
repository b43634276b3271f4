"""What every clone can check: tiny networks give what their PyTorch twins once gave.

The files are written by tools/goldens.py; each says in `about` where it comes from.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from twins import drawn

from esrjax import registry
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import cast, load, tensors
from esrjax.testing import QUICK

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.npz"))
EXACT = 1e-9  # of the largest value


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["about"]))


def network(about):
    """The network of the golden file, its weights drawn again."""
    method = registry.plain(about["method"])
    net = method.build(**about["sizes"])
    net.eval()
    net = net if about["form"] == "train" else deploy(net)
    naming = Naming(method.torch_names)
    shapes = {key: value.shape for key, value in tensors(net, naming).items()}
    with jax.enable_x64(True):
        held = drawn.weights(shapes, about["seed"])
        return load(cast(net, jnp.float64), held, naming)


def test_it_is_what_pytorch_gave(golden):
    arrays, about = golden
    graph, state = nnx.split(network(about))
    with jax.enable_x64(True):

        @functools.partial(jax.jit, compiler_options=QUICK)
        def run(state, x):
            forward = lambda x: nnx.merge(graph, state)(x)  # noqa: E731
            y, back = jax.vjp(forward, x)
            return y, back(jnp.cos(y))[0]

        found = run(state, arrays["x0"].transpose(0, 2, 3, 1).astype(np.float64))
    for ours, theirs in zip(found, (arrays["y0"], arrays["g0"]), strict=True):
        largest = np.abs(theirs).max()
        ours = np.asarray(ours).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=EXACT * largest)


def test_it_says_where_it_comes_from(golden):
    _, about = golden
    assert set(about) == {"method", "form", "sizes", "seed", "torch", "twin"}
    assert (Path(__file__).parents[1] / about["twin"]).is_file()


def test_they_are_small_and_many():
    assert len(GOLDENS) >= 6
    assert max(path.stat().st_size for path in GOLDENS) < 32_000
