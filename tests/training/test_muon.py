"""MuAdamW against a statement in NumPy that says whose every choice is."""

import collections
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from esrjax import registry
from esrjax.network.layers import Conv2d, LayerNorm, Sequential
from esrjax.network.lora import adapt
from esrjax.network.reparam import deploy
from esrjax.training import muon, optim
from esrjax.training.recipe import Optimiser

SAID = Optimiser(name="muadamw", lr=2e-4, muon_lr=1.5e-3, weight_decay=1e-2)
SHARES = (1.0, 0.5)  # of both rates, at the first and the second step

SHAPES = {
    "conv.weight": (3, 3, 2, 5),
    "conv.bias": (5,),
    "widening.weight": (1, 1, 2, 6),
    "linear.weight": (4, 3),
    "adapted.lora_B": (6, 4),
    "depthwise.weight": (3, 3, 1, 5),
    "attention.relative_position_bias_table": (9, 2),
}
MATRICES = {  # how a leaf becomes the matrix (in, out) that Muon sees
    "conv.weight": lambda g: g.reshape(18, 5),
    "widening.weight": lambda g: g.reshape(2, 6),
    "linear.weight": lambda g: g,
    "adapted.lora_B": lambda g: g.T,
}


def orthogonal(g):
    """Eq. 14: five times X <- aX + (bA + cA²)X, A = XXᵀ."""
    a, b, c = 3.4445, -4.7750, 2.0315  # the report's
    x = g / (np.linalg.norm(g) + 1e-8)  # pre-scaling: optax's
    for _ in range(5):  # the report's
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def muon_steps(w, gradients):
    """Eq. 13 and 15 for a matrix `(in, out)`."""
    beta, m = 0.95, 0.0  # the report's
    for t, g in enumerate(gradients, start=1):
        m = beta * m + (1 - beta) * g  # momentum of Nesterov: the report's; its form: optax's
        ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        factor = np.sqrt(max(1, w.shape[1] / w.shape[0]))  # √max(1, out / in): optax's
        rate, muon_rate = SHARES[t - 1] * 2e-4, SHARES[t - 1] * 1.5e-3
        w = (1 - rate * 1e-2) * w - muon_rate * factor * orthogonal(ahead)  # rates: the report's
    return w


def adamw_steps(w, gradients):
    """The report's rule for all that is no matrix."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - SHARES[t - 1] * 2e-4 * (direction + 1e-2 * w)
    return w


def stated(name, w, gradients):
    if name not in MATRICES:
        return adamw_steps(w, gradients)
    flat = MATRICES[name]
    moved = muon_steps(flat(w), [flat(g) for g in gradients])
    return moved.T if name == "adapted.lora_B" else moved.reshape(w.shape)


def tree(named):
    """`{"conv.weight": w}` as networks have it, `{"conv": {"weight": w}}`."""
    nested = collections.defaultdict(dict)
    for name, value in named.items():
        part, leaf = name.split(".")
        nested[part][leaf] = jnp.asarray(value)
    return dict(nested)


def test_two_steps_equal_the_statement():
    draw = np.random.default_rng(2)
    before, *gradients = (
        {name: draw.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(3)
    )
    with jax.enable_x64(True):
        rule = optim.optimiser(SAID, lambda step: SAID.lr * jnp.asarray(SHARES)[step])
        ours, state = tree(before), rule.init(tree(before))
        for done, g in enumerate(gradients, start=1):
            updates, state = jax.jit(rule.update)(tree(g), state, ours)
            ours = optax.apply_updates(ours, updates)
            for name, w in before.items():
                part, leaf = name.split(".")
                wanted = stated(name, w, [g[name] for g in gradients[:done]])
                np.testing.assert_allclose(
                    ours[part][leaf], wanted, rtol=0, atol=1e-12, err_msg=f"{name}, step {done}"
                )


def kinds(net):
    """path -> kind, of a network as it is trained."""
    _, params, _ = nnx.split(net, nnx.Param, ...)
    flat, _ = jax.tree_util.tree_flatten_with_path(muon.kinds({"network": params}))
    named = {jax.tree_util.keystr(path, simple=True, separator="."): kind for path, kind in flat}
    return {k.removeprefix("network.").removesuffix(".value"): kind for k, kind in named.items()}


def abstract(name, **sizes):
    return nnx.eval_shape(lambda: deploy(registry.plain(name).build(**sizes)))


def test_kernels_and_linears_are_matrices_and_nothing_else_is():
    found = kinds(abstract("dwmamba"))
    layer = "layers.0.layers.0.ll_branch."
    of = {path.removeprefix(layer): kind for path, kind in found.items()}
    assert of["conv_first.weight"] == of["wqkv.weight"] == of["win_mhsa.proj.weight"] == "muon"
    others = [
        "conv_first.bias",
        "norm.weight",
        "win_mhsa.relative_position_bias_table",
        "embeddingA.weight",
        "assm.embeddingB.weight",
        "assm.selectiveScan.A_logs",
        "assm.CPE.0.weight",
    ]
    assert {of[path] for path in others} == {"adamw"}


def test_a_temperature_is_no_matrix():
    found = kinds(abstract("dan"))
    assert {kind for path, kind in found.items() if path.endswith("temperature")} == {"adamw"}


def test_factors_of_adapters_are_matrices():
    net = registry.plain("spanv2").build(channels=4)
    found = kinds(adapt(deploy(net), ["block_2.*"], rank=2, alpha=1.0, rngs=nnx.Rngs(0)))
    assert found["block_2.c1.lora_A"] == found["block_2.c1.lora_B"] == "muon"
    assert found["conv_near.weight"] == "adamw"  # three colours apart, one input each


def test_the_step_of_a_trained_network_is_nearly_orthogonal():
    """Whatever the size of the gradient; all else moves too, adapters of distillation included."""
    net = Sequential([Conv2d(3, 4, rngs=nnx.Rngs(0)), LayerNorm(4)])
    _, network, _ = nnx.split(net, nnx.Param, ...)
    params = {"network": network, "adapters": (jnp.ones((4, 5)), None)}
    rule = optim.optimiser(replace(SAID, weight_decay=0.0), optax.constant_schedule(SAID.lr))
    gradients = jax.tree.map(lambda w: 100 * abs(w) + 1, params)
    updates, _ = jax.jit(rule.update)(gradients, rule.init(params), params)
    step = updates["network"][0]["weight"].get_value().reshape(27, 4) / SAID.muon_lr
    assert all(0.6 < value < 1.3 for value in jnp.linalg.svd(step, compute_uv=False))
    others = [leaf for leaf in jax.tree.leaves(updates) if leaf.ndim < 4]
    assert len(others) == 4
    for leaf in others:
        np.testing.assert_allclose(leaf, -SAID.lr, rtol=1e-5)  # a first step of Adam
