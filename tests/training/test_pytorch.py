"""A training beside the same training in PyTorch: same start, same batches, AdamW."""

import jax
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.naming import Naming
from esrjax.network.weights import cast, tensors
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.objective import Objective
from esrjax.training.work import optimiser_of

torch = pytest.importorskip("torch")

STEPS = 50
SIZES = {"channels": 8}


@pytest.fixture
def stage(said):
    first = said["stage"][0] | {
        "steps": STEPS,
        "loss": {"l1": 1.0},
        "optimiser": {"name": "adamw", "lr": 2e-4, "weight_decay": 1e-2},
        "ema": None,
    }
    return recipes.parse(said | {"method": "span", "sizes": SIZES, "stage": [first]}).stage[0]


def batches():
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        lr = draw.integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
        yield lr, lr.repeat(4, 1).repeat(4, 2)


def ours(net, stage):
    """The losses of every step, and the weights after the last."""
    _, optimiser = optimiser_of(stage)
    graph, state = states.begin(net, stage, optimiser)
    method = registry.plain("span")
    objective = Objective(graph=graph, stage=stage, data_range=method.data_range)
    step = jax.jit(states.step(objective, optimiser))
    losses = []
    for lr, hr in batches():
        state, loss = step(state, None, lr, hr)
        losses.append(float(loss))
    return losses, tensors(states.network(graph, state), Naming(method.torch_names))


def theirs(start, said, dtype):
    """The same of our own writing of SPAN in PyTorch."""
    from twins.span import Twin

    net = Twin(**SIZES, form="train").to(dtype)
    net.load_state_dict({key: torch.from_numpy(np.array(v)) for key, v in start.items()})
    rule = torch.optim.AdamW(
        net.parameters(), said.lr, (said.b1, said.b2), said.eps, said.weight_decay
    )
    losses = []
    for lr, hr in batches():
        x, y = (torch.from_numpy(each).permute(0, 3, 1, 2).to(dtype) / 255 for each in (lr, hr))
        rule.zero_grad()
        loss = torch.nn.functional.l1_loss(net(x), y)
        loss.backward()
        rule.step()
        losses.append(loss.item())
    return losses, {key: value.detach().numpy() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_fifty_steps_are_those_of_pytorch(stage, precision):
    method = registry.plain("span")
    with jax.enable_x64(precision == "float64"):
        net = cast(method.build(seed=1, **SIZES), precision)
        start = tensors(nnx.clone(net), Naming(method.torch_names))
        losses, weights = ours(net, stage)
    reference, held = theirs(start, stage.optimiser, getattr(torch, precision))
    assert reference[-1] < 0.8 * reference[0]
    if precision == "float32":
        np.testing.assert_allclose(losses, reference, rtol=1e-4)
        return
    np.testing.assert_allclose(losses, reference, rtol=1e-9)
    assert weights.keys() == held.keys()
    for key, value in held.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-8, err_msg=key)
