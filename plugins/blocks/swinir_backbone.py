"""Backbone of SwinIR, HAT and MambaIRv2: residual groups and upsampling heads.

    x − mean ─ conv ─ LayerNorm ─ group 1 … n ─ LayerNorm ─ conv ─ + ─ conv ─ head ─ + mean
                 └─────────────────────────────────────────────────┘

Source: SwinIR (arXiv:2108.10257), section 3.1; heads of more than one scale: team BBox in the NTIRE
2025 challenge. Features are `(N, h, w, C)`.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.nn.layers import Conv2d, LayerNorm, Linear, PixelShuffle, Sequential, normal_init

from .common import rgb_mean
from .scan_layers import apply_blocks
from .window_partition import pad_to_multiple

NUM_FEAT = 64  # channels of the features that are upsampled
UPSAMPLE_STEPS = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}  # scale -> factors of the pixel shuffles
BACKBONE_TORCH_NAMES = {
    "patch_embed.norm": "patch_norm",
    "patch_embed": "patch_norm",
    "upsample.{n}": "upsample.steps.{n}",
}


class ResidualGroup(nnx.Module):
    """`blocks` and a 3x3 convolution, plus the input: `(N, h, w, C)` to the same shape.

    The class is RSTB in SwinIR, RHAG in HAT, ASSB in MambaIRv2.
    """

    def __init__(self, channels: int, blocks: nnx.Module, *, rngs: nnx.Rngs):
        self.residual_group: Any = blocks
        self.conv = Conv2d(channels, channels, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.conv(self.residual_group(t)) + t


class UpsampleHead(nnx.Module):
    """Upsample features to an RGB image of `scale` times the size of `x`.

    Convolutions and pixel shuffles enlarge the features `(N, h, w, C)` step by step; `conv_last`,
    which all heads share, maps them to RGB. The mean of the dataset is added and padding is
    cropped.

    Args:
        channels: `C`.
        scale: 1, 2, 3 or 4.
        pixelshuffledirect: One convolution and one pixel shuffle make the image, without
            `conv_last` (SwinIR's option of that name).
    """

    def __init__(
        self, channels: int, scale: int, *, pixelshuffledirect: bool = False, rngs: nnx.Rngs
    ):
        self.scale, out_channels = scale, 3 if pixelshuffledirect else channels
        self.steps = Sequential(
            layer
            for factor in ((scale,) if pixelshuffledirect else upsample_steps(scale))
            for layer in (
                Conv2d(channels, out_channels * factor**2, rngs=rngs),
                PixelShuffle(factor),
            )
        )

    def __call__(self, features: Array, x: Array, conv_last: Conv2d | None = None) -> Array:
        y = self.steps(features)
        y = (y if conv_last is None else conv_last(y)) + rgb_mean(x)
        return y[:, : self.scale * x.shape[1], : self.scale * x.shape[2]]


class SRBackbone(nnx.Module):
    """Base class of the networks: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    LR is padded at the bottom and right to a multiple of the window, and SR is cropped.

    Args:
        channels: Channels `C` of the features (`embed_dim`).
        groups: Modules that map `(N, h, w, C)` to the same shape; each becomes a `ResidualGroup`.
        window_size: Side of the windows in pixels.
        scale: Scale of the main head, whose image is returned.
        pad_mode: Mode of `pad_to_multiple`.
        pad_multiple: Multiple to which LR is padded; by default the window size.
        extra_scales: Scales of further heads that are trained along: modules `head_2x`, .... Their
            outputs are captured by `taps`; otherwise a compiled program does not compute them.
        pixelshuffledirect: See `UpsampleHead`.
        main_head: Attribute name of the main head.
        scan_layers: Run groups by one `lax.scan`, see `apply_blocks`. The result is the same.
        remat: Recompute groups in the backward pass, see `apply_blocks`. The result is the same.
    """

    def __init__(
        self,
        channels: int,
        groups: Iterable[nnx.Module],
        *,
        window_size: int,
        scale: int,
        pad_mode: str = "symmetric",
        pad_multiple: int | None = None,
        extra_scales: Iterable[int] = (),
        pixelshuffledirect: bool = False,
        main_head: str = "upsample",
        scan_layers: bool = False,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.window_size = window_size
        self.pad_mode, self.pad_multiple = pad_mode, pad_multiple or window_size
        self.scan_layers, self.remat = scan_layers, remat
        self.conv_first = Conv2d(3, channels, rngs=rngs)
        self.patch_norm = LayerNorm(channels)
        self.layers = Sequential(ResidualGroup(channels, blocks, rngs=rngs) for blocks in groups)
        self.norm = LayerNorm(channels)
        self.conv_after_body = Conv2d(channels, channels, rngs=rngs)
        self.head_names = (main_head, *(f"head_{extra_scale}x" for extra_scale in extra_scales))
        if not pixelshuffledirect:
            to_num_feat = Conv2d(channels, NUM_FEAT, rngs=rngs)
            self.conv_before_upsample = Sequential([to_num_feat, jax.nn.leaky_relu])
            self.conv_last = Conv2d(NUM_FEAT, 3, rngs=rngs)
        for name, extra_scale in zip(self.head_names, (scale, *extra_scales), strict=True):
            head_channels = channels if pixelshuffledirect else NUM_FEAT
            setattr(
                self,
                name,
                UpsampleHead(
                    head_channels, extra_scale, pixelshuffledirect=pixelshuffledirect, rngs=rngs
                ),
            )
        self.pixelshuffledirect = pixelshuffledirect
        init_linear_layers(self, rngs)

    def __call__(self, x: Array) -> Array:
        features, conv_last = self.features(x), None
        if not self.pixelshuffledirect:
            features, conv_last = self.conv_before_upsample(features), self.conv_last
        main_output, *_ = [getattr(self, name)(features, x, conv_last) for name in self.head_names]
        return main_output

    def features(self, x: Array) -> Array:
        """Return the deep features `(N, h', w', C)` of LR `x`, padded to `h' x w'`."""
        x = pad_to_multiple(x, self.pad_multiple, self.pad_mode)
        shallow = self.conv_first(x - rgb_mean(x))
        t = self.patch_norm(shallow)
        t = apply_blocks(self.layers, t, scan=self.scan_layers, remat=self.remat)
        return self.conv_after_body(self.norm(t)) + shallow


def upsample_steps(scale: int) -> tuple[int, ...]:
    """Return the factors of the pixel shuffles that enlarge features `scale` times."""
    if scale not in UPSAMPLE_STEPS:
        raise ValueError(f"scale must be one of {', '.join(map(str, UPSAMPLE_STEPS))}, not {scale}")
    return UPSAMPLE_STEPS[scale]


def init_linear_layers(net: nnx.Module, rngs: nnx.Rngs) -> None:
    """Initialize all linear layers of `net`: weights normal with std 0.02, biases zero."""
    for _, module in nnx.iter_modules(net):
        if isinstance(module, Linear):
            module.weight.set_value(normal_init(rngs, module.weight.shape, 0.02))
            if module.bias is not None:
                module.bias.set_value(jnp.zeros_like(module.bias[...]))
