"""MambaIRv2-L with heads for several scales; its classes are the argmax, also in training."""

import torch
from torch import nn
from torch.nn import functional

from .parts import conv, selective_scan
from .swin import (
    Backbone,
    WindowAttention,
    channels_last,
    named_sequential,
    relative_position_index,
)


class ConvFFN(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dwconv = named_sequential(
            depthwise_conv=nn.Sequential(conv(hidden, hidden, 5, groups=hidden))
        )

    def forward(self, t):
        hidden = functional.gelu(self.fc1(t))
        depthwise_conv = self.dwconv.depthwise_conv[0]  # the containers only name the weights
        return self.fc2(hidden + functional.gelu(channels_last(depthwise_conv, hidden)))


class SelectiveScan(nn.Module):
    """Scan of tokens `(N, L, D)`; prompts `(N, L, d_state)` are added to the readout."""

    def __init__(self, d_inner, d_state):
        super().__init__()
        dt_rank = -(-d_inner // 16)
        self.split_sizes = (dt_rank, d_state, d_state)
        self.x_proj_weight = nn.Parameter(torch.randn(1, sum(self.split_sizes), d_inner))
        self.dt_projs_weight = nn.Parameter(torch.randn(1, d_inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.zeros(1, d_inner))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.Ds = nn.Parameter(torch.ones(d_inner))

    def forward(self, x, prompts):
        dt, B, C = (x @ self.x_proj_weight[0].mT).split(self.split_sizes, -1)
        delta = functional.softplus(dt @ self.dt_projs_weight[0].mT + self.dt_projs_bias)
        return selective_scan(x, delta, -torch.exp(self.A_logs), B, C + prompts, self.Ds)


class Routing(nn.Module):
    """One-hot classes of logits `(N, L, num_tokens)`, with the gradient of softmax."""

    def forward(self, logits):
        soft = logits.softmax(-1)
        hard = functional.one_hot(logits.argmax(-1), logits.shape[-1])
        return hard + (soft - soft.detach())


class ASSM(nn.Module):
    """One scan over tokens that are sorted by class. The prompts stay in raster order."""

    def __init__(self, channels, d_inner, d_state, num_tokens, inner_rank):
        super().__init__()
        hidden = channels // 3
        self.route = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, num_tokens)
        )
        self.gumbel_routing = Routing()
        self.embeddingB = nn.Embedding(num_tokens, inner_rank)
        self.in_proj = nn.Sequential(conv(channels, d_inner, 1))
        self.CPE = nn.Sequential(conv(d_inner, d_inner, groups=d_inner))
        self.selectiveScan = SelectiveScan(d_inner, d_state)
        self.out_norm, self.out_proj = nn.LayerNorm(d_inner), nn.Linear(d_inner, channels)

    def forward(self, u, basis):
        classes = self.gumbel_routing(self.route(u).flatten(1, 2))
        prompts = classes @ self.embeddingB.weight @ basis
        order = classes.argmax(-1).argsort(stable=True)
        z = self.in_proj(u.permute(0, 3, 1, 2))
        z = (z * torch.sigmoid(self.CPE(z))).flatten(2).mT
        y = self.out_proj(self.out_norm(self.selectiveScan(take(z, order), prompts)))
        return take(y, order.argsort()).reshape(u.shape)


def take(tokens, index):
    """`tokens[n, index[n, i]]` for all images `n` and positions `i`."""
    return tokens.take_along_dim(index[..., None], 1)


class AttentiveLayer(nn.Module):
    def __init__(
        self,
        channels,
        num_heads,
        window_size,
        shift_size,
        mlp_ratio,
        d_state,
        num_tokens,
        inner_rank,
    ):
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(channels) for _ in range(4))
        self.wqkv = nn.Linear(channels, 3 * channels)
        self.win_mhsa = WindowAttention(channels, num_heads, window_size, shift_size)
        self.assm = ASSM(channels, mlp_ratio * channels, d_state, num_tokens, inner_rank)
        self.convffn1, self.convffn2 = (ConvFFN(channels, mlp_ratio * channels) for _ in range(2))
        self.embeddingA = nn.Embedding(inner_rank, d_state)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((channels,), 1e-4)) for _ in range(2))

    def forward(self, t):
        a = self.win_mhsa(self.wqkv(self.norm1(t))) + t
        a = a + self.convffn1(self.norm2(a))
        t = t * self.scale1 + a
        b = self.assm(self.norm3(t), self.embeddingA.weight) + t
        return t * self.scale2 + b + self.convffn2(self.norm4(b))


class Twin(Backbone):
    def __init__(
        self,
        channels=174,
        num_groups=9,
        depth=6,
        num_heads=6,
        window_size=16,
        mlp_ratio=2,
        d_state=16,
        num_tokens=128,
        inner_rank=64,
        extra_scales=(2, 3),
        scale=4,
    ):
        def layer(index):
            shift_size = window_size // 2 * (index % 2)
            assm_sizes = mlp_ratio, d_state, num_tokens, inner_rank
            return AttentiveLayer(channels, num_heads, window_size, shift_size, *assm_sizes)

        groups = (
            named_sequential(layers=nn.Sequential(*map(layer, range(depth))))
            for _ in range(num_groups)
        )
        main_head = "upsample4" if extra_scales else "upsample"
        heads = {main_head: scale, **{f"upsample{s}": s for s in extra_scales}}
        super().__init__(channels, groups, window_size, heads)
        index = relative_position_index(window_size)
        self.register_buffer("relative_position_index_SA", index)  # an official key, not read
