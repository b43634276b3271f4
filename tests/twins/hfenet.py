"""HFENet, without the half precision into which the original casts itself on a GPU."""

import math

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, mean_like, upsampler


class Norm(nn.Module):
    """Over the channels of every pixel."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-5)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def mirrored(channels, kernel, dilation):
    return conv(
        channels, channels, kernel, dilation=dilation, groups=channels, padding_mode="reflect"
    )


class MSLKA(nn.Module):
    def __init__(self, channels):
        super().__init__()
        c = channels // 3
        self.conv = conv(channels, channels, 1, bias=False)
        self.conv3_7, self.conv3_13 = mirrored(c, 3, 3), mirrored(c, 5, 3)
        self.conv3_3, self.conv3_19 = mirrored(c, 3, 1), mirrored(c, 7, 3)
        self.conv3_5, self.conv3_21 = mirrored(c, 5, 1), mirrored(c, 5, 5)
        self.mix1, self.mix2, self.mix3 = (
            nn.Sequential(conv(2 * c, 2, 1), nn.Sigmoid()) for _ in range(3)
        )

    def forward(self, y):
        first, second, third = y.chunk(3, 1)
        seen = [
            self.mixed(first, self.conv3_7, self.conv3_13, self.mix1),
            self.mixed(second, self.conv3_3, self.conv3_19, self.mix2),
            self.mixed(third, self.conv3_5, self.conv3_21, self.mix3),
        ]
        return y * functional.gelu(self.conv(torch.cat(seen, 1)))

    def mixed(self, x, near, far, mix):
        close = near(x)
        wide = far(close)
        w = mix(torch.cat([close, wide], 1))
        return w[:, :1] * close + w[:, 1:] * wide


class EA(nn.Module):
    def __init__(self, channels, squeezed):
        super().__init__()
        self.conv1, self.conv2 = conv(channels, squeezed, 1), conv(squeezed, channels, 1)

    def forward(self, y):
        variance = self.conv1(y).var((2, 3), keepdim=True)
        entropy = torch.log(2 * math.pi * math.e * variance) / 2
        return y * torch.sigmoid(self.conv2(entropy))


class GFN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = conv(channels, 2 * channels, 1)
        self.dwconv = conv(channels, channels, groups=channels)
        self.conv2 = conv(channels, channels, 1)

    def forward(self, x):
        a, b = self.conv1(x).chunk(2, 1)
        return self.conv2(self.dwconv(b) * a)


class SpatialHalf(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer_norm_pre, self.layer_norm_aft = Norm(channels), Norm(channels)
        self.encoder = conv(channels, 2 * channels, 1)
        self.slka = MSLKA(2 * channels)
        self.decoder = conv(2 * channels, channels, 1)
        self.sgfn = GFN(channels)

    def forward(self, u):
        y = functional.gelu(self.encoder(self.layer_norm_pre(u)))
        u = u + self.decoder(self.slka(y))
        return u + self.sgfn(self.layer_norm_aft(u))


class ChannelHalf(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer_norm_pre, self.layer_norm_aft = Norm(channels), Norm(channels)
        self.conv1 = conv(channels, 2 * channels, 1)
        self.attn = EA(2 * channels, 2 * channels // 9)
        self.conv2 = conv(2 * channels, channels, 1)
        self.ffn = GFN(channels)

    def forward(self, u):
        y = functional.gelu(self.conv1(self.layer_norm_pre(u)))
        u = u + self.conv2(self.attn(y))
        return u + self.ffn(self.layer_norm_aft(u))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slkab, self.eab = SpatialHalf(channels), ChannelHalf(channels)

    def forward(self, u):
        return self.eab(self.slkab(u))


class Twin(nn.Module):
    def __init__(self, channels=27, blocks=7, scale=4):
        super().__init__()
        self.simple_encoder = conv(3, channels)
        self.pipeline = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.after_pipe = conv(channels, channels)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        head = functional.gelu(self.simple_encoder(x - mean_like(x)))
        return self.upsampler(self.after_pipe(self.pipeline(head)) + head) + mean_like(x)
