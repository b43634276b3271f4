"""Script: twenty steps in double precision on all devices, alone or under SLURM; `OUT`."""

import os
import sys

import jax
import numpy as np
from flax import nnx

from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d
from esrjax.nn.state_dict import cast
from esrjax.training import recipe_loader, train_state
from esrjax.training.distributed import Cluster, DataParallel
from esrjax.training.stage_trainer import make_stage_optimizer
from esrjax.training.train_state import Objective

BATCH = 8
STAGE = {
    "name": "only",
    "init_from": "scratch",
    "steps": 20,
    "data": {"datasets": ["none"], "hr_patch_sizes": [[32, 32]], "batch_size": BATCH},
    "loss": {"l1": 1.0, "mse": 1.0},
    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    "ema": 0.9,
}


class OneConv(nnx.Module):
    """A convolution of 1296 weights, enough to be sharded, and pixel shuffle."""

    def __init__(self):
        self.conv = Conv2d(3, 48, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return pixel_shuffle(self.conv(x), 4)


def batch(step):
    """Return this process's rows of the batch of a step."""
    lr = np.random.default_rng(step).integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
    num_rows = BATCH // jax.process_count()
    rows = lr[jax.process_index() * num_rows :][:num_rows]
    return rows, 255 - rows.repeat(4, 1).repeat(4, 2)


def train(data_parallel):
    """Return the weights after twenty steps."""
    stage = recipe_loader.parse({"method": "spanv2", "seed": 0, "stage": [STAGE]}).stage[0]
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(cast(OneConv(), np.float64), stage, optimizer)
    objective = Objective(graphdef=graphdef, stage=stage, data_range=1.0)
    step = data_parallel.compile_step(objective, optimizer)
    state = data_parallel.place(state)
    for index in range(stage.steps):
        state, _ = step(state, None, *data_parallel.shard(batch(index)))
    is_sharded = any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert is_sharded == (data_parallel.parallel == "fsdp")
    weights = data_parallel.local_replica((state.params, state.ema))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]


def main(out):
    if "SLURM_PROCID" in os.environ:
        Cluster().join()
    parallels = {"all": "jit", "fsdp": "fsdp"}
    results = {name: train(DataParallel.for_batch(BATCH, p)) for name, p in parallels.items()}
    if jax.process_count() == 1:
        results["one"] = train(DataParallel.over(jax.devices()[:1], "jit"))
    arrays = {f"{name}{i}": x for name, leaves in results.items() for i, x in enumerate(leaves)}
    np.savez(f"{out}{jax.process_index()}.npz", devices=jax.device_count(), **arrays)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
