"""Twenty steps in double precision, on what devices there are, alone or under SLURM: `OUT`."""

import os
import sys

import jax
import numpy as np
from crumbs import Crumb
from flax import nnx
from jax.sharding import Mesh

from esrjax.network.weights import cast
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.cluster import Cluster
from esrjax.training.devices import Devices, here
from esrjax.training.objective import Objective
from esrjax.training.work import optimiser_of

BATCH = 8
SAID = {
    "name": "only",
    "start": "new",
    "steps": 20,
    "data": {"sets": ["none"], "patches": [[32, 32]], "batch": BATCH},
    "loss": {"l1": 1.0, "mse": 1.0},
    "optimiser": {"name": "adamw", "lr": 1e-2},
    "ema": 0.9,
}


def batch(step):
    """This process's rows of the batch of that step."""
    lr = np.random.default_rng(step).integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
    share = BATCH // jax.process_count()
    own = lr[jax.process_index() * share :][:share]
    return own, 255 - own.repeat(4, 1).repeat(4, 2)


def twenty(devices):
    """The weights after twenty steps."""
    stage = recipes.parse({"method": "spanv2", "seed": 0, "stage": [SAID]}).stage[0]
    _, rule = optimiser_of(stage)
    graph, state = states.begin(cast(Crumb(rngs=nnx.Rngs(0)), np.float64), stage, rule)
    step = devices.compiled(Objective(graph=graph, stage=stage, data_range=1.0), rule)
    state = devices.everywhere(state)
    for index in range(stage.steps):
        state, _ = step(state, None, *devices.spread(batch(index)))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(here((state.params, state.ema)))]


def main(out):
    if "SLURM_PROCID" in os.environ:
        Cluster().join()
    after = {"all": twenty(Devices.dividing(BATCH))}
    if jax.process_count() == 1:
        alone = Devices(mesh=Mesh(np.array(jax.devices()[:1]), ("data",)), parallel="jit")
        after["one"] = twenty(alone)
    arrays = {f"{name}{i}": x for name, leaves in after.items() for i, x in enumerate(leaves)}
    np.savez(f"{out}{jax.process_index()}.npz", devices=jax.device_count(), **arrays)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(*sys.argv[1:])
