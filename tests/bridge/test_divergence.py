"""The first module where two networks differ is located, for faults of several kinds."""

import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from esrjax.bridge.live import compare_float64

X = np.random.default_rng(0).random((2, 13, 17, 3), np.float32)


def wrong_padding(net):
    net.pipeline[0].slkab.slka.conv3_13.padding_mode = "zeros"


def tanh_gelu(net):
    net.blocks[0].ffn[1] = nn.GELU("tanh")


def small_eps(net):
    net.block_3.mamba_gate.norm.eps = 1e-6


def transposed_kernel(net):
    def forward(self, x):
        return functional.conv2d(x, self.weight.mT, self.bias, padding=1)

    net.B2.c2_r.forward = types.MethodType(forward, net.B2.c2_r)


def swapped_concat(net):
    def forward(self, x):
        u = x
        for i in range(1, 6):
            u = getattr(self, f"block_{i}")(u)
        both = torch.cat([u, self.conv_near(x)], 1)
        return functional.pixel_shuffle(self.pointwise_conv(self.depthwise_conv(both)), 4)

    net.forward = types.MethodType(forward, net)


class Shuffle(nn.Module):
    """Pixel shuffle in TensorFlow's order: within a block, the channel varies fastest."""

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.reshape(n, 4, 4, c // 16, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, c // 16, 4 * h, 4 * w)


def wrong_shuffle(net):
    net.upsampler[1] = Shuffle()


FAULTS = {  # name -> method, function that applies the fault, location that is reported
    "padding mode": (
        "hfenet",
        wrong_padding,
        "in pipeline.0.slkab.slka.conv3_13 (Conv2d)",
    ),
    "tanh GELU": (
        "safmn_deep15",
        tanh_gelu,
        "in the forward of blocks.0.ffn, after blocks.0.ffn.0, before blocks.0.ffn.2; "
        "only PyTorch has blocks.0.ffn.1 (GELU) there",
    ),
    "LayerNorm eps": ("mambagate_sr", small_eps, "in block_3.mamba_gate.norm (LayerNorm)"),
    "transposed kernel": (
        "rfdn_span",
        transposed_kernel,
        "in B2.c2_r (Conv2d, JAX block_2.refine_2)",
    ),
    "swapped concat": (
        "spanv2",
        swapped_concat,
        "in the forward of the network, after conv_near, before depthwise_conv",
    ),
    "pixel-shuffle order": (
        "span",
        wrong_shuffle,
        "in the forward of the network, after upsampler.0, before the end of the network; "
        "only PyTorch has upsampler.1 (Shuffle) there",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_located(make_pair, fault):
    name, apply_fault, location = FAULTS[fault]
    pair = make_pair(name)
    apply_fault(pair.torch_model.module)
    diffs, layers, _ = compare_float64(pair, X)
    assert layers.first_divergence is not None
    assert layers.first_divergence.location == location
    diff = layers.first_divergence.diff
    assert (
        diff.max_abs_diff == pytest.approx(abs(diff.jax_value - diff.torch_value)) and diff.differs
    )
    assert not any(output_diff.passed for output_diff in diffs)


@pytest.mark.parametrize(("name", "form"), [("span", "train"), ("rfdn_span", "deploy")])
def test_equal_networks_have_no_divergence(make_pair, name, form):
    diffs, layers, _ = compare_float64(make_pair(name, form), X)
    assert all(diff.passed for diff in diffs)
    assert (layers.first_divergence, layers.harmless_diffs, layers.jax_only) == (None, (), ())
    assert layers.num_compared > 80
    assert set(layers.shape_mismatch) == {"upsampler (Sequential)"}
    assert "upsampler.1 (PixelShuffle)" in layers.torch_only
