"""A training step beside the same step of the PyTorch twin, in turn in one process.

steps.py [SHAPE ...]: each BATCHxSIDE, SIDE of the LR patch. SPANV2, float32, L1, Adam, patches
that are 8-bit in memory; both from their own initialisation, for time does not depend on it.
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
from esrjax.memory import take_large_pages
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.objective import Objective
from esrjax.training.work import optimiser_of

RATE, ROUNDS = 1e-3, 15


def ours(lr: np.ndarray, hr: np.ndarray) -> Callable[[], None]:
    """The step that `esrjax train quick` compiles, on this batch."""
    method = registry.plain("spanv2")
    stage = replace(recipes.load("quick").stage[0], ema=None)
    _, optimiser = optimiser_of(stage)
    graph, state = states.begin(method.build(), stage, optimiser)
    objective = Objective(graph=graph, stage=stage, data_range=method.data_range)
    step = jax.jit(states.step(objective, optimiser), donate_argnums=0)
    held = [state]
    pictures = jnp.asarray(lr), jnp.asarray(hr)

    def run() -> None:
        held[0], loss = step(held[0], None, *pictures)
        jax.block_until_ready(loss)

    return run


def theirs(lr: np.ndarray, hr: np.ndarray, layout: Any) -> Callable[[], None]:
    """The step as a PyTorch script writes it."""
    net = Twin().to(memory_format=layout)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    small, large = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (lr, hr))

    def run() -> None:
        x, y = (each.to(torch.float32, memory_format=layout) / 255 for each in (small, large))
        optimiser.zero_grad()
        functional.l1_loss(net(x), y).backward()
        optimiser.step()

    return run


def measured(batch: int, side: int) -> dict[str, list[float]]:
    """Milliseconds of every round, by who steps; compilation and two rounds apart."""
    draw = np.random.default_rng(0)
    lr, hr = (draw.integers(0, 256, (batch, s, s, 3), np.uint8) for s in (side, 4 * side))
    runs = {
        "esrjax": ours(lr, hr),
        "PyTorch": theirs(lr, hr, torch.contiguous_format),
        "PyTorch, channels last": theirs(lr, hr, torch.channels_last),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-2, ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                found[name].append(1e3 * (time.perf_counter() - start))
    return found


def main(shapes: list[str]) -> None:
    print(
        "| batch x LR side | " + " | ".join(("esrjax", "PyTorch", "channels last")) + " | ratio |"
    )
    print("|---|---|---|---|---|")
    for shape in shapes:
        batch, side = map(int, shape.split("x"))
        found = measured(batch, side)
        medians = [statistics.median(each) for each in found.values()]
        pairs = zip(found["esrjax"], found["PyTorch"], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        cells = " | ".join(f"{median:.0f} ms" for median in medians)
        print(f"| {batch} x {side} | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    take_large_pages()  # as `esrjax train` does
    main(sys.argv[1:] or ["16x32", "8x64"])
