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


def ring(emsr, z):
    """What block 1's first convolution makes of the features one pixel outside of the picture."""
    head, c1 = emsr.conv_1, emsr.block_1.c1
    wide = conv2d(z, head.weight[...], head.bias[...], padding=(2, 2))
    outside = wide.at[:, 1:-1, 1:-1].set(0)
    return conv2d(outside, c1.weight[...])


def test_the_merge_of_an_emsr_differs_by_the_ring_alone():
    with jax.enable_x64(True):
        emsr = deploy(cast(registry.method("emsr").build(channels=4), jnp.float64))
        z = centred(picture(jnp.float64))
        u, found = cast(merge(emsr), jnp.float64).head(z)
        wanted = emsr.block_1.c1(emsr.conv_1(z))
        np.testing.assert_array_equal(u, emsr.conv_1(z))
        assert jnp.abs(found - wanted).max() > 1
        np.testing.assert_allclose(found - ring(emsr, z), wanted, rtol=0, atol=2e-4)
        inside = np.s_[:, 1:-1, 1:-1]
        np.testing.assert_allclose(found[inside], wanted[inside], rtol=0, atol=2e-4)


def test_merging_loses_nothing_but_the_ring():
    """The whole network: an EMSR that pads its head once instead of twice is the merged one."""
    with jax.enable_x64(True):
        emsr = deploy(registry.method("emsr").build(channels=4))
        train = DSCF(rngs=nnx.Rngs(0), channels=4)
        held = {**tensors(train, Naming(TORCH_NAMES))}
        held |= tensors(emsr, Naming(registry.method("emsr").torch_names))
        assert sum("lora" in key for key in held) == 2 * (18 + 2)
        x = picture(jnp.float64)
        small, large = (cast(net, jnp.float64)(x) for net in (merge(emsr), emsr))
        assert small.shape == large.shape
        assert jnp.abs(small - large).max() > 0


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
    weights = reference / "weights"
    ours = merge(open_method("emsr", weights / "team23_DSCF.pth").net)
    theirs = archive.read(weights / "team15_DSCF_Fused.pth").tensors
    held = tensors(ours, Naming(TORCH_NAMES))
    assert held.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(held[key], value, rtol=0, atol=5e-7, err_msg=key)


def test_the_merge_shows_along_the_border_alone(reference):
    emsr = open_method("emsr", reference / "weights" / "team23_DSCF.pth").net
    x = np.load(reference / "golden" / "emsr.npz")["x0"].transpose(0, 2, 3, 1)
    change = np.abs(np.asarray(merge(emsr)(x) - emsr(x)))
    assert 0.005 < change.max() < 0.05
    assert change[:, 64:-64, 64:-64].max() < 1e-4
