"""Memory of a training state on one device, replicated and sharded: fsdp_memory.py [RECIPE ...]

Prints a Markdown table for the first stage of each recipe, by default of HAT-L and MambaIRv2-L: MiB
of parameters, gradients, both moments of Adam and the moving average, from their shapes alone.
"""

import math
import sys
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from esrjax.training import recipe_loader
from esrjax.training.distributed import fsdp_axes, fsdp_spec
from esrjax.training.dry_run import dry_run

RECIPES, DEVICES = ("smt_hat", "smt_mambairv2"), (8, 64)


def device_mib(tree: Any, num_devices: int) -> float:
    """Return the MiB of a sharded state on each device.

    Args:
        tree: A pytree of arrays, or of their shapes.
        num_devices: Number of devices; 1 for a replicated state.
    """
    axes = fsdp_axes(num_devices)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    shards = (
        (NamedSharding(mesh, fsdp_spec(leaf.shape, axes)).shard_shape(leaf.shape), leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards) / 2**20


def rows(name: str) -> list[list[str]]:
    """Return a row for the replicated state, and one for each number of devices."""
    recipe = recipe_loader.load(name)
    # Alone, since later stages add nothing, with Adam and a moving average.
    stage = replace(recipe.stage[0], name="first", ema=0.999)
    (plan,) = dry_run(replace(recipe, stage=(stage,), repeat=()))
    state = plan.setup.state
    parts = (state.params, state.params, state.opt_state, state.ema)
    counts = {"replicated": 1} | {f"fsdp, {count} devices": count for count in DEVICES}
    cells = [[device_mib(part, count) for part in parts] for count in counts.values()]
    return [
        [recipe.method, label, *(f"{x:,.1f}" for x in (*mib, sum(mib)))]
        for label, mib in zip(counts, cells, strict=True)
    ]


def main(names: list[str]) -> None:
    """Print the table."""
    header = ["network", "state", "parameters", "gradients", "moments", "EMA", "sum, MiB"]
    table = [header, ["---", "---", *["---:"] * 5], *(row for name in names for row in rows(name))]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in table))


if __name__ == "__main__":
    main(sys.argv[1:] or list(RECIPES))
