"""Layers that several twins share. Images are `(N, C, h, w)`."""

import torch
from torch import nn
from torch.nn import functional

RGB_MEAN = (0.4488, 0.4371, 0.4040)


def rgb_mean_like(x):
    """DIV2K's RGB mean as `(1, 3, 1, 1)`, in the dtype of `x`."""
    return x.new_tensor(RGB_MEAN)[None, :, None, None]


def conv(in_channels, out_channels, kernel_size=3, **options):
    """A convolution with "same" padding."""
    padding = options.get("dilation", 1) * (kernel_size - 1) // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, **options)


def upsampler(channels, scale):
    """A convolution and a pixel shuffle."""
    return nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))


def selective_scan(x, delta, A, B, C, D):
    """The scan of Mamba (arXiv:2312.00752), Algorithm 2, as a loop over tokens.

    `x` and `delta` are `(N, L, d_inner)`, `A (d_inner, d_state)`, `B` and `C (N, L, d_state)`, and
    `D (d_inner,)`.
    """
    decay = torch.exp(delta[..., None] * A)
    delta_B_x = (delta * x)[..., None] * B[:, :, None]
    state, states = torch.zeros_like(delta_B_x[:, 0]), []
    for factor, update in zip(decay.unbind(1), delta_B_x.unbind(1), strict=True):
        state = factor * state + update
        states.append(state)
    return torch.einsum("nlds,nls->nld", torch.stack(states, 1), C) + D * x


class Conv3XC(nn.Module):
    """SPAN's convolution.

    form: "train" has the branches, "deploy" the fused convolution and "both" has both, as the
    official code does: it runs the branches in training and the fused convolution in eval mode.
    """

    def __init__(self, in_channels, out_channels, gain=2, form="train"):
        super().__init__()
        if form != "deploy":
            self.sk = conv(in_channels, out_channels, 1)
            self.conv = nn.Sequential(
                conv(in_channels, gain * in_channels, 1),
                nn.Conv2d(gain * in_channels, gain * out_channels, 3),
                conv(gain * out_channels, out_channels, 1),
            )
        if form != "train":
            self.eval_conv = conv(in_channels, out_channels)
        self.form = form

    def forward(self, x):
        if self.form == "deploy" or (self.form == "both" and not self.training):
            return self.eval_conv(x)
        return self.conv(functional.pad(x, (1, 1, 1, 1))) + self.sk(x)
