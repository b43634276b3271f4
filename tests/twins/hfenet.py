"""HFENet in the dtype of its input; the official code casts itself to half precision on a GPU."""

import math

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, rgb_mean_like, upsampler


class LayerNorm(nn.Module):
    """Normalization over the channels of every pixel."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, x):
        centered = x - x.mean(1, keepdim=True)
        x = centered / torch.sqrt(centered.square().mean(1, keepdim=True) + 1e-5)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def depthwise_reflect_conv(channels, kernel_size, dilation):
    return conv(
        channels, channels, kernel_size, dilation=dilation, groups=channels, padding_mode="reflect"
    )


class MSLKA(nn.Module):
    def __init__(self, channels):
        super().__init__()
        c = channels // 3
        self.conv = conv(channels, channels, 1, bias=False)
        self.conv3_7, self.conv3_13 = (
            depthwise_reflect_conv(c, 3, 3),
            depthwise_reflect_conv(c, 5, 3),
        )
        self.conv3_3, self.conv3_19 = (
            depthwise_reflect_conv(c, 3, 1),
            depthwise_reflect_conv(c, 7, 3),
        )
        self.conv3_5, self.conv3_21 = (
            depthwise_reflect_conv(c, 5, 1),
            depthwise_reflect_conv(c, 5, 5),
        )
        self.mix1, self.mix2, self.mix3 = (
            nn.Sequential(conv(2 * c, 2, 1), nn.Sigmoid()) for _ in range(3)
        )

    def forward(self, y):
        first, second, third = y.chunk(3, 1)
        outputs = [
            self.mix_scales(first, self.conv3_7, self.conv3_13, self.mix1),
            self.mix_scales(second, self.conv3_3, self.conv3_19, self.mix2),
            self.mix_scales(third, self.conv3_5, self.conv3_21, self.mix3),
        ]
        return y * functional.gelu(self.conv(torch.cat(outputs, 1)))

    def mix_scales(self, x, conv_small, conv_large, gate):
        small = conv_small(x)
        large = conv_large(small)
        weights = gate(torch.cat([small, large], 1))
        return weights[:, :1] * small + weights[:, 1:] * large


class EA(nn.Module):
    def __init__(self, channels, reduced_channels):
        super().__init__()
        self.conv1, self.conv2 = (
            conv(channels, reduced_channels, 1),
            conv(reduced_channels, channels, 1),
        )

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


class SLKAB(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.encoder = conv(channels, 2 * channels, 1)
        self.slka = MSLKA(2 * channels)
        self.decoder = conv(2 * channels, channels, 1)
        self.sgfn = GFN(channels)

    def forward(self, u):
        y = functional.gelu(self.encoder(self.layer_norm_pre(u)))
        u = u + self.decoder(self.slka(y))
        return u + self.sgfn(self.layer_norm_aft(u))


class EAB(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.conv1 = conv(channels, 2 * channels, 1)
        self.attn = EA(2 * channels, 2 * channels // 9)
        self.conv2 = conv(2 * channels, channels, 1)
        self.ffn = GFN(channels)

    def forward(self, u):
        y = functional.gelu(self.conv1(self.layer_norm_pre(u)))
        u = u + self.conv2(self.attn(y))
        return u + self.ffn(self.layer_norm_aft(u))


class HFENetBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.slkab, self.eab = SLKAB(channels), EAB(channels)

    def forward(self, u):
        return self.eab(self.slkab(u))


class Twin(nn.Module):
    def __init__(self, channels=27, num_blocks=7, scale=4):
        super().__init__()
        self.simple_encoder = conv(3, channels)
        self.pipeline = nn.Sequential(*(HFENetBlock(channels) for _ in range(num_blocks)))
        self.after_pipe = conv(channels, channels)
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        head = functional.gelu(self.simple_encoder(x - rgb_mean_like(x)))
        return self.upsampler(self.after_pipe(self.pipeline(head)) + head) + rgb_mean_like(x)
