"""SAFMN-Deep15."""

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, upsampler


class LayerNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x):
        return self.norm(x)


class SAFM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        c = channels // 4
        self.mfr = nn.ModuleList(conv(c, c, groups=c) for _ in range(4))
        self.aggr = conv(channels, channels, 1)

    def forward(self, z):
        h, w = z.shape[2:]
        outputs = []
        for i, chunk in enumerate(z.chunk(4, 1)):
            pooled = functional.adaptive_max_pool2d(chunk, (max(1, h // 2**i), max(1, w // 2**i)))
            outputs.append(functional.interpolate(self.mfr[i](pooled), (h, w), mode="nearest"))
        return functional.gelu(self.aggr(torch.cat(outputs, 1))) * z


class AttBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.safm = SAFM(channels)
        self.ffn = nn.Sequential(
            conv(channels, 2 * channels, 1), nn.GELU(), conv(2 * channels, channels, 1)
        )

    def forward(self, u):
        y = u + self.safm(self.norm1(u))
        return y + self.ffn(self.norm2(y))


class Twin(nn.Module):
    def __init__(self, channels=40, num_blocks=15, scale=4):
        super().__init__()
        self.to_feat = conv(3, channels)
        self.blocks = nn.Sequential(*(AttBlock(channels) for _ in range(num_blocks)))
        self.upsampler = upsampler(channels, scale)
        self.scale = scale

    def forward(self, x):
        head = self.to_feat(x)
        upsampled = functional.interpolate(x, scale_factor=self.scale, mode="bilinear")
        return self.upsampler(self.blocks(head) + head) + upsampled
