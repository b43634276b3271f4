"""DSCF: merged convolutions, exact where the train form sees the ring that they see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.dscf import DSCF, TORCH_NAMES, Head, merge
from esrjax_plugins.parts.spab import centred
from flax import nnx

from esrjax import registry
from esrjax.model import open_method
from esrjax.network import archive, canvas
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import cast, leaves, tensors
from esrjax.network.words import conv2d


def picture(dtype):
    return jnp.asarray(np.random.default_rng(0).random((1, 9, 11, 3)), dtype)


class Corrected(nnx.Module):
    """The merged head less what it makes of features one pixel outside of the picture."""

    def __init__(self, head, emsr):
        self.head, self.conv_1, self.c1 = head, emsr.conv_1, emsr.block_1.c1

    def __call__(self, z):
        u, found = self.head(z)
        wide = conv2d(z, self.conv_1.weight[...], self.conv_1.bias[...], padding=(2, 2))
        ring = wide.at[:, 1:-1, 1:-1].set(0)
        return u, found - conv2d(ring, self.c1.weight[...])


@pytest.fixture
def emsr():
    with jax.enable_x64(True):
        yield deploy(cast(registry.method("emsr").build(channels=4), jnp.float64))


def test_a_merged_emsr_differs_by_what_lies_outside_of_the_picture(emsr):
    x, merged = picture(jnp.float64), merge(emsr)
    wanted = emsr(x)
    assert jnp.abs(merged(x) - wanted).max() > 1e-6 * jnp.ptp(wanted)
    merged.head = Corrected(merged.head, emsr)
    np.testing.assert_allclose(merged(x), wanted, rtol=0, atol=1e-10 * float(jnp.ptp(wanted)))


def test_the_difference_starts_in_the_outermost_pixels_of_block_1(emsr):
    z = centred(picture(jnp.float64))
    _, found = merge(emsr).head(z)
    change = np.abs(found - emsr.block_1.c1(emsr.conv_1(z)))
    assert change[:, 0].max() > 1 and change[:, :, -1].max() > 1
    assert change[:, 1:-1, 1:-1].max() < 1e-11


def test_the_head_sees_its_ring_on_a_canvas_too():
    head = Head(4, rank=2, rngs=nnx.Rngs(0))
    z = centred(picture(jnp.float32))
    room = [(0, 0), (0, 3), (0, 2), (0, 0)]
    with canvas.picture(jnp.pad(jnp.ones(z.shape[1:3]), room[1:3])):
        large = head(jnp.pad(z, room, constant_values=7.0))
    for ours, wanted in zip(large, deploy(head)(z), strict=True):
        np.testing.assert_allclose(ours[:, :9, :11], wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("rank, tail_rank, adapters", [(2, 8, 20), (0, 8, 2), (0, 0, 0)])
def test_blocks_tail_and_upsampler_have_adapters(rank, tail_rank, adapters):
    net = DSCF(rngs=nnx.Rngs(0), channels=4, rank=rank, tail_rank=tail_rank)
    found = [path for path, _ in leaves(net) if path.endswith("lora_A")]
    assert len(found) == adapters
    assert not any("conv_1" in path or "conv_cat" in path for path in found)


def test_the_published_weights_are_those_of_emsr_merged(reference):
    theirs = archive.read(reference / "weights" / "team15_DSCF_Fused.pth").tensors
    file = reference / "weights" / "team23_DSCF.pth"
    merged = tensors(merge(open_method("emsr", file).net), Naming(TORCH_NAMES))
    read = tensors(open_method("dscf", file).net, Naming(TORCH_NAMES))
    assert merged.keys() == read.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(read[key], merged[key])
        np.testing.assert_allclose(merged[key], value, rtol=0, atol=5e-7, err_msg=key)


def test_the_merge_shows_along_the_border_alone(reference):
    emsr = open_method("emsr", reference / "weights" / "team23_DSCF.pth").net
    x = np.load(reference / "golden" / "emsr.npz")["x0"].transpose(0, 2, 3, 1)
    change = np.abs(np.asarray(merge(emsr)(x) - emsr(x)))
    assert 0.005 < change.max() < 0.05
    assert change[:, 64:-64, 64:-64].max() < 1e-4
