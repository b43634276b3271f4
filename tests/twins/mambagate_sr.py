"""MambaGate-SR."""

import torch
from torch import nn
from torch.nn import functional

from .parts import Conv3XC, conv, rgb_mean_like, selective_scan, upsampler


class Mamba(nn.Module):
    """Unidirectional Mamba block for tokens `(N, L, C)`."""

    def __init__(self, channels, d_state):
        super().__init__()
        d_inner, dt_rank = 2 * channels, -(-channels // 16)
        self.split_sizes = (dt_rank, d_state, d_state)
        self.in_proj = nn.Linear(channels, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, 4, groups=d_inner, padding=3)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, channels, bias=False)

    def forward(self, tokens):
        x, z = self.in_proj(tokens).chunk(2, -1)
        x = functional.silu(self.conv1d(x.mT)[..., : x.shape[1]]).mT
        dt, B, C = self.x_proj(x).split(self.split_sizes, -1)
        delta = functional.softplus(self.dt_proj(dt))
        y = selective_scan(x, delta, -torch.exp(self.A_log), B, C, self.D)
        return self.out_proj(y * functional.silu(z))


class MambaGate(nn.Module):
    def __init__(self, channels, d_state):
        super().__init__()
        self.in_proj = conv(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, d_state)
        self.out_proj = conv(channels, channels, 1)

    def forward(self, r):
        n, c, h, w = r.shape
        tokens = self.in_proj(r).reshape(n, c, h * w).mT
        y = self.mamba(self.norm(tokens)).mT.reshape(n, c, h, w)
        return torch.sigmoid(self.out_proj(y)) - 0.5


class MambaGateBlock(nn.Module):
    def __init__(self, channels, d_state):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (
            Conv3XC(channels, channels, gain=1, form="both") for _ in range(3)
        )
        self.mamba_gate = MambaGate(channels, d_state)

    def forward(self, u):
        r = self.c3_r(functional.silu(self.c2_r(functional.silu(self.c1_r(u)))))
        v = r + u
        return v + v * self.mamba_gate(r)


class Twin(nn.Module):
    def __init__(self, channels=48, d_state=16, scale=4):
        super().__init__()
        self.conv_1 = Conv3XC(3, channels, gain=1, form="both")
        for i in range(1, 7):
            setattr(self, f"block_{i}", MambaGateBlock(channels, d_state))
        self.conv_cat = conv(4 * channels, channels, 1)
        self.conv_2 = Conv3XC(channels, channels, gain=1, form="both")
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        u = head = self.conv_1(x - rgb_mean_like(x))
        outputs = []
        for i in range(1, 7):
            u = getattr(self, f"block_{i}")(u)
            outputs.append(u)
        features = [head, self.conv_2(u), outputs[0], outputs[4]]
        return self.upsampler(self.conv_cat(torch.cat(features, 1)))
