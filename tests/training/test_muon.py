"""MuAdamW, compared with a NumPy reference that names the source of every choice."""

import collections
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from esrjax import registry
from esrjax.network.layers import Conv2d, LayerNorm, Sequential
from esrjax.network.lora import add_lora
from esrjax.network.reparam import deploy
from esrjax.training import muon, optim
from esrjax.training.recipe import Optimizer

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
    flat, _ = jax.tree_util.tree_flatten_with_path(muon.param_labels({"network": params}))
    by_path = {jax.tree_util.keystr(path, simple=True, separator="."): name for path, name in flat}
    return {k.removeprefix("network.").removesuffix(".value"): name for k, name in by_path.items()}


def abstract_network(name, **hparams):
    return nnx.eval_shape(lambda: deploy(registry.get_method(name).build(**hparams)))


def test_only_kernels_and_linears_are_labelled_muon():
    layer = "layers.0.layers.0.ll_branch."
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
