"""Training-step benchmark: a JAX step and the same PyTorch step, interleaved in one process.

steps.py [SHAPE ...]: each SHAPE is BATCHxSIDE, with SIDE the side of an LR patch in pixels, or
BATCHxSIDE/PARTS, with gradient accumulation on our side. SPANV2, float32, L1, Adam, patches stored
as uint8. The JAX step is the one that `esrjax train` compiles, with its options. Each side uses its
own initialization, because the time does not depend on it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from twins.spanv2 import Twin

from esrjax import registry
from esrjax.runtime import reexec_with_huge_pages
from esrjax.training import recipe_loader, train_state
from esrjax.training.distributed import DataParallel
from esrjax.training.stage_trainer import make_stage_optimizer
from esrjax.training.train_state import Objective

LEARNING_RATE, ROUNDS = 1e-3, 15


def jax_step(lr: np.ndarray, hr: np.ndarray, parts: int = 1) -> Callable[[], None]:
    """Return a call of the step that `esrjax train quick` compiles, on this batch."""
    method = registry.get_method("spanv2")
    stage = replace(
        recipe_loader.load("quick").stage[0], ema=None, ema_warmup=False, grad_accum_steps=parts
    )
    _, optimizer = make_stage_optimizer(stage)
    graph, state = train_state.init_state(method.build(), stage, optimizer)
    objective = Objective(graphdef=graph, stage=stage, data_range=method.data_range)
    step = DataParallel.for_batch(len(lr) // parts).compile_step(objective, optimizer)
    carry = [state]
    images = jnp.asarray(lr), jnp.asarray(hr)

    def run() -> None:
        carry[0], loss = step(carry[0], None, *images)
        jax.block_until_ready(loss)

    return run


def torch_step(lr: np.ndarray, hr: np.ndarray, layout: Any) -> Callable[[], None]:
    """Return a call of the same step as a typical PyTorch script writes it."""
    net = Twin().to(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    lr_nchw, hr_nchw = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (lr, hr))

    def run() -> None:
        x, y = (t.to(torch.float32, memory_format=layout) / 255 for t in (lr_nchw, hr_nchw))
        optimizer.zero_grad()
        functional.l1_loss(net(x), y).backward()
        optimizer.step()

    return run


def time_steps(batch: int, side: int, parts: int) -> dict[str, list[float]]:
    """Return the milliseconds of every round by framework; two warm-up rounds are not counted."""
    rng = np.random.default_rng(0)
    lr, hr = (rng.integers(0, 256, (batch, s, s, 3), np.uint8) for s in (side, 4 * side))
    runs = {
        "esrjax": jax_step(lr, hr, parts),
        "PyTorch": torch_step(lr, hr, torch.contiguous_format),
        "PyTorch, channels last": torch_step(lr, hr, torch.channels_last),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in runs}
    for round_index in range(-2, ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_index >= 0:
                times_ms[name].append(1e3 * (time.perf_counter() - start))
    return times_ms


def main(shapes: list[str]) -> None:
    print(
        "| batch x LR side | " + " | ".join(("esrjax", "PyTorch", "channels last")) + " | ratio |"
    )
    print("|---|---|---|---|---|")
    for shape in shapes:
        size, _, parts = shape.partition("/")
        batch, side = map(int, size.split("x"))
        times_ms = time_steps(batch, side, int(parts or 1))
        medians = [statistics.median(times) for times in times_ms.values()]
        pairs = zip(times_ms["esrjax"], times_ms["PyTorch"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        cells = " | ".join(f"{median:.0f} ms" for median in medians)
        print(f"| {shape} | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    reexec_with_huge_pages()  # as `esrjax train` does
    main(sys.argv[1:] or ["16x32", "16x32/4", "8x64", "64x32"])
