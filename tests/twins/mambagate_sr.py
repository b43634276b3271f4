"""MambaGate-SR, with the recurrence of its scan written out."""

import torch
from torch import nn
from torch.nn import functional

from .parts import Conv3XC, conv, mean_like, upsampler


class Mamba(nn.Module):
    """One direction over tokens `(N, L, C)`."""

    def __init__(self, channels, states):
        super().__init__()
        inner, rank = 2 * channels, -(-channels // 16)
        self.sizes = (rank, states, states)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens):
        x, z = self.in_proj(tokens).chunk(2, -1)
        x = functional.silu(self.conv1d(x.mT)[..., : x.shape[1]]).mT
        step, b, c = self.x_proj(x).split(self.sizes, -1)
        delta = functional.softplus(self.dt_proj(step))
        return self.out_proj(self.scan(x, delta, b, c) * functional.silu(z))

    def scan(self, x, delta, b, c):
        decay = torch.exp(-delta[..., None] * torch.exp(self.A_log))
        new = (delta * x)[..., None] * b[:, :, None]
        state, read = torch.zeros_like(new[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + new[:, t]
            read.append((state * c[:, t, None]).sum(-1))
        return torch.stack(read, 1) + self.D * x


class Gate(nn.Module):
    def __init__(self, channels, states):
        super().__init__()
        self.in_proj = conv(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels, states)
        self.out_proj = conv(channels, channels, 1)

    def forward(self, r):
        n, c, h, w = r.shape
        tokens = self.in_proj(r).reshape(n, c, h * w).mT
        read = self.mamba(self.norm(tokens)).mT.reshape(n, c, h, w)
        return torch.sigmoid(self.out_proj(read)) - 0.5


class Block(nn.Module):
    def __init__(self, channels, states):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (
            Conv3XC(channels, channels, gain=1, form="both") for _ in range(3)
        )
        self.mamba_gate = Gate(channels, states)

    def forward(self, u):
        r = self.c3_r(functional.silu(self.c2_r(functional.silu(self.c1_r(u)))))
        v = r + u
        return v + v * self.mamba_gate(r)


class Twin(nn.Module):
    def __init__(self, channels=48, states=16, scale=4):
        super().__init__()
        self.conv_1 = Conv3XC(3, channels, gain=1, form="both")
        for i in range(1, 7):
            setattr(self, f"block_{i}", Block(channels, states))
        self.conv_cat = conv(4 * channels, channels, 1)
        self.conv_2 = Conv3XC(channels, channels, gain=1, form="both")
        self.upsampler = upsampler(channels, scale)

    def forward(self, x):
        u = head = self.conv_1(x - mean_like(x))
        outputs = []
        for i in range(1, 7):
            u = getattr(self, f"block_{i}")(u)
            outputs.append(u)
        kept = [head, self.conv_2(u), outputs[0], outputs[4]]
        return self.upsampler(self.conv_cat(torch.cat(kept, 1)))
