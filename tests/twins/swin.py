"""Window attention and backbone that HAT and MambaIRv2 share. Features are `(N, h, w, C)`."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, rgb_mean_like

NUM_FEAT = 64
UPSAMPLE_STEPS = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}


def channels_last(module, x):
    """Apply a module for `(N, C, h, w)` to `x (N, h, w, C)`."""
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def named_sequential(**modules):
    return nn.Sequential(OrderedDict(modules))


# --- window attention --------------------------------------------------------------------------


def cut_windows(x, window_size, overlap=0):
    """`(N, h, w, C) -> (N, windows, (window_size + 2·overlap)², C)`; zero outside of the image."""
    side = window_size + 2 * overlap
    columns = functional.unfold(x.permute(0, 3, 1, 2), side, padding=overlap, stride=window_size)
    return columns.unflatten(1, (-1, side**2)).permute(0, 3, 2, 1)


def join_windows(windows, image_size, window_size):
    """The inverse of `cut_windows` without overlap."""
    columns = windows.permute(0, 3, 2, 1).flatten(1, 2)
    return functional.fold(columns, image_size, window_size, stride=window_size).permute(0, 2, 3, 1)


def relative_position_index(window_size, overlap=0):
    """Row of the bias table by query and key. With overlap it may be negative, as in HAT's code."""
    side = window_size + 2 * overlap
    query, key = torch.arange(window_size)[:, None], torch.arange(side)
    offset = key - query + window_size - side + 1 if overlap else query - key + side - 1
    index = (window_size + side - 1) * offset[:, None, :, None] + offset[None, :, None, :]
    return index.reshape(window_size**2, side**2)


class WindowAttention(nn.Module):
    """Attention of queries, keys and values `(N, h, w, 3·C)` within windows."""

    def __init__(self, channels, num_heads, window_size, shift_size=0, overlap=0):
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.shift_size, self.overlap = shift_size, overlap
        num_offsets = (2 * (window_size + overlap) - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn(num_offsets, num_heads))
        index = relative_position_index(window_size, overlap)
        self.register_buffer("index", index, persistent=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, qkv):
        image_size, shift_size = qkv.shape[1:3], self.shift_size
        qkv = qkv.roll((-shift_size, -shift_size), (1, 2))
        overlaps = 0, self.overlap, self.overlap
        q, k, v = (
            cut_windows(x, self.window_size, overlap).unflatten(-1, (self.num_heads, -1))
            for x, overlap in zip(qkv.chunk(3, -1), overlaps, strict=True)
        )
        logits = torch.einsum("nwqhc,nwkhc->nwhqk", q * q.shape[-1] ** -0.5, k)
        logits = logits + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if shift_size:
            logits = logits - 100 * self.is_masked(image_size)[:, None]
        y = torch.einsum("nwhqk,nwkhc->nwqhc", logits.softmax(-1), v)
        y = join_windows(self.proj(y.flatten(-2)), image_size, self.window_size)
        return y.roll((shift_size, shift_size), (1, 2))

    def is_masked(self, image_size):
        """Whether the shift made query and key neighbours: `(windows, L, L)`."""
        position = (torch.arange(side, device=self.index.device) for side in image_size)
        y, x = (
            (axis >= len(axis) - self.window_size).float() + (axis >= len(axis) - self.shift_size)
            for axis in position
        )
        labels = cut_windows((3 * y[:, None] + x)[None, :, :, None], self.window_size)[0]
        return labels != labels.mT


class WindowSelfAttention(WindowAttention):
    def __init__(self, channels, *args, **kwargs):
        super().__init__(channels, *args, **kwargs)
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, t):
        return super().forward(self.qkv(t))


# --- backbone ----------------------------------------------------------------------------------


class ResidualGroup(nn.Module):
    def __init__(self, channels, blocks):
        super().__init__()
        self.residual_group = blocks
        self.conv = conv(channels, channels)

    def forward(self, t):
        return channels_last(self.conv, self.residual_group(t)) + t


class Head(nn.Sequential):
    """Steps that enlarge the features `(N, 64, h, w)`, then the convolution of all heads."""

    def __init__(self, scale):
        factors = UPSAMPLE_STEPS[scale]
        convs = (conv(NUM_FEAT, NUM_FEAT * factor**2) for factor in factors)
        pairs = zip(convs, map(nn.PixelShuffle, factors), strict=True)
        super().__init__(*(layer for pair in pairs for layer in pair))
        self.scale = scale

    def forward(self, features, x, conv_last):
        y = conv_last(super().forward(features)) + rgb_mean_like(x)
        return y[..., : self.scale * x.shape[2], : self.scale * x.shape[3]]


class Backbone(nn.Module):
    """The network around `groups`. `scales` are those of the heads; the first makes the output."""

    def __init__(self, channels, groups, window_size, scales):
        super().__init__()
        self.window_size, self.heads = window_size, tuple(scales)
        self.conv_first = conv(3, channels)
        self.patch_embed = named_sequential(norm=nn.LayerNorm(channels))
        self.layers = nn.ModuleList(ResidualGroup(channels, blocks) for blocks in groups)
        self.norm = nn.LayerNorm(channels)
        self.conv_after_body = conv(channels, channels)
        self.conv_before_upsample = nn.Sequential(conv(channels, NUM_FEAT), nn.LeakyReLU())
        self.conv_last = conv(NUM_FEAT, 3)
        for name, scale in scales.items():
            setattr(self, name, Head(scale))

    def forward(self, x):
        shallow = self.conv_first(pad(x, self.window_size) - rgb_mean_like(x))
        t = self.patch_embed(shallow.permute(0, 2, 3, 1))
        for group in self.layers:
            t = group(t)
        body = self.conv_after_body(self.norm(t).permute(0, 3, 1, 2))
        features = self.conv_before_upsample(body + shallow)
        images = [getattr(self, head)(features, x, self.conv_last) for head in self.heads]
        return images[0]


def pad(x, multiple):
    """Mirror `x (N, C, h, w)` at its lower and right edge, to multiples; the edge is repeated."""
    for axis in (2, 3):
        side = x.shape[axis]
        index = torch.arange(-(-side // multiple) * multiple, device=x.device) % (2 * side)
        x = x.index_select(axis, torch.minimum(index, 2 * side - 1 - index))
    return x
