"""The steps of tools/gpu_run.py in PyTorch and Triton: networks and training steps."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_results import Record, Results, choose, median_ms
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from twins import rfdn_span, span, spanv2

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHANNELS_LAST: Any = {"memory_format": torch.channels_last}
IMAGE_SIZE = choose((339, 510), (16, 24))
TWINS: dict[str, Callable[[], nn.Module]] = {
    "span": span.Twin,
    "spanv2": spanv2.Twin,
    "rfdn_span": rfdn_span.Twin,
}
MODES = ("eager", "channels last", "compiled", "CUDA graph", "Triton")


# --- networks ---


def networks(results: Results) -> None:
    """The twins at the challenge's mean image size, as PyTorch users run them."""
    torch.backends.cudnn.benchmark = True
    for name in TWINS:
        for dtype in DTYPES:
            for mode in MODES:
                if mode != "Triton" or name == "spanv2":
                    results.attempt(
                        functools.partial(_network_time, name, dtype, mode),
                        name=name, dtype=dtype, mode=mode, image_size=IMAGE_SIZE,
                    )  # fmt: skip


def _network_time(name: str, dtype: str, mode: str) -> Record:
    if DEVICE == "cpu" and mode in ("CUDA graph", "Triton"):
        return {"unsupported": "a CPU has no CUDA graphs and runs no Triton"}
    net = TWINS[name]().to(DEVICE, DTYPES[dtype], **CHANNELS_LAST).eval()
    if mode == "Triton":
        _use_triton(net)
    x = torch.rand(1, 3, *IMAGE_SIZE, device=DEVICE, dtype=DTYPES[dtype])
    x = x if mode == "eager" else x.to(**CHANNELS_LAST)
    forward = torch.compile(net) if mode == "compiled" else net
    run = _graph(forward, x) if mode in ("CUDA graph", "Triton") else lambda: forward(x)
    calls = choose(10, 1)
    with torch.inference_mode():
        return median_ms(lambda: _repeat(run, calls), calls) | _peak()


def _repeat(run: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _graph(forward: Any, x: Any) -> Callable[[], Any]:
    """Return the replay of a captured forward pass."""
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                forward(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward(x)
    return graph.replay


def _peak() -> Record:
    if DEVICE == "cpu":
        return {}
    return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}


def _use_triton(net: nn.Module) -> None:
    """Let SPANV2's blocks compute `(u + f) · (W f + b)` in one Triton kernel."""
    gated_residual = triton_gated_residual()

    def forward(block: Any, u: Any) -> Any:
        f = block.c3(functional.relu(block.c2(functional.relu(block.c1(u)))))
        if not block.has_gate:
            return functional.relu(f)
        gate = block.guidance_map_conv
        return gated_residual(u, f, gate.weight, gate.bias)

    for block in net.children():
        if isinstance(block, spanv2.SPANV2Block):
            block.forward = functools.partial(forward, block)


def triton_gated_residual() -> Callable[..., Any]:
    """Return the gated residual as one Triton kernel, as the team of SPANV2 describes theirs.

    It takes u and f `(N, C, h, w)`, channels last, W `(C, C, 1, 1)` and b `(C,)`; C is a power of 2
    and at least 16.
    """
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(u, f, w, b, y, pixels, channels: tl.constexpr, rows: tl.constexpr):
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        column = tl.arange(0, channels)
        offsets = row[:, None] * channels + column[None, :]
        mask = row[:, None] < pixels
        f_tile = tl.load(f + offsets, mask, 0.0)
        # W is (out, in): its transpose multiplies a row of input channels.
        w_tile = tl.load(w + column[None, :] * channels + column[:, None])
        gate = tl.dot(f_tile, w_tile) + tl.load(b + column)[None, :]
        y_tile = (tl.load(u + offsets, mask, 0.0) + f_tile) * gate
        tl.store(y + offsets, y_tile.to(y.dtype.element_ty), mask)

    def call(u: Any, f: Any, w: Any, b: Any) -> Any:
        y, (n, channels, h, width) = torch.empty_like(f), f.shape
        pixels, rows = n * h * width, 128
        kernel[(triton.cdiv(pixels, rows),)](u, f, w, b, y, pixels, channels, rows)
        return y

    return call


# --- training ---


def training(results: Results) -> None:
    """Training steps of SPANV2's twin: L1, Adam, patches of 64x64 LR pixels."""
    for mode in ("channels last", "compiled"):
        for precision in ("fp32", "bf16"):
            for batch in choose((16, 64, 256, 1024), (2,)):
                results.attempt(
                    functools.partial(_training_time, batch, precision, mode),
                    name="spanv2", batch=batch, precision=precision, mode=mode,
                )  # fmt: skip


def _training_time(batch: int, precision: str, mode: str) -> Record:
    side, calls = choose(64, 8), choose(5, 1)
    net = spanv2.Twin().to(DEVICE, **CHANNELS_LAST)
    forward = torch.compile(net) if mode == "compiled" else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=DEVICE == "cuda")
    lr, hr = (
        torch.randint(0, 256, (batch, 3, s, s), dtype=torch.uint8, device=DEVICE).to(
            **CHANNELS_LAST
        )
        for s in (side, 4 * side)
    )

    def step() -> None:
        x, y = lr.float() / 255, hr.float() / 255
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            sr = forward(x)
        functional.l1_loss(sr.float(), y).backward()
        optimizer.step()

    timing = median_ms(lambda: _repeat(step, calls), calls)
    return (
        timing | {"lr_side": side, "patches_per_s": round(batch / timing["ms"] * 1e3, 1)} | _peak()
    )
