"""RFDN with SPAN's attention."""

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, upsampler


def leaky_relu(x):
    return functional.leaky_relu(x, 0.05)


class RFDB(nn.Module):
    def __init__(self, channels):
        super().__init__()
        distilled_channels = channels // 2
        for j in (1, 2, 3):
            setattr(self, f"c{j}_d", conv(channels, distilled_channels, 1))
            setattr(self, f"c{j}_r", conv(channels, channels))
        self.c4 = conv(channels, distilled_channels)
        self.c5 = conv(4 * distilled_channels, channels, 1)

    def forward(self, u):
        r, distilled = u, []
        for j in (1, 2, 3):
            distilled.append(leaky_relu(getattr(self, f"c{j}_d")(r)))
            r = leaky_relu(getattr(self, f"c{j}_r")(r) + r)
        distilled.append(leaky_relu(self.c4(r)))
        h = self.c5(torch.cat(distilled, 1))
        return (h + u) * (torch.sigmoid(h) - 0.5)


class Twin(nn.Module):
    def __init__(self, channels=46, scale=4):
        super().__init__()
        self.fea_conv = conv(3, channels)
        self.B1, self.B2, self.B3, self.B4 = (RFDB(channels) for _ in range(4))
        self.c = nn.Sequential(conv(4 * channels, channels, 1), nn.LeakyReLU(0.05))
        self.LR_conv = conv(channels, channels)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        u = head = self.fea_conv(x)
        outputs = []
        for block in (self.B1, self.B2, self.B3, self.B4):
            u = block(u)
            outputs.append(u)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, 1))) + head)
