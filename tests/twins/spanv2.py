"""SPANV2, with its fused operator as separate layers."""

import torch
from torch import nn
from torch.nn import functional

from .parts import conv


class ConvLayer(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = conv(in_channels, out_channels, bias=False)

    def forward(self, x):
        return self.conv(x)


class SPANV2Block(nn.Module):
    def __init__(self, in_channels, out_channels, has_gate):
        super().__init__()
        self.c1, self.c2, self.c3 = (
            ConvLayer(in_channels, out_channels),
            ConvLayer(out_channels, out_channels),
            ConvLayer(out_channels, out_channels),
        )
        if has_gate:
            self.guidance_map_conv = conv(out_channels, out_channels, 1)
        self.has_gate = has_gate

    def forward(self, u):
        f = self.c3(functional.relu(self.c2(functional.relu(self.c1(u)))))
        return (u + f) * self.guidance_map_conv(f) if self.has_gate else functional.relu(f)


class Twin(nn.Module):
    def __init__(self, channels=32, scale=4):
        super().__init__()
        rgb_channels = 3 * scale**2
        all_channels = rgb_channels + channels
        self.conv_near = conv(3, rgb_channels, groups=3, bias=False)
        self.block_1 = SPANV2Block(3, channels, has_gate=False)
        for i in range(2, 6):
            setattr(self, f"block_{i}", SPANV2Block(channels, channels, has_gate=True))
        self.depthwise_conv = conv(all_channels, all_channels, groups=all_channels, bias=False)
        self.pointwise_conv = conv(all_channels, rgb_channels, 1, bias=False)
        self.scale = scale

    def forward(self, x):
        u = x
        for i in range(1, 6):
            u = getattr(self, f"block_{i}")(u)
        y = self.pointwise_conv(self.depthwise_conv(torch.cat([self.conv_near(x), u], 1)))
        return functional.pixel_shuffle(y, self.scale)
