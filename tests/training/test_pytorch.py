"""A training compared with the same training in PyTorch: equal weights, batches, AdamW."""

import jax
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.naming import KeyMap
from esrjax.network.weights import cast, to_state_dict
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.objective import Objective
from esrjax.training.work import make_stage_optimizer

torch = pytest.importorskip("torch")

STEPS = 50
HPARAMS = {"channels": 8}


@pytest.fixture
def stage(recipe_dict):
    first = recipe_dict["stage"][0] | {
        "steps": STEPS,
        "loss": {"l1": 1.0},
        "optimizer": {"name": "adamw", "learning_rate": 2e-4, "weight_decay": 1e-2},
        "ema": None,
    }
    return recipes.parse(
        recipe_dict | {"method": "span", "hparams": HPARAMS, "stage": [first]}
    ).stage[0]


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        lr = rng.integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
        yield lr, lr.repeat(4, 1).repeat(4, 2)


def train_jax(net, stage):
    """Return the loss of every step, and the final state dict."""
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = states.init_state(net, stage, optimizer)
    method = registry.get_method("span")
    objective = Objective(graphdef=graphdef, stage=stage, data_range=method.data_range)
    step = jax.jit(states.make_train_step(objective, optimizer))
    losses = []
    for lr, hr in batches():
        state, loss = step(state, None, lr, hr)
        losses.append(float(loss))
    return losses, to_state_dict(states.merge_network(graphdef, state), KeyMap(method.torch_names))


def train_torch(state_dict, cfg, dtype):
    """Return the same of the PyTorch twin of SPAN."""
    from twins.span import Twin

    net = Twin(**HPARAMS, form="train").to(dtype)
    net.load_state_dict({key: torch.from_numpy(np.array(v)) for key, v in state_dict.items()})
    optimizer = torch.optim.AdamW(
        net.parameters(), cfg.learning_rate, (cfg.b1, cfg.b2), cfg.eps, cfg.weight_decay
    )
    losses = []
    for lr, hr in batches():
        x, y = (torch.from_numpy(array).permute(0, 3, 1, 2).to(dtype) / 255 for array in (lr, hr))
        optimizer.zero_grad()
        loss = torch.nn.functional.l1_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {key: value.detach().numpy() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_fifty_steps_equal_pytorch(stage, precision):
    method = registry.get_method("span")
    with jax.enable_x64(precision == "float64"):
        net = cast(method.build(seed=1, **HPARAMS), precision)
        state_dict = to_state_dict(nnx.clone(net), KeyMap(method.torch_names))
        losses, weights = train_jax(net, stage)
    reference, expected = train_torch(state_dict, stage.optimizer, getattr(torch, precision))
    assert reference[-1] < 0.8 * reference[0]
    if precision == "float32":
        np.testing.assert_allclose(losses, reference, rtol=1e-4)
        return
    np.testing.assert_allclose(losses, reference, rtol=1e-9)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-8, err_msg=key)
