"""DSCF: merged convolutions, exact because the train form pads like the merged network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import load_npz
from esrjax_plugins.blocks.spab import normalize_input
from esrjax_plugins.dscf import DSCF, TORCH_NAMES, DSCFHead, merge
from flax import nnx

from esrjax import registry
from esrjax.inference import open_method
from esrjax.nn import checkpoint_io, masking
from esrjax.nn.functional import conv2d
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, named_parameters, to_state_dict


def random_image(dtype):
    return jnp.asarray(np.random.default_rng(0).random((1, 9, 11, 3)), dtype)


class CorrectedHead(nnx.Module):
    """The merged head minus its contribution of features one pixel outside of the image."""

    def __init__(self, head, emsr):
        self.head, self.conv_1, self.c1 = head, emsr.conv_1, emsr.block_1.c1

    def __call__(self, z):
        u, first_conv_out = self.head(z)
        padded = conv2d(z, self.conv_1.weight[...], self.conv_1.bias[...], padding=(2, 2))
        outside = padded.at[:, 1:-1, 1:-1].set(0)
        return u, first_conv_out - conv2d(outside, self.c1.weight[...])


@pytest.fixture
def emsr():
    with jax.enable_x64(True):
        yield deploy(cast(registry.get_entry("emsr").build(channels=4), jnp.float64))


def test_merged_emsr_differs_by_the_features_outside_the_image(emsr):
    x, merged = random_image(jnp.float64), merge(emsr)
    expected = emsr(x)
    assert jnp.abs(merged(x) - expected).max() > 1e-6 * jnp.ptp(expected)
    merged.head = CorrectedHead(merged.head, emsr)
    np.testing.assert_allclose(merged(x), expected, rtol=0, atol=1e-10 * float(jnp.ptp(expected)))


def test_merged_first_convolution_differs_in_the_outermost_pixels(emsr):
    z = normalize_input(random_image(jnp.float64))
    _, first_conv_out = merge(emsr).head(z)
    diff = np.abs(first_conv_out - emsr.block_1.c1(emsr.conv_1(z)))
    assert diff[:, 0].max() > 1 and diff[:, :, -1].max() > 1
    assert diff[:, 1:-1, 1:-1].max() < 1e-11


def test_head_pads_the_valid_region_of_a_masked_image():
    head = DSCFHead(4, rank=2, rngs=nnx.Rngs(0))
    z = normalize_input(random_image(jnp.float32))
    padding = [(0, 0), (0, 3), (0, 2), (0, 0)]
    with masking.valid_region(jnp.pad(jnp.ones(z.shape[1:3]), padding[1:3])):
        outputs = head(jnp.pad(z, padding, constant_values=7.0))
    for actual, expected in zip(outputs, deploy(head)(z), strict=True):
        np.testing.assert_allclose(actual[:, :9, :11], expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("rank, tail_rank, adapters", [(2, 8, 20), (0, 8, 2), (0, 0, 0)])
def test_blocks_tail_and_upsampler_have_adapters(rank, tail_rank, adapters):
    net = DSCF(rngs=nnx.Rngs(0), channels=4, rank=rank, tail_rank=tail_rank)
    paths = [path for path, _ in named_parameters(net) if path.endswith("lora_A")]
    assert len(paths) == adapters
    assert not any("conv_1" in path or "conv_cat" in path for path in paths)


def test_published_weights_are_emsr_merged(reference):
    official = checkpoint_io.read_checkpoint(
        reference / "weights" / "team15_DSCF_Fused.pth"
    ).state_dict
    path = reference / "weights" / "team23_DSCF.pth"
    merged = to_state_dict(merge(open_method("emsr", path).net), KeyMap(TORCH_NAMES))
    loaded = to_state_dict(open_method("dscf", path).net, KeyMap(TORCH_NAMES))
    assert merged.keys() == loaded.keys() == official.keys()
    for key, value in official.items():  # float32 sums depend on the CPU: up to 7e-7 seen
        np.testing.assert_array_equal(loaded[key], merged[key])
        np.testing.assert_allclose(merged[key], value, rtol=0, atol=1e-6, err_msg=key)


def test_merge_changes_the_border_only(reference):
    emsr = open_method("emsr", reference / "weights" / "team23_DSCF.pth").net
    x = load_npz(reference / "golden" / "emsr.npz")["x0"].transpose(0, 2, 3, 1)
    diff = np.abs(np.asarray(merge(emsr)(x) - emsr(x)))
    assert 0.005 < diff.max() < 0.05
    assert diff[:, 64:-64, 64:-64].max() < 1e-4
