"""Layers and functions with a mistake, which faults put in place of the right ones.

A layer for which a mistake is impossible (a missing bias of a layer without one) raises
`NotApplicable`: then there is no such mutant.
"""

import torch
from torch import nn
from torch.nn import functional


class NotApplicable(Exception):
    """Raised when a layer cannot have the mistake."""


# --- convolutions and linear layers ---


def same_conv(cls, in_channels, out_channels, kernel_size=3, **options):
    """A convolution of a class with "same" padding, as `parts.conv`."""
    padding = options.get("dilation", 1) * (kernel_size - 1) // 2
    return cls(in_channels, out_channels, kernel_size, padding=padding, **options)


class TransposedConv(nn.Conv2d):
    """Rows and columns of the kernel are exchanged; of a 1x1 kernel the inputs are reversed."""

    def _conv_forward(self, x, weight, bias):
        if self.kernel_size != (1, 1):
            return super()._conv_forward(x, weight.mT, bias)
        if weight.shape[1] == 1:
            raise NotApplicable
        return super()._conv_forward(x, weight.flip(1), bias)


class ConvWithoutBias(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        if bias is None:
            raise NotApplicable
        return super()._conv_forward(x, weight, None)


class ReplicatePaddedConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        if self.padding == (0, 0) or self.padding_mode != "zeros":
            raise NotApplicable
        top, left = self.padding
        x = functional.pad(x, (left, left, top, top), mode="replicate")
        return functional.conv2d(x, weight, bias, 1, 0, self.dilation, self.groups)


class ReversedGroupsConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x.flip(1), weight, bias)


def transposed_conv(*args, **options):
    return same_conv(TransposedConv, *args, **options)


def conv_without_bias(*args, **options):
    return same_conv(ConvWithoutBias, *args, **options)


def replicate_padded_conv(*args, **options):
    return same_conv(ReplicatePaddedConv, *args, **options)


def reversed_groups_conv(*args, **options):
    return same_conv(ReversedGroupsConv, *args, **options)


class TransposedLinear(nn.Linear):
    def forward(self, x):
        is_square = self.in_features == self.out_features
        return functional.linear(x, self.weight.T if is_square else self.weight.flip(1), self.bias)


class LinearWithoutBias(nn.Linear):
    def forward(self, x):
        if self.bias is None:
            raise NotApplicable
        return functional.linear(x, self.weight)


# --- norms ---


class TokenNorm(nn.LayerNorm):
    """Normalizes every channel over all tokens."""

    def forward(self, x):
        axes = tuple(range(1, x.ndim - 1))
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


class UnbiasedNorm(nn.LayerNorm):
    """Divides the variance by N − 1."""

    def forward(self, x):
        var, mean = torch.var_mean(x, -1, correction=1, keepdim=True)
        return (x - mean) / torch.sqrt(var + self.eps) * self.weight + self.bias


class NormWithoutShift(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) - self.bias


class NormWithoutScale(nn.LayerNorm):
    def forward(self, x):
        return functional.layer_norm(x, self.normalized_shape, eps=self.eps) + self.bias


# --- functions ---


def identity(x, *args, **options):
    return x


def gelu_tanh(x):
    return functional.gelu(x, approximate="tanh")


def gelu_sigmoid(x):
    return x * torch.sigmoid(1.702 * x)


def leaky(x, *args):
    return functional.leaky_relu(x, 0.01)


def in_float32(function):
    """A function whose input is rounded to float32."""
    return lambda x, *args, **options: function(x.float(), *args, **options).to(x)


def detached(function):
    """A function without gradient."""
    return lambda x, *args, **options: function(x.detach(), *args, **options)


def shuffle(x, factor):
    """Pixel shuffle in TensorFlow's order of channels."""
    n, c, h, w = x.shape
    x = x.reshape(n, factor, factor, c // factor**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // factor**2, factor * h, factor * w)


def column_shuffle(x, factor):
    """Pixel shuffle with rows and columns of a block exchanged."""
    n, c, h, w = x.shape
    x = x.reshape(n, c // factor**2, factor, factor, h, w).permute(0, 1, 4, 3, 5, 2)
    return x.reshape(n, c // factor**2, factor * h, factor * w)


class Shuffle(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return shuffle(x, self.factor)


class ColumnShuffle(Shuffle):
    def forward(self, x):
        return column_shuffle(x, self.factor)


def reversed_cat(tensors, axis):
    return torch.cat(list(tensors)[::-1], axis)


def first_value(module, value):
    """The value of the first call with this shape, ever after."""
    values = module.__dict__.setdefault("first_values", {})
    return values.setdefault((value.dtype, *value.shape), value.detach())
