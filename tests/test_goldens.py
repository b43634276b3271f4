"""Tiny networks reproduce stored outputs of their PyTorch twins, without PyTorch or downloads.

The files are written by tools/goldens.py; each records its origin in `about`.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from twins.drawn import random_state_dict

from esrjax import registry
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, load_state_dict, to_state_dict
from esrjax.testing import FAST_COMPILE

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.npz"))
RTOL = 1e-9  # of the largest value


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays["about"]))


def build_network(about):
    """The JAX network of a golden file, with the random weights of its seed, in float64."""
    method = registry.get_method(about["method"])
    net = method.build(**about["hparams"])
    net.eval()
    net = net if about["form"] == "train" else deploy(net)
    key_map = KeyMap(method.torch_names)
    shapes = {key: value.shape for key, value in to_state_dict(net, key_map).items()}
    with jax.enable_x64(True):
        state_dict = random_state_dict(shapes, about["seed"])
        return load_state_dict(cast(net, jnp.float64), state_dict, key_map)


def test_network_reproduces_the_twin(golden):
    arrays, about = golden
    graphdef, state = nnx.split(build_network(about))
    with jax.enable_x64(True):

        @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
        def run(state, x):
            forward = lambda x: nnx.merge(graphdef, state)(x)  # noqa: E731
            y, vjp = jax.vjp(forward, x)
            return y, vjp(jnp.cos(y))[0]  # cotangent of sum(sin(y))

        jax_arrays = run(state, arrays["x0"].transpose(0, 2, 3, 1).astype(np.float64))
    for jax_array, torch_array in zip(jax_arrays, (arrays["y0"], arrays["g0"]), strict=True):
        largest = np.abs(torch_array).max()
        jax_array = np.asarray(jax_array).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(jax_array, torch_array, rtol=0, atol=RTOL * largest)


def test_origin_is_recorded(golden):
    _, about = golden
    assert set(about) == {"method", "form", "hparams", "seed", "torch", "twin"}
    assert (Path(__file__).parents[1] / about["twin"]).is_file()


def test_files_are_many_and_small():
    assert len(GOLDENS) >= 6
    assert max(path.stat().st_size for path in GOLDENS) < 32_000
