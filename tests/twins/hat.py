"""HAT-L with heads for several scales."""

from torch import nn
from torch.nn import functional

from .parts import conv
from .swin import (
    Backbone,
    WindowAttention,
    WindowSelfAttention,
    channels_last,
    named_sequential,
    relative_position_index,
)


class ChannelAttention(nn.Module):
    def __init__(self, channels, squeeze_factor):
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            conv(channels, channels // squeeze_factor, 1),
            nn.ReLU(),
            conv(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return x * self.attention(x)


class CAB(nn.Module):
    def __init__(self, channels, compress_ratio, squeeze_factor):
        super().__init__()
        self.cab = nn.Sequential(
            conv(channels, channels // compress_ratio),
            nn.GELU(),
            conv(channels // compress_ratio, channels),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x):
        return self.cab(x)


class MLP(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, t):
        return self.fc2(functional.gelu(self.fc1(t)))


class DropPath(nn.Module):
    """Stochastic depth: drop a branch of an image in training, scale it where it is kept."""

    def __init__(self, drop_prob):
        super().__init__()
        self.keep_prob = 1 - drop_prob

    def forward(self, branch):
        if not self.training:
            return branch
        keep = branch.new_full((len(branch), 1, 1, 1), self.keep_prob).bernoulli()
        return branch * keep / self.keep_prob


class HAB(nn.Module):
    def __init__(
        self,
        channels,
        num_heads,
        window_size,
        shift_size,
        mlp_ratio,
        compress_ratio,
        squeeze_factor,
        drop_prob,
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowSelfAttention(channels, num_heads, window_size, shift_size)
        self.conv_block = CAB(channels, compress_ratio, squeeze_factor)
        self.mlp = MLP(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_prob)

    def forward(self, t):
        y = self.norm1(t)
        t = t + self.drop_path(self.attn(y)) + 0.01 * channels_last(self.conv_block, y)
        return t + self.drop_path(self.mlp(self.norm2(t)))


class OCAB(WindowAttention):
    def __init__(self, channels, num_heads, window_size, mlp_ratio):
        super().__init__(channels, num_heads, window_size, overlap=window_size // 4)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mlp = MLP(channels, mlp_ratio * channels)

    def forward(self, t):
        t = super().forward(self.qkv(self.norm1(t))) + t
        return t + self.mlp(self.norm2(t))


class Twin(Backbone):
    def __init__(
        self,
        channels=180,
        num_groups=12,
        depth=6,
        num_heads=6,
        window_size=16,
        mlp_ratio=2,
        compress_ratio=3,
        squeeze_factor=30,
        extra_scales=(2, 1),
        drop_path_rate=0.0,
        scale=4,
    ):
        def hab(index):
            drop_prob = drop_path_rate * index / max(1, num_groups * depth - 1)
            shift_size = window_size // 2 * (index % depth % 2)
            cab_sizes = compress_ratio, squeeze_factor
            return HAB(
                channels, num_heads, window_size, shift_size, mlp_ratio, *cab_sizes, drop_prob
            )

        groups = (
            named_sequential(
                blocks=nn.Sequential(*map(hab, range(depth * i, depth * (i + 1)))),
                overlap_attn=OCAB(channels, num_heads, window_size, mlp_ratio),
            )
            for i in range(num_groups)
        )
        # The head of scale 1 has no weights, so that its name is not an official key.
        extra_heads = {f"upsample_{s}x" if s > 1 else f"head_{s}x": s for s in extra_scales}
        super().__init__(channels, groups, window_size, {"upsample": scale, **extra_heads})
        for name, overlap in (("SA", 0), ("OCA", window_size // 4)):  # official keys, not read
            index = relative_position_index(window_size, overlap)
            self.register_buffer(f"relative_position_index_{name}", index)
