"""SwinIR: attention in shifted windows, the teacher of many small networks.

Swin Transformer's blocks for restoration: pixels attend within windows of 8, every other block
rolls the picture by half a window first. MambaGate-SR names it as its teacher.

    x − mean ─ conv ─ LayerNorm ─ group 1 … 6 ─ LayerNorm ─ conv ─ + ─ conv ─ head ─ + mean
                 └─────────────────────────────────────────────────┘
    group: six blocks and a convolution, beside a skip
    block: + attention(LayerNorm), + MLP(LayerNorm)

The sizes are those of the classical model (SwinIR-M); the lightweight one (SwinIR-S) is
`channels=60 groups=4 direct=true`. The picture is mirrored to whole windows, its last row not
repeated.
Report and code: the 2026 report names SwinIR and neither its size nor its weights; figures here are
counted as the organisers count.
Recipe of SwinIR itself: not in the report.
"""

from typing import Any

from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import LayerNorm, Sequential

from .parts.chance import StochasticDepth, rising
from .parts.feed_forward import MLP
from .parts.trunk import NAMES, Trunk
from .parts.window_attention import SelfAttention
from .parts.windows import relative_positions, shift_mask


class Block(nnx.Module):
    """Window attention, then a feed-forward, each normalised before and beside a skip.

    rate: of stochastic depth.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        side: int,
        shift: int,
        ratio: int,
        rate: float,
        rngs: nnx.Rngs,
    ):
        self.norm1, self.norm2 = LayerNorm(channels), LayerNorm(channels)
        self.attn = SelfAttention(channels, heads, side, shift, rngs=rngs)
        self.mlp = MLP(channels, ratio * channels, rngs=rngs)
        self.drop_path = StochasticDepth(rate)

    def __call__(self, t: Array) -> Array:
        t = t + self.drop_path(self.attn(self.norm1(t)))
        return t + self.drop_path(self.mlp(self.norm2(t)))


class Blocks(nnx.Module):
    """Blocks in turn, every other one shifted by half a window."""

    def __init__(self, blocks: list[Block]):
        self.blocks = Sequential(blocks)

    def __call__(self, t: Array) -> Array:
        return self.blocks(t)


class SwinIR(Trunk):
    """SwinIR of `groups` x `blocks` blocks, x`scale`.

    window: its side, pixels. ratio: how much wider the MLPs are. direct: one convolution makes the
    picture. drop: rate of stochastic depth in the last block. patch: the side of LR that the
    official class was built for; only the masks hang on it that it keeps among its tensors.
    scan, remat: as in `Trunk`.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 180,
        groups: int = 6,
        blocks: int = 6,
        heads: int = 6,
        window: int = 8,
        ratio: int = 2,
        direct: bool = False,
        drop: float = 0.1,
        patch: int = 64,
        scan: bool = False,
        remat: bool = False,
        scale: int = 4,
    ):
        rates = rising(drop, groups * blocks)
        sizes = {"heads": heads, "side": window, "ratio": ratio}

        def group(rates: list[float]) -> Blocks:
            shifts = (window // 2 * (i % 2) for i in range(blocks))
            pairs = zip(shifts, rates, strict=True)
            return Blocks([Block(channels, shift=s, rate=r, rngs=rngs, **sizes) for s, r in pairs])

        super().__init__(
            channels,
            [group(rates[i : i + blocks]) for i in range(0, len(rates), blocks)],
            window=window,
            edges="reflect",
            scale=scale,
            direct=direct,
            scan=scan,
            remat=remat,
            rngs=rngs,
        )
        self.patch = patch


def buffers(net: Any) -> dict[str, Any]:
    """What the official class keeps beside its weights, for the `patch` that it was built for."""
    found: dict[str, Any] = {}
    for path, part in nnx.iter_modules(net):
        if isinstance(part, SelfAttention):
            at = ".".join(map(str, path))
            found[f"{at}.relative_position_index"] = relative_positions(part.side)
            if part.shift:
                block = at.removesuffix(".attn")
                mask = shift_mask(net.patch, net.patch, part.side, part.shift)
                found[f"{block}.attn_mask"] = mask
    return found


METHOD = Method(
    network=SwinIR,
    team="ETH Zurich",
    paper="SwinIR: Image Restoration Using Swin Transformer, https://arxiv.org/abs/2108.10257",
    license="Apache-2.0",
    card=__doc__,
    min_side=5,  # of fewer pixels, a window has more mirror image than picture
    whole_picture=True,
    weights={
        "tiny": Weights(
            sha256="1ec16e8a190290106c8ddc15958e87d4595a2644f0b99d1cffaa4a790340ce08",
            sizes={"channels": 24, "groups": 2, "blocks": 2, "heads": 2, "patch": 16},
        )
    },
    torch_names=NAMES,
    buffers=buffers,
    unused={
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
