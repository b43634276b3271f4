"""SwinIR: shifted-window attention, the teacher of many small networks.

Swin Transformer blocks for image restoration: pixels attend within windows of 8x8, and every other
block shifts the windows by half their size. MambaGate-SR names it as its teacher.

    x − mean ─ conv ─ LayerNorm ─ group 1 … 6 ─ LayerNorm ─ conv ─ + ─ conv ─ head ─ + mean
                 └─────────────────────────────────────────────────┘
    group: six blocks and a convolution, plus its input
    block: + attention(LayerNorm), + MLP(LayerNorm)

The default hyperparameters are those of the classical model (SwinIR-M); the lightweight one
(SwinIR-S) is `channels=60 num_groups=4 pixelshuffledirect=true`. The image is reflect-padded to a
multiple of the window without repeating the last row and column. The 2026 report names SwinIR, but
neither its size nor its weights; the figures here are counted as the organisers count.

Training recipe of SwinIR itself: not in the report.
"""

from typing import Any

from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.layers import LayerNorm, Sequential

from .blocks.feed_forward import MLP
from .blocks.stochastic_depth import StochasticDepth, drop_path_rates
from .blocks.swinir_backbone import BACKBONE_TORCH_NAMES, SRBackbone
from .blocks.window_attention import WindowSelfAttention, relative_position_index, shift_mask


class SwinTransformerBlock(nnx.Module):
    """Window attention and an MLP, both pre-norm and residual, with stochastic depth.

    Maps `t (N, h, w, C)` to the same shape.

    Args:
        channels: `C`.
        num_heads: Attention heads.
        window_size: Side of the windows in pixels.
        shift_size: Cyclic shift of the windows in pixels.
        mlp_ratio: Hidden channels of the MLP as a multiple of `C`.
        drop_prob: Probability of dropping a branch in training.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: int,
        drop_prob: float,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.attn = WindowSelfAttention(channels, num_heads, window_size, shift_size, rngs=rngs)
        self.mlp = MLP(channels, mlp_ratio * channels, rngs=rngs)
        self.drop_path = StochasticDepth(drop_prob)

    def __call__(self, t: Array) -> Array:
        t = t + self.drop_path(self.attn(self.norm1(t)))
        return t + self.drop_path(self.mlp(self.norm2(t)))


class BasicLayer(nnx.Module):
    """Swin Transformer blocks in series, `(N, h, w, C)` to the same shape."""

    def __init__(self, blocks: list[SwinTransformerBlock]):
        self.blocks = Sequential(blocks)

    def __call__(self, t: Array) -> Array:
        return self.blocks(t)


class SwinIR(SRBackbone):
    """SwinIR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features (`embed_dim`).
        num_groups: Number of residual groups (RSTB).
        depth: Blocks per group; every other one shifts the windows by half their size.
        num_heads: Attention heads.
        window_size: Side of the windows in pixels.
        mlp_ratio: Hidden channels of the MLPs as a multiple of `channels`.
        pixelshuffledirect: One convolution and one pixel shuffle make the image.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
        img_size: LR size for which the official class was built. It only affects the attention
            masks that this class stores in checkpoints.
        scan_layers: See `SRBackbone`.
        remat: See `SRBackbone`.
        scale: Upscaling factor.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 180,
        num_groups: int = 6,
        depth: int = 6,
        num_heads: int = 6,
        window_size: int = 8,
        mlp_ratio: int = 2,
        pixelshuffledirect: bool = False,
        drop_path_rate: float = 0.1,
        img_size: int = 64,
        scan_layers: bool = False,
        remat: bool = False,
        scale: int = 4,
    ):
        rates = drop_path_rates(drop_path_rate, num_groups * depth)
        kwargs = {"num_heads": num_heads, "window_size": window_size, "mlp_ratio": mlp_ratio}

        def group(rates: list[float]) -> BasicLayer:
            shift_sizes = (window_size // 2 * (i % 2) for i in range(depth))
            pairs = zip(shift_sizes, rates, strict=True)
            return BasicLayer(
                [
                    SwinTransformerBlock(
                        channels, shift_size=shift_size, drop_prob=drop_prob, rngs=rngs, **kwargs
                    )
                    for shift_size, drop_prob in pairs
                ]
            )

        super().__init__(
            channels,
            [group(rates[i : i + depth]) for i in range(0, len(rates), depth)],
            window_size=window_size,
            pad_mode="reflect",
            scale=scale,
            pixelshuffledirect=pixelshuffledirect,
            scan_layers=scan_layers,
            remat=remat,
            rngs=rngs,
        )
        self.img_size = img_size


def torch_buffers(net: Any) -> dict[str, Any]:
    """Return the constant buffers that the official class stores in checkpoints, for `img_size`."""
    tensors: dict[str, Any] = {}
    for path, module in nnx.iter_modules(net):
        if isinstance(module, WindowSelfAttention):
            attn = ".".join(map(str, path))
            tensors[f"{attn}.relative_position_index"] = relative_position_index(module.window_size)
            if module.shift_size:
                block = attn.removesuffix(".attn")
                mask = shift_mask(net.img_size, net.img_size, module.window_size, module.shift_size)
                tensors[f"{block}.attn_mask"] = mask
    return tensors


METHOD = Method(
    network=SwinIR,
    team="ETH Zurich",
    paper="SwinIR: Image Restoration Using Swin Transformer, https://arxiv.org/abs/2108.10257",
    license="Apache-2.0",
    scales=(2, 3, 4),
    description=__doc__,
    min_side=5,  # below, more than half of a window is padding
    needs_full_image=True,
    weights={
        "tiny": Weights(
            sha256="1ec16e8a190290106c8ddc15958e87d4595a2644f0b99d1cffaa4a790340ce08",
            hparams={"channels": 24, "num_groups": 2, "depth": 2, "num_heads": 2, "img_size": 16},
        )
    },
    torch_names=BACKBONE_TORCH_NAMES,
    torch_buffers=torch_buffers,
    unused_torch_keys={
        "*.relative_position_index": "a constant: which pairs of positions share a bias",
        "*.attn_mask": "a constant: which pixels only rolling joined",
    },
    reported={
        "params": 11_900_199,
        "macs": 861_268_082_688,
        "activations": 185_597_952,
        "convs": 12,
    },
)
