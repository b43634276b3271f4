"""MambaIRv2-L with heads for three scales, by team BBox: one half of SMT, their 2025 entry.

Window attention, then one selective scan over all tokens, which are sorted so that similar tokens
are adjacent; the readout of a token is modified by a prompt of its class. Trained at several scales
at once: besides the x4 head, two more output images of x2 and x3 (modules `head_2x`, `head_3x`).

    x − mean ─ conv ─ LayerNorm ─ group 1 … 9 ─ LayerNorm ─ conv ─ + ─ conv ─ heads ─ + mean
                 └─────────────────────────────────────────────────┘
    group: six layers and a convolution, plus its input
    layer: + attention, + ConvFFN, + scan, + ConvFFN, with learned scales of the skips

Plain MambaIRv2-L is `extra_scales=[]`; the light one is `extra_scales=[] gated_mlp=true
pixelshuffledirect=true channels=48 num_groups=4 depth=5 num_heads=4 d_state=8 num_tokens=64
inner_rank=32 mlp_ratio=1`, of which no official outputs were available to compare with. The figures
here are counted as the organisers count.

Factsheet and code differ: the released code samples the classes of tokens with fresh Gumbel noise
in evaluation too and sorts them unstably. Here the classes are the argmax and ties keep raster
order; `eval_noise=true` samples. The prompts stay in raster order while the tokens are sorted, so a
token meets another token's prompt; DWMamba sorts both. The organisers' counter does not count the
scan. The released class returns all three images, and their heads are counted.

Training recipe of the factsheet: L1, then MSE, on DIV2K, LSDIR and Flickr2K; patches of 64, then
128 (LR or HR is unspecified); 250k steps each, then 100k on selected images, five times over. In
the code the other heads have half the weight, and the sum is divided by two.
"""

from typing import Any

from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.layers import Sequential

from .blocks.attentive_ssm import ASSM, AttentiveLayer, torch_buffers
from .blocks.feed_forward import ConvFFN, GatedMLP
from .blocks.swinir_backbone import BACKBONE_TORCH_NAMES, SRBackbone


class BasicBlock(nnx.Module):
    """Attentive layers in series: `(N, h, w, C)` to the same shape."""

    def __init__(self, layers: list[AttentiveLayer]):
        self.layers = Sequential(layers)

    def __call__(self, t: Array) -> Array:
        return self.layers(t)


class MambaIRv2(SRBackbone):
    """MambaIRv2: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features (`embed_dim`).
        num_groups: Number of residual groups (ASSB).
        depth: Attentive layers per group; every other one shifts the windows by half their size.
        num_heads: Attention heads.
        window_size: Side of the windows in pixels.
        mlp_ratio: Hidden channels of feed-forwards and scans as a multiple of `channels`.
        d_state: States per channel of the scan.
        num_tokens: Classes of tokens, that is rows of the prompt table.
        inner_rank: Rank of the prompt table.
        extra_scales: Scales of further heads, see `SRBackbone`.
        gated_mlp: Use `GatedMLP` instead of `ConvFFN`.
        pixelshuffledirect: One convolution and one pixel shuffle make the image.
        eval_noise: Sample classes with Gumbel noise in evaluation too, as the released code does.
        scan_layers: See `SRBackbone`. This is not the selective scan.
        remat: See `SRBackbone`.
        scale: Upscaling factor.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 174,
        num_groups: int = 9,
        depth: int = 6,
        num_heads: int = 6,
        window_size: int = 16,
        mlp_ratio: int = 2,
        d_state: int = 16,
        num_tokens: int = 128,
        inner_rank: int = 64,
        extra_scales: tuple[int, ...] = (2, 3),
        gated_mlp: bool = False,
        pixelshuffledirect: bool = False,
        eval_noise: bool = False,
        scan_layers: bool = False,
        remat: bool = False,
        scale: int = 4,
    ):
        assm_kwargs: dict[str, Any] = {
            "d_state": d_state,
            "num_tokens": num_tokens,
            "inner_rank": inner_rank,
            "mlp_ratio": mlp_ratio,
            "eval_noise": eval_noise,
        }
        ffn = GatedMLP if gated_mlp else ConvFFN
        layer_kwargs: dict[str, Any] = {
            "num_heads": num_heads,
            "window_size": window_size,
            "ffn": ffn,
            "rngs": rngs,
        }

        def layer(index: int) -> AttentiveLayer:
            assm = ASSM(channels, rngs=rngs, **assm_kwargs)
            return AttentiveLayer(
                channels, assm, shift_size=window_size // 2 * (index % 2), **layer_kwargs
            )

        super().__init__(
            channels,
            (BasicBlock([layer(index) for index in range(depth)]) for _ in range(num_groups)),
            window_size=window_size,
            scale=scale,
            extra_scales=extra_scales,
            pixelshuffledirect=pixelshuffledirect,
            main_head="head_4x" if extra_scales else "upsample",  # as in the official keys
            scan_layers=scan_layers,
            remat=remat,
            rngs=rngs,
        )


METHOD = Method(
    network=MambaIRv2,
    team="BBox",
    paper="NTIRE 2025 image super-resolution challenge, team 15 (SMT); MambaIRv2: arXiv:2411.15269",
    license="Apache-2.0",
    scales=(2, 3, 4),
    description=__doc__,
    min_side=8,  # below, more than half of a window is padding
    needs_full_image=True,
    weights={
        "tiny": Weights(
            sha256="3606b94b49eb5a34772087bf66eef4a67414a7640436b3d3b2c69f3b07695aa4",
            hparams={
                "channels": 24,
                "num_groups": 2,
                "depth": 2,
                "num_heads": 2,
                "window_size": 8,
                "d_state": 8,
                "num_tokens": 16,
                "inner_rank": 8,
            },
        )
    },
    torch_names={
        **BACKBONE_TORCH_NAMES,
        "upsample{i}.{n}": "head_{i}x.steps.{n}",
        "upsample{i}": "head_{i}x",
        "layers.{i}.residual_group.layers.{j}.{ffn}.dwconv.depthwise_conv.0": (
            "layers.{i}.residual_group.layers.{j}.{ffn}.dwconv"
        ),
    },
    torch_buffers=torch_buffers,
    unused_torch_keys={
        "relative_position_index_SA": "a constant: which pairs of positions share a bias"
    },
    cost_options=CostOptions(
        included=dict.fromkeys(
            ("head_?x.*", "conv_last"), "the released class returns the images of all heads"
        )
    ),
    reported={
        "params": 34_718_299,
        "macs": 2_552_133_189_504,
        "activations": 5_199_953_920,
        "convs": 235,
    },
)
