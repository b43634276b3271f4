"""Script: training steps with the state replicated and sharded; METHOD CHANNELS DTYPE OUT."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from esrjax import registry
from esrjax.nn.state_dict import cast
from esrjax.training import recipe_loader, train_state
from esrjax.training.checkpoint import Checkpointer, CheckpointInfo
from esrjax.training.distributed import DataParallel
from esrjax.training.stage_trainer import make_stage_optimizer
from esrjax.training.train_state import Objective

BATCH, SIDE, STEPS = 8, 8, 3
SMALL = {"num_groups": 1, "depth": 2, "num_heads": 2, "window_size": 8, "extra_scales": []}
HPARAMS = {"hat": SMALL | {"squeeze_factor": 8}, "mambairv2": SMALL, "spanv2": {}}
STAGE = {
    "name": "only",
    "init_from": "scratch",
    "steps": STEPS,
    "data": {"datasets": ["none"], "hr_patch_sizes": [[4 * SIDE] * 2], "batch_size": BATCH},
    "loss": {"l1": 1.0},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "eps": 1e-3, "weight_decay": 0.1},
    "ema": 0.9,
}


def start(method_name, channels, dtype, parallel):
    """Return the devices, the compiled step and the initial state."""
    stage = recipe_loader.parse({"method": method_name, "seed": 0, "stage": [STAGE]}).stage[0]
    _, optimizer = make_stage_optimizer(stage)
    method = registry.get_method(method_name)
    net = method.build(seed=0, channels=channels, **HPARAMS[method_name])
    graphdef, state = train_state.init_state(cast(net, dtype), stage, optimizer)
    objective = Objective(graphdef=graphdef, stage=stage, data_range=method.data_range)
    data_parallel = DataParallel.for_batch(BATCH, parallel)
    return (
        data_parallel,
        data_parallel.compile_step(objective, optimizer),
        data_parallel.place(state),
    )


def train(*args):
    """Return the state after all steps, and it on one device."""
    data_parallel, step, state = start(*args)
    for index in range(STEPS):
        rng = np.random.default_rng(index)
        lr = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
        state, _ = step(state, None, *data_parallel.shard((lr, 255 - lr.repeat(4, 1).repeat(4, 2))))
    return state, data_parallel.local_replica(state)


def device_bytes(state):
    """Return the bytes of a state on the first device."""
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))


def main(method_name, channels, dtype, out):
    """Print largest differences and shares of bytes; save a checkpoint of the sharded state."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    args = method_name, int(channels), dtype
    (replicated, expected), (sharded, result) = train(*args, "jit"), train(*args, "fsdp")
    differences = jax.tree.map(lambda a, b: float(abs(a - b).max()), result, expected)
    report = {
        "difference": max(map(max, map(jax.tree.leaves, (differences.params, differences.ema)))),
        "opt_difference": max(jax.tree.leaves(differences.opt_state)),
        "share": device_bytes(sharded) / device_bytes(replicated),
    }
    Checkpointer(Path(out)).save(STEPS, sharded, CheckpointInfo(recipe="r", stage="s"))
    np.savez(f"{out}/state.npz", *map(np.asarray, jax.tree.leaves(result)))
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
