"""SPANV2, by the plain formula of its operator."""

import torch
from torch import nn
from torch.nn import functional

from .parts import conv


class Layer(nn.Module):
    def __init__(self, wide, out):
        super().__init__()
        self.conv = conv(wide, out, bias=False)

    def forward(self, x):
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, wide, out, gated):
        super().__init__()
        self.c1, self.c2, self.c3 = Layer(wide, out), Layer(out, out), Layer(out, out)
        if gated:
            self.guidance_map_conv = conv(out, out, 1)
        self.gated = gated

    def forward(self, u):
        f = self.c3(functional.relu(self.c2(functional.relu(self.c1(u)))))
        return (u + f) * self.guidance_map_conv(f) if self.gated else functional.relu(f)


class Twin(nn.Module):
    def __init__(self, channels=32, scale=4):
        super().__init__()
        colours = 3 * scale**2
        both = colours + channels
        self.conv_near = conv(3, colours, groups=3, bias=False)
        self.block_1 = Block(3, channels, gated=False)
        for i in range(2, 6):
            setattr(self, f"block_{i}", Block(channels, channels, gated=True))
        self.depthwise_conv = conv(both, both, groups=both, bias=False)
        self.pointwise_conv = conv(both, colours, 1, bias=False)
        self.scale = scale

    def forward(self, x):
        u = x
        for i in range(1, 6):
            u = getattr(self, f"block_{i}")(u)
        y = self.pointwise_conv(self.depthwise_conv(torch.cat([self.conv_near(x), u], 1)))
        return functional.pixel_shuffle(y, self.scale)
