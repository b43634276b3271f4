"""MuAdamW, compared with a NumPy reference that names the source of every choice."""

import collections
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optional import torch

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.nn.layers import Conv2d, LayerNorm, Sequential
from esrjax.nn.lora import add_lora
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, to_state_dict
from esrjax.training import optim, recipe_loader, train_state
from esrjax.training.recipe import Optimizer, Schedule
from esrjax.training.stage_trainer import make_stage_optimizer
from esrjax.training.train_state import Objective

CFG = Optimizer(name="muadamw", learning_rate=2e-4, muon_learning_rate=1.5e-3, weight_decay=1e-2)
LR_FACTORS = (1.0, 0.5)  # of both learning rates, at the first and the second step

SHAPES = {
    "conv.weight": (3, 3, 2, 5),
    "conv.bias": (5,),
    "pointwise.weight": (1, 1, 2, 6),
    "linear.weight": (4, 3),
    "adapted.lora_B": (6, 4),
    "depthwise.weight": (3, 3, 1, 5),
    "attention.relative_position_bias_table": (9, 2),
}
MATRICES = {  # reshape of a parameter to the matrix (in, out) of Muon
    "conv.weight": lambda g: g.reshape(18, 5),
    "pointwise.weight": lambda g: g.reshape(2, 6),
    "linear.weight": lambda g: g,
    "adapted.lora_B": lambda g: g.T,
}


def orthogonal(g):
    """Eq. 14: five Newton-Schulz iterations X <- aX + (bA + cA²)X, A = XXᵀ."""
    a, b, c = 3.4445, -4.7750, 2.0315  # the report's
    x = g / (np.linalg.norm(g) + 1e-8)  # pre-scaling: optax's
    for _ in range(5):  # the report's
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def muon_steps(w, grads):
    """Eq. 13 and 15 for a matrix `(in, out)`."""
    beta, m = 0.95, 0.0  # the report's
    for t, g in enumerate(grads, start=1):
        m = beta * m + (1 - beta) * g  # Nesterov momentum: the report's; its form: optax's
        nesterov = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        factor = np.sqrt(max(1, w.shape[1] / w.shape[0]))  # √max(1, out / in): optax's
        learning_rate, muon_learning_rate = LR_FACTORS[t - 1] * 2e-4, LR_FACTORS[t - 1] * 1.5e-3
        update = muon_learning_rate * factor * orthogonal(nesterov)
        w = (1 - learning_rate * 1e-2) * w - update  # learning rates: the report's
    return w


def adamw_steps(w, grads):
    """AdamW, the report's optimizer of all other parameters."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - LR_FACTORS[t - 1] * 2e-4 * (direction + 1e-2 * w)
    return w


def reference(name, w, grads):
    if name not in MATRICES:
        return adamw_steps(w, grads)
    to_matrix = MATRICES[name]
    matrix = muon_steps(to_matrix(w), [to_matrix(g) for g in grads])
    return matrix.T if name == "adapted.lora_B" else matrix.reshape(w.shape)


def tree(flat):
    """Return `{"conv.weight": w}` as the pytree of a network, `{"conv": {"weight": w}}`."""
    nested = collections.defaultdict(dict)
    for path, value in flat.items():
        module, name = path.split(".")
        nested[module][name] = jnp.asarray(value)
    return dict(nested)


def test_two_steps_equal_the_reference():
    rng = np.random.default_rng(2)
    before, *grads = (
        {name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(3)
    )
    with jax.enable_x64(True):
        lr_schedule = lambda step: CFG.learning_rate * jnp.asarray(LR_FACTORS)[step]  # noqa: E731
        optimizer = optim.make_optimizer(CFG, lr_schedule)
        params, state = tree(before), optimizer.init(tree(before))
        for step, g in enumerate(grads, start=1):
            updates, state = jax.jit(optimizer.update)(tree(g), state, params)
            params = optax.apply_updates(params, updates)
            for path, w in before.items():
                module, name = path.split(".")
                expected = reference(path, w, [g[path] for g in grads[:step]])
                np.testing.assert_allclose(
                    params[module][name],
                    expected,
                    rtol=0,
                    atol=1e-12,
                    err_msg=f"{path}, step {step}",
                )


def labels(net):
    """Return path -> label of the trained parameters of a network."""
    _, params, _ = nnx.split(net, nnx.Param, ...)
    flat, _ = jax.tree_util.tree_flatten_with_path(optim.param_labels({"network": params}))
    by_path = {jax.tree_util.keystr(path, simple=True, separator="."): name for path, name in flat}
    return {k.removeprefix("network.").removesuffix(".value"): name for k, name in by_path.items()}


def abstract_network(name, **hparams):
    return nnx.eval_shape(lambda: deploy(registry.get_method(name).build(**hparams)))


def test_only_kernels_and_linears_are_labelled_muon():
    layer = "layers.0.residual_group.0.ll_branch."
    label = {p.removeprefix(layer): name for p, name in labels(abstract_network("dwmamba")).items()}
    matrices = ["conv_first.weight", "wqkv.weight", "win_mhsa.proj.weight"]
    assert {label[path] for path in matrices} == {"muon"}
    others = [
        "conv_first.bias",
        "norm.weight",
        "win_mhsa.relative_position_bias_table",
        "embeddingA.weight",
        "assm.embeddingB.weight",
        "assm.selectiveScan.A_logs",
        "assm.CPE.0.weight",
    ]
    assert {label[path] for path in others} == {"adamw"}


def test_temperature_is_labelled_adamw():
    label = labels(abstract_network("dan"))
    assert {name for path, name in label.items() if path.endswith("temperature")} == {"adamw"}


def test_lora_factors_are_labelled_muon():
    net = registry.get_method("spanv2").build(channels=4)
    label = labels(add_lora(deploy(net), ["block_2.*"], rank=2, alpha=1.0, rngs=nnx.Rngs(0)))
    assert label["block_2.c1.lora_A"] == label["block_2.c1.lora_B"] == "muon"
    assert label["conv_near.weight"] == "adamw"  # depthwise: one input channel per group


def test_muon_update_is_nearly_orthogonal():
    """For grads of any size; all other parameters, also distillation adapters, have AdamW."""
    net = Sequential([Conv2d(3, 4, rngs=nnx.Rngs(0)), LayerNorm(4)])
    _, network, _ = nnx.split(net, nnx.Param, ...)
    params = {"network": network, "adapters": (jnp.ones((4, 5)), None)}
    lr_schedule = optax.constant_schedule(CFG.learning_rate)
    optimizer = optim.make_optimizer(replace(CFG, weight_decay=0.0), lr_schedule)
    grads = jax.tree.map(lambda w: 100 * abs(w) + 1, params)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    step = updates["network"][0]["weight"].get_value().reshape(27, 4) / CFG.muon_learning_rate
    assert all(0.6 < value < 1.3 for value in jnp.linalg.svd(step, compute_uv=False))
    others = [leaf for leaf in jax.tree.leaves(updates) if leaf.ndim < 4]
    assert len(others) == 4
    for leaf in others:
        np.testing.assert_allclose(leaf, -CFG.learning_rate, rtol=1e-5)  # first step of Adam


# --- Optimizers and schedules, compared with NumPy references and with PyTorch ---


CONFIGS = {
    "adam": Optimizer(name="adam", learning_rate=1e-2),
    "adam, decay": Optimizer(name="adam", learning_rate=1e-2, b2=0.99, weight_decay=0.1),
    "adamw": Optimizer(
        name="adamw", learning_rate=1e-2, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1
    ),
}


def adam(cfg, w, grads, rates):
    """Kingma and Ba, algorithm 1; with weight decay, Loshchilov and Hutter, algorithm 2."""
    coupled, decoupled = cfg.weight_decay * np.array([cfg.name == "adam", cfg.name == "adamw"])
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g + coupled * w
        m = cfg.b1 * m + (1 - cfg.b1) * g
        v = cfg.b2 * v + (1 - cfg.b2) * g * g
        direction = (m / (1 - cfg.b1**t)) / (np.sqrt(v / (1 - cfg.b2**t)) + cfg.eps)
        w = w - rate * (direction + decoupled * w)
    return w


def apply_steps(optimizer, w, grads):
    """Return `w` after one step per gradient."""
    params, state = jnp.asarray(w), optimizer.init(jnp.asarray(w))
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_three_steps_equal_the_reference(cfg):
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal(7), rng.standard_normal((3, 7))
    with jax.enable_x64(True):
        lr_schedule = optim.make_schedule(Schedule(name="cosine"), cfg.learning_rate, 3)
        result = apply_steps(optim.make_optimizer(cfg, lr_schedule), w, grads)
    rates = [cfg.learning_rate * (1 + math.cos(math.pi * t / 3)) / 2 for t in range(3)]
    np.testing.assert_allclose(result, adam(cfg, w, grads, rates), rtol=1e-12)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_five_steps_equal_pytorch(cfg):
    rng = np.random.default_rng(1)
    w, grads = rng.standard_normal(7), rng.standard_normal((5, 7))
    torch_w = torch.tensor(w)
    torch_optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.name](
        [torch_w], cfg.learning_rate, (cfg.b1, cfg.b2), cfg.eps, cfg.weight_decay
    )
    for g in grads:
        torch_w.grad = torch.tensor(g)
        torch_optimizer.step()
    with jax.enable_x64(True):
        lr_schedule = optax.constant_schedule(cfg.learning_rate)
        result = apply_steps(optim.make_optimizer(cfg, lr_schedule), w, grads)
    np.testing.assert_allclose(result, torch_w.numpy(), rtol=0, atol=1e-12)


# --- LAMB and LARS: the formulas of the papers in NumPy ---


LAYERWISE = {
    "lamb": Optimizer(name="lamb", learning_rate=1e-2, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
    "lars": Optimizer(
        name="lars", learning_rate=0.5, momentum=0.8, trust_coefficient=0.02, weight_decay=0.1
    ),
}


def lamb_steps(cfg, w, grads):
    """You et al. 2019, algorithm 2; without trust ratio and decay, Adam, for vectors."""
    is_vector, m, v = w.ndim < 2, 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        m, v = cfg.b1 * m + (1 - cfg.b1) * g, cfg.b2 * v + (1 - cfg.b2) * g * g
        ratio = (m / (1 - cfg.b1**t)) / (np.sqrt(v / (1 - cfg.b2**t)) + cfg.eps)
        update = ratio if is_vector else ratio + cfg.weight_decay * w
        trust = 1.0 if is_vector else np.linalg.norm(w) / np.linalg.norm(update)
        w = w - cfg.learning_rate * trust * update
    return w


def lars_steps(cfg, w, grads):
    """You et al. 2017, algorithm 1; without trust ratio and decay, momentum SGD, for vectors."""
    is_vector, momentum = w.ndim < 2, 0.0
    for g in grads:
        update = g if is_vector else g + cfg.weight_decay * w
        trust = cfg.trust_coefficient * np.linalg.norm(w) / (np.linalg.norm(update) + cfg.eps)
        trust = 1.0 if is_vector else trust
        momentum = cfg.momentum * momentum + cfg.learning_rate * trust * update
        w = w - momentum
    return w


@pytest.mark.parametrize("name", LAYERWISE)
def test_two_layerwise_steps_equal_the_reference(name):
    cfg, rng = LAYERWISE[name], np.random.default_rng(3)
    shapes = {"conv": (3, 3, 2, 5), "bias": (5,)}
    before, *grads = (
        {key: rng.standard_normal(shape) for key, shape in shapes.items()} for _ in range(3)
    )
    with jax.enable_x64(True):
        optimizer = optim.make_optimizer(cfg, optax.constant_schedule(cfg.learning_rate))
        params, state = before, optimizer.init(before)
        for g in grads:
            updates, state = optimizer.update(g, state, params)
            params = optax.apply_updates(params, updates)
    steps = {"lamb": lamb_steps, "lars": lars_steps}[name]
    for key, w in before.items():
        expected = steps(cfg, w, [g[key] for g in grads])
        np.testing.assert_allclose(params[key], expected, rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", LAYERWISE)
def test_layerwise_step_from_zero_weights_is_that_without_trust_ratio(name):
    """The second LoRA factor is zero at first: a trust ratio of |w| would freeze it."""
    w, g = {"lora_B": jnp.zeros((4, 2))}, {"lora_B": jnp.ones((4, 2))}
    cfg = LAYERWISE[name]
    optimizer = optim.make_optimizer(cfg, optax.constant_schedule(cfg.learning_rate))
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    np.testing.assert_allclose(updates["lora_B"], -cfg.learning_rate, rtol=1e-5)


def test_vectors_and_scalars_have_no_trust_ratio():
    shapes = {"conv": (3, 3, 2, 5), "bias": (5,), "temperature": (4, 1, 1), "scale": ()}
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    labels = optim.optimizer_labels("lars", params)
    assert labels == {"conv": "lars", "bias": "sgd", "temperature": "sgd", "scale": "sgd"}


def rates(cfg, learning_rate, num_steps):
    schedule = optim.make_schedule(cfg, learning_rate, num_steps)
    return [float(schedule(t)) for t in range(num_steps)]


def half_cosine(high, low, num_steps):
    return [
        low + (high - low) * (1 + math.cos(math.pi * t / num_steps)) / 2 for t in range(num_steps)
    ]


def test_constant():
    assert rates(Schedule(), 0.5, 3) == [0.5, 0.5, 0.5]


def test_cosine_ends_at_end_learning_rate():
    cfg = Schedule(name="cosine", end_learning_rate=0.1)
    assert rates(cfg, 1.0, 8) == pytest.approx(half_cosine(1.0, 0.1, 8), rel=1e-6)


def test_cosine_with_weighted_restarts():
    cfg = Schedule(name="cosine", restarts=(6,), restart_weights=(1.0, 0.5), end_learning_rate=0.1)
    expected = half_cosine(1.0, 0.1, 6) + half_cosine(0.5, 0.1, 4)
    assert rates(cfg, 1.0, 10) == pytest.approx(expected, rel=1e-6)


def test_multistep():
    cfg = Schedule(name="multistep", milestones=(2, 4), gamma=0.1)
    assert rates(cfg, 1.0, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-6)


def test_warmup_shortens_the_schedule():
    cfg = Schedule(name="cosine", warmup_steps=4)
    expected = [0.0, 0.25, 0.5, 0.75, *half_cosine(1.0, 0.0, 6)]
    assert rates(cfg, 1.0, 10) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_step():
    cfg = Schedule(name="step", step_size=2)
    assert rates(cfg, 1.0, 6) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25], rel=1e-6)


def test_step_counts_from_the_end_of_the_warmup():
    cfg = Schedule(name="step", step_size=2, gamma=0.1, warmup_steps=1)
    assert rates(cfg, 1.0, 5) == pytest.approx([0, 1, 1, 0.1, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"warmup_steps": 10}, "warm-up of 10 steps in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (4, 10)}, "restart at 10 in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (6,), "warmup_steps": 4}, "restart at 6"),
    ],
)
def test_schedule_longer_than_its_stage_is_reported(fields, problem):
    with pytest.raises(RecipeError) as error:
        optim.make_schedule(Schedule(**fields), 1.0, 10)
    assert problem in error.value.problem


# --- A training compared with the same training in PyTorch: equal weights, batches, AdamW ---


STEPS = 50
HPARAMS = {"channels": 8}


@pytest.fixture
def stage(recipe_dict):
    first = recipe_dict["stage"][0] | {
        "steps": STEPS,
        "loss": {"l1": 1.0},
        "optimizer": {"name": "adamw", "learning_rate": 2e-4, "weight_decay": 1e-2},
        "ema": None,
        "ema_warmup": False,
    }
    return recipe_loader.parse(
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
    graphdef, state = train_state.init_state(net, stage, optimizer)
    method = registry.get_method("span")
    objective = Objective(graphdef=graphdef, stage=stage, data_range=method.data_range)
    step = jax.jit(train_state.make_train_step(objective, optimizer))
    losses = []
    for lr, hr in batches():
        state, loss = step(state, None, lr, hr)
        losses.append(float(loss))
    return losses, to_state_dict(
        train_state.merge_network(graphdef, state), KeyMap(method.torch_names)
    )


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


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
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
