"""Script: twenty steps in double precision on all devices, alone or under SLURM; `OUT`."""

import os
import sys

import jax
import numpy as np
from crumbs import Crumb
from flax import nnx
from jax.sharding import Mesh

from esrjax.nn.state_dict import cast
from esrjax.training import recipe_loader, train_state
from esrjax.training.distributed import Cluster, DataParallel, local_replica
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
    graphdef, state = train_state.init_state(
        cast(Crumb(rngs=nnx.Rngs(0)), np.float64), stage, optimizer
    )
    objective = Objective(graphdef=graphdef, stage=stage, data_range=1.0)
    step = data_parallel.compile_step(objective, optimizer)
    state = data_parallel.replicate(state)
    for index in range(stage.steps):
        state, _ = step(state, None, *data_parallel.shard(batch(index)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(local_replica((state.params, state.ema)))]


def main(out):
    if "SLURM_PROCID" in os.environ:
        Cluster().join()
    results = {"all": train(DataParallel.for_batch(BATCH))}
    if jax.process_count() == 1:
        one_device = DataParallel(mesh=Mesh(np.array(jax.devices()[:1]), ("data",)), parallel="jit")
        results["one"] = train(one_device)
    arrays = {f"{name}{i}": x for name, leaves in results.items() for i, x in enumerate(leaves)}
    np.savez(f"{out}{jax.process_index()}.npz", devices=jax.device_count(), **arrays)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
