"""SPAN in train or deploy form."""

import torch
from torch import nn

from .parts import Conv3XC, conv, rgb_mean_like, upsampler


class SPAB(nn.Module):
    def __init__(self, channels, form):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(channels, channels, form=form) for _ in range(3))

    def forward(self, u):
        activated = nn.functional.silu(self.c1_r(u))
        r = self.c3_r(nn.functional.silu(self.c2_r(activated)))
        return (r + u) * (torch.sigmoid(r) - 0.5), activated


class Twin(nn.Module):
    def __init__(self, channels=28, scale=4, form="deploy"):
        super().__init__()
        self.conv_1 = Conv3XC(3, channels, form=form)
        for i in range(1, 7):
            setattr(self, f"block_{i}", SPAB(channels, form))
        self.conv_cat = conv(4 * channels, channels, 1)
        self.conv_2 = Conv3XC(channels, channels, form=form)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        mean = rgb_mean_like(x.float()).to(x)  # a float32 constant
        u = head = self.conv_1(255 * (x - mean))
        outputs = []
        for i in range(1, 7):
            u, activated = getattr(self, f"block_{i}")(u)
            outputs.append(u)
        # The sixth block's inner feature is taken after its in-place activation.
        features = [head, self.conv_2(u), outputs[0], activated]
        return self.upsampler(self.conv_cat(torch.cat(features, 1)))
