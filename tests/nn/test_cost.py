"""Every primitive of a trace is counted, free of cost, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from esrjax import registry
from esrjax.errors import PluginError, UncountedOp
from esrjax.nn import functional, ops
from esrjax.nn.compilation import platform_dependent, single_platform
from esrjax.nn.cost import cost, count_ops, peak_bytes
from esrjax.nn.hooks import SCOPE_FORMAT
from esrjax.nn.layers import Conv2d, Linear
from esrjax.nn.ops import Kernel
from esrjax.nn.reparam import deploy

X = jnp.ones((1, 4, 5, 6))
W = jnp.ones((3, 3, 6, 8))
SQUARE = jnp.ones((6, 6))
ONE = 1 * 4 * 5 * 6 * 6  # MACs of X @ SQUARE


def count(run, *args):
    return count_ops(jax.make_jaxpr(run)(*(args or (X,))).jaxpr)[0]


def total_macs(run, *args):
    return sum(op.macs_full for op in count(run, *args) if op.is_needed)


def raw_conv(x, w, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout, **options)


def nchw_conv(x, w):
    return lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"
    )


MACS = {
    "conv2d": (lambda x: functional.conv2d(x, W, padding=(1, 1)), 4 * 5 * 9 * 6 * 8),
    "conv2d strided": (lambda x: functional.conv2d(x, W, stride=2), 1 * 2 * 9 * 6 * 8),
    "conv2d depthwise": (lambda x: functional.conv2d(x, W[:, :, :1, :6], groups=6), 2 * 3 * 9 * 6),
    "conv2d grouped": (lambda x: functional.conv2d(x, W[:, :, :3], groups=2), 2 * 3 * 9 * 3 * 8),
    "linear": (lambda x: functional.linear(x, W[0, 0]), 4 * 5 * 6 * 8),
    "matmul": (lambda x: functional.matmul(x, x.mT), 4 * 5 * 5 * 6),
    "layer_norm": (lambda x: functional.layer_norm(x, W[0, 0, :, 0], W[0, 0, :, 0]), 5 * 4 * 5 * 6),
    "group_norm": (lambda x: functional.group_norm(x, W[0, 0, :, 0], W[0, 0, :, 0]), 5 * 4 * 5 * 6),
    "resize_nearest": (lambda x: functional.resize_nearest(x, size=(7, 9)), 7 * 9 * 6),
    "resize_bilinear": (lambda x: functional.resize_bilinear(x, size=(7, 9)), 4 * 7 * 9 * 6),
    "conv1d": (lambda x: functional.conv1d(x[0], W[0]), 4 * 3 * 3 * 6 * 8),
    "einsum": (lambda x: functional.einsum("nhwc,nhvd->nwvcd", x, x), 5 * 5 * 6 * 6 * 4),
    "global_avg_pool": (functional.global_avg_pool, 4 * 5 * 6),
    "raw convolution": (lambda x: raw_conv(x, W), 4 * 5 * 9 * 6 * 8),
    "raw grouped": (lambda x: raw_conv(x, W[:, :, :3], feature_group_count=2), 4 * 5 * 9 * 3 * 8),
    "raw NCHW": (lambda x: nchw_conv(x, W), 4 * 5 * 9 * 6 * 8),
    "raw matmul": (lambda x: x @ SQUARE, ONE),
    "raw einsum": (lambda x: jnp.einsum("nhwc,nhvd->nwvcd", x, x), 5 * 5 * 6 * 6 * 4),
    "mapped": (jax.vmap(lambda x: functional.linear(x, SQUARE)), ONE),
}


@pytest.mark.parametrize("run, expected", MACS.values(), ids=MACS)
def test_macs_of_an_op(run, expected):
    assert total_macs(run) == expected


def test_selective_scan_counts_three_macs_per_state_and_none_for_fvcore():
    x, states = X[0], jnp.ones((4, 5, 7))
    (op,) = count(
        lambda x: ops.selective_scan(x, x, -jnp.ones((6, 7)), states, states, jnp.ones(6)), x
    )
    assert (op.macs_full, op.macs) == (3 * 4 * 5 * 6 * 7, 0)


@pytest.mark.parametrize("side, fvcore_macs", [(3, 27), (17, 4913), (101, 1030500)])
def test_einsum_is_rounded_to_four_digits_as_by_fvcore(side, fvcore_macs):
    x = jnp.ones((side, side))
    (op,) = count(lambda x: functional.einsum("ab,bc->ac", x, x), x)
    assert (op.macs_full, op.macs) == (side**3, fvcore_macs)


@pytest.mark.parametrize("conv", [functional.conv2d, nchw_conv], ids=["op", "raw"])
def test_only_convolutions_have_activations(conv):
    first, second = count(lambda x: conv(x @ SQUARE, W))
    assert (first.activations, first.convs) == (0, 0)
    assert (second.activations, second.convs) == (jax.eval_shape(conv, X, W).size, 1)


def test_ops_are_in_the_order_of_execution():
    op_costs = count(lambda x: functional.linear(functional.conv2d(x @ SQUARE, W), W[0, 0].T))
    assert [op.op for op in op_costs] == ["dot_general", "conv2d", "linear"]


# --- control flow and wrappers -----------------------------------------------------------------


def matmul_step(x, _=None):
    return x @ SQUARE, None


def test_scan_multiplies_macs():
    assert total_macs(lambda x: lax.scan(matmul_step, x, length=7)[0]) == 7 * ONE
    assert (
        total_macs(
            lambda x: lax.scan(lambda x, _: lax.scan(matmul_step, x, length=3), x, length=2)[0]
        )
        == 6 * ONE
    )


def test_scan_multiplies_convolutions():
    (op,) = count(lambda x: lax.scan(lambda x, _: (raw_conv(x, W[..., :6]), None), x, length=3)[0])
    assert (op.convs, op.activations) == (3, 3 * X.size)


def test_cond_counts_its_costliest_branch():
    branches = [lambda x: x, lambda x: x @ SQUARE @ SQUARE, lambda x: x @ SQUARE]
    assert total_macs(lambda x, i: lax.switch(i, branches, x), X, jnp.int32(0)) == 2 * ONE


def test_costliest_platform_branch_is_counted():
    def run(x):
        return lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: x @ SQUARE)

    assert total_macs(run) == ONE


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_ops_inside_wrappers_are_counted(wrap):
    assert total_macs(wrap(lambda x: x @ SQUARE)) == ONE


def with_custom_vjp():
    @jax.custom_vjp
    def square(x):
        return x @ SQUARE

    square.defvjp(lambda x: (square(x), None), lambda _, g: (g,))
    return square


def with_custom_jvp():
    square = jax.custom_jvp(lambda x: x @ SQUARE)
    square.defjvp(lambda primals, tangents: (square(*primals), tangents[0]))
    return square


@pytest.mark.parametrize("make", [with_custom_vjp, with_custom_jvp])
def test_forward_pass_of_custom_gradients_is_counted(make):
    assert total_macs(make()) == ONE


FREE = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "leaky relu": jax.nn.leaky_relu,
    "mean and variance": lambda x: x.mean() + x.var(),
    "shuffle": lambda x: functional.pixel_shuffle(x[..., :4], 2),
    "split": lambda x: jnp.split(x, 2, axis=-1),
    "stack": lambda x: jnp.stack([x, x]),
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 1)),
    "roll": lambda x: jnp.roll(x, 2, axis=1),
    "reflect": lambda x: jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect"),
    "top_k": lambda x: lax.top_k(x, 3),
    "argsort": lambda x: jnp.argsort(x, axis=-1),
    "gather": lambda x: jnp.take(x, jnp.array([0, 2]), axis=-1),
    "scatter": lambda x: x.at[:, 0].add(1),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "clip": lambda x: jnp.clip(x, 0, 1),
}


@pytest.mark.parametrize("run", FREE.values(), ids=FREE)
def test_elementwise_ops_and_data_movement_are_free(run):
    assert count(run) == ()


# --- unneeded ops, uncounted ops, module paths -------------------------------------------------


def test_unneeded_op_is_marked():
    dead = {
        "plain": lambda x: (x @ SQUARE, x)[1],
        "call": lambda x: (jax.jit(lambda x: (x, x @ SQUARE))(x))[0],
        "scan": lambda x: (lax.scan(matmul_step, x, length=3), x)[1],
        "cond": lambda x: (lax.cond(x[0, 0, 0, 0] > 0, matmul_step, lambda x: (x, None), x), x)[1],
    }
    for name, run in dead.items():
        op_costs = count(run)
        assert [op.is_needed for op in op_costs] == [False], name
        assert op_costs[0].macs_full > 0


def test_needed_inputs_are_reported():
    _, needed = count_ops(jax.make_jaxpr(lambda a, b, c: (a @ SQUARE + c, b)[0])(X, X, X).jaxpr)
    assert needed == [True, False, True]


def in_module(run, path="block_2.c1"):
    def inside(x):
        with (
            jax.named_scope(SCOPE_FORMAT.format("block_2")),
            jax.named_scope(SCOPE_FORMAT.format(path)),
        ):
            return run(x)

    return inside


IN_SCOPES = {
    "plain": matmul_step,
    "mapped": jax.vmap(matmul_step),
    "einsum": lambda x: jnp.einsum("nhwc,cd->nhwd", x, SQUARE),
    "call": jax.jit(lambda x: x @ SQUARE),
    "scan": lambda x: lax.scan(matmul_step, x, length=2),
    "own scope": jax.named_scope("attention")(lambda x: x @ SQUARE),
    "remat": jax.checkpoint(lambda x: x @ SQUARE),
}


@pytest.mark.parametrize("run", IN_SCOPES.values(), ids=IN_SCOPES)
def test_op_is_assigned_to_the_innermost_module(run):
    assert {op.path for op in count(in_module(run))} == {"block_2.c1"}


def sharded(x):
    mesh = jax.make_mesh((1,), ("x",))
    spec = jax.P()
    return jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=spec, out_specs=spec)(x)


UNKNOWN = {
    "fft": lambda x: jnp.fft.fft2(x, axes=(1, 2)).real,
    "while, whose number of iterations is unknown,": lambda x: lax.while_loop(
        lambda x: x[0, 0, 0, 0] < 5, lambda x: x @ SQUARE, x
    ),
    "cholesky": lambda x: lax.linalg.cholesky(x[0, :, :4, :4]),
    "shard_map": sharded,
    "pure_callback": lambda x: jax.pure_callback(np.sin, x, x),
}


@pytest.mark.parametrize("name, run", UNKNOWN.items(), ids=["fft", "while", *list(UNKNOWN)[2:]])
def test_uncounted_op_is_reported_with_its_module(name, run):
    with pytest.raises(UncountedOp) as caught:
        count(in_module(run))
    assert caught.value.problem.startswith(f"{name} is neither counted nor free")
    assert caught.value.location == "block_2.c1"
    assert "ZERO_COST" in caught.value.remedy


# --- The organisers' counts, to the last digit, under every implementation ---


REPORTED = {  # params, macs, activations, convs
    "span": (150_688, 9_833_807_872, 41_680_896, 22),
    "spanv2": (139_104, 9_107_931_136, 51_380_224, 22),
}


def figures(cost):
    return cost.params, cost.macs, cost.activations, cost.convs


def abstract_deployed(name):
    return nnx.eval_shape(lambda: deploy(registry.get_entry(name).build()))


@pytest.mark.parametrize("name", REPORTED)
def test_cost_equals_the_official_figures(name):
    network_cost = cost(abstract_deployed(name))
    assert figures(network_cost) == REPORTED[name]
    assert (network_cost.params_full, network_cost.macs_full) == (
        network_cost.params,
        network_cost.macs,
    )


@pytest.mark.parametrize("implementation", ["auto", "reference", "kernel"])
@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_implementation_does_not_change_a_count(monkeypatch, name, implementation):
    net = abstract_deployed(name)
    monkeypatch.setattr(
        ops, "find_kernel", lambda name: Kernel(call=lambda x, *_: x, platform="cpu")
    )
    with ops.implementation(implementation):
        network_cost = cost(net)
    assert figures(network_cost) == REPORTED[name]
    assert "block_2.c1" in {op.path for op in network_cost.ops}


def test_train_form_costs_more():
    train_cost = cost(nnx.eval_shape(registry.get_entry("span").build))
    assert train_cost.macs > REPORTED["span"][1] and train_cost.convs > REPORTED["span"][3]


class Net(nnx.Module):
    """A convolution, a matmul that is no counted op, statistics, and an unneeded convolution."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = Conv2d(3, 4, rngs=rngs)
        self.mix = Linear(4, 5, rngs=rngs)
        self.dead = Conv2d(3, 6, 1, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(5))
        self.raw = nnx.Param(jnp.ones((5, 2)))

    def __call__(self, x):
        self.dead(x)
        y = self.mix(self.conv(x)) - self.mean[...][None, None, None]
        return y @ self.raw[...]


CONV, MIX, RAW, DEAD = (64 * n for n in (9 * 3 * 4, 4 * 5, 5 * 2, 3 * 6))


@pytest.mark.parametrize("net", [Net(), nnx.eval_shape(Net)], ids=["built", "abstract"])
def test_unneeded_op_has_activations_but_no_macs(net):
    network_cost = cost(net, image_size=8)
    assert network_cost.macs == network_cost.macs_full == CONV + MIX + RAW
    assert (network_cost.convs, network_cost.activations) == (2, 64 * (4 + 6))
    assert network_cost.params == (9 * 3 + 1) * 4 + (4 + 1) * 5 + 5 * 2 + (3 + 1) * 6
    assert network_cost.params_full == network_cost.params - (3 + 1) * 6
    assert [(op.path, op.op, op.macs_full, op.is_needed) for op in network_cost.ops] == [
        ("dead", "conv2d", DEAD, False),
        ("conv", "conv2d", CONV, True),
        ("mix", "linear", MIX, True),
        ("", "dot_general", RAW, True),
    ]


def test_excluded_op_stays_in_macs_full():
    network_cost = cost(
        Net(), image_size=8, excluded={"mi?": "hand-written", "": "outside all modules"}
    )
    assert (network_cost.macs, network_cost.macs_full) == (CONV, CONV + MIX + RAW)


def test_included_unneeded_op_is_not_in_macs_full():
    network_cost = cost(Net(), image_size=8, included={"dea?": "returned with the image"})
    assert (network_cost.macs, network_cost.macs_full) == (
        CONV + MIX + RAW + DEAD,
        CONV + MIX + RAW,
    )


def test_unmatched_pattern_is_reported():
    with pytest.raises(PluginError) as caught:
        cost(Net(), image_size=8, excluded={"mix": "fine", "mixer.*": "misspelt"})
    assert "'mixer.*'" in caught.value.problem
    assert "conv, dead, mix" in caught.value.location


def test_macs_grow_with_the_area():
    small, large = cost(Net(), image_size=4), cost(Net(), image_size=8)
    assert (large.macs, large.activations) == (4 * small.macs, 4 * small.activations)


class Repeated(nnx.Module):
    """A submodule that a scan runs four times."""

    def __init__(self):
        self.conv = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return lax.scan(lambda x, _: (self.conv(x), None), x, length=4)[0]


class Remat(nnx.Module):
    """A submodule whose activations are recomputed in the backward pass."""

    def __init__(self):
        self.conv = Conv2d(3, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda conv, x: conv(x))(self.conv, x)


@pytest.mark.parametrize("build, repeats", [(Repeated, 4), (Remat, 1)])
def test_module_paths_are_known_inside_of_transformations(build, repeats):
    (op,) = cost(build(), image_size=8).ops
    assert (op.path, op.macs_full, op.convs) == ("conv", repeats * 64 * 81, repeats)


# --- memory ---

KIB_X = 64 * 64 * 4 // 1024  # of a float32 array of 64 x 64


def peak_kib(function, platform="cpu"):
    x = jax.ShapeDtypeStruct((64, 64), "float32")
    with single_platform(platform):
        return peak_bytes(jax.make_jaxpr(function)(x).jaxpr) / 1024


def chain(x, checkpoint=lambda f: f):
    """The gradient of three matmuls with an activation each, by their input."""
    layer = checkpoint(lambda x: jnp.tanh(jnp.exp(x @ x)))
    return jax.grad(lambda x: layer(layer(layer(x))).sum())(x)


def test_values_take_memory_until_their_last_use():
    assert peak_kib(lambda x: ((x @ x) @ x) @ x) == KIB_X
    assert peak_kib(lambda x: (x @ x, x @ x)) == 2 * KIB_X
    assert peak_kib(lambda x: (x @ x).reshape(-1).reshape(64, 64) @ x) == KIB_X  # views
    assert peak_kib(lambda x: (x @ x, x)[1]) == 0  # not needed


def test_loops_take_the_memory_of_one_iteration_and_of_their_outputs():
    def loop(x, length):
        return lax.scan(lambda c, _: ((c @ c) @ c, c), x, length=length)[1]

    assert peak_kib(lambda x: loop(x, 20)) - peak_kib(lambda x: loop(x, 10)) == 10 * KIB_X
    plain = peak_kib(lambda x: lax.scan(lambda c, _: ((c @ c) @ c, None), x, length=10)[0])
    assert plain <= 3 * KIB_X


def test_recomputed_activations_take_less_memory():
    assert peak_kib(lambda x: chain(x, jax.checkpoint)) < peak_kib(chain)


def test_gradients_save_what_one_platform_needs():
    def loss(x):
        heavy = lambda x: jnp.tanh(jnp.exp(jnp.sin(x))) @ x  # noqa: E731
        y = platform_dependent(x, cpu=lambda x: x @ x, default=heavy)
        return (y @ y).sum()

    assert peak_kib(jax.grad(loss), "cpu") < peak_kib(jax.grad(loss), "cuda")


def test_nothing_is_computed():
    huge = nnx.eval_shape(lambda: registry.get_entry("span").build(channels=4096))
    assert cost(huge, image_size=4096).params > 10**9
