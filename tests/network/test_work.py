"""All work in a trace is counted, declared free, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from esrjax.network import ops, resampling, words
from esrjax.network.taps import SCOPE
from esrjax.network.work import UncountedWork, work

X = jnp.ones((1, 4, 5, 6))
W = jnp.ones((3, 3, 6, 8))
SQUARE = jnp.ones((6, 6))
ONE = 1 * 4 * 5 * 6 * 6  # MACs of X @ SQUARE


def counted(run, *args):
    return work(jax.make_jaxpr(run)(*(args or (X,))).jaxpr)[0]


def macs(run, *args):
    return sum(piece.macs for piece in counted(run, *args) if piece.needed)


def raw_conv(x, w, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout, **options)


def nchw_conv(x, w):
    return lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"
    )


MACS = {
    "conv2d": (lambda x: words.conv2d(x, W, padding=(1, 1)), 4 * 5 * 9 * 6 * 8),
    "conv2d strided": (lambda x: words.conv2d(x, W, stride=2), 1 * 2 * 9 * 6 * 8),
    "conv2d depthwise": (lambda x: words.conv2d(x, W[:, :, :1, :6], groups=6), 2 * 3 * 9 * 6),
    "conv2d grouped": (lambda x: words.conv2d(x, W[:, :, :3], groups=2), 2 * 3 * 9 * 3 * 8),
    "linear": (lambda x: words.linear(x, W[0, 0]), 4 * 5 * 6 * 8),
    "matmul": (lambda x: words.matmul(x, x.mT), 4 * 5 * 5 * 6),
    "layer_norm": (lambda x: words.layer_norm(x, W[0, 0, :, 0], W[0, 0, :, 0]), 5 * 4 * 5 * 6),
    "group_norm": (lambda x: words.group_norm(x, W[0, 0, :, 0], W[0, 0, :, 0]), 5 * 4 * 5 * 6),
    "nearest": (lambda x: resampling.nearest(x, size=(7, 9)), 7 * 9 * 6),
    "bilinear": (lambda x: resampling.bilinear(x, size=(7, 9)), 4 * 7 * 9 * 6),
    "conv1d": (lambda x: words.conv1d(x[0], W[0]), 4 * 3 * 3 * 6 * 8),
    "einsum": (lambda x: words.einsum("nhwc,nhvd->nwvcd", x, x), 5 * 5 * 6 * 6 * 4),
    "average_pool": (resampling.average_pool, 4 * 5 * 6),
    "raw convolution": (lambda x: raw_conv(x, W), 4 * 5 * 9 * 6 * 8),
    "raw grouped": (lambda x: raw_conv(x, W[:, :, :3], feature_group_count=2), 4 * 5 * 9 * 3 * 8),
    "raw NCHW": (lambda x: nchw_conv(x, W), 4 * 5 * 9 * 6 * 8),
    "raw product": (lambda x: x @ SQUARE, ONE),
    "raw einsum": (lambda x: jnp.einsum("nhwc,nhvd->nwvcd", x, x), 5 * 5 * 6 * 6 * 4),
    "mapped": (jax.vmap(lambda x: words.linear(x, SQUARE)), ONE),
}


@pytest.mark.parametrize("run, wanted", MACS.values(), ids=MACS)
def test_macs(run, wanted):
    assert macs(run) == wanted


def test_a_selective_scan_counts_thrice_its_states_and_nothing_for_the_organisers():
    x, states = X[0], jnp.ones((4, 5, 7))
    (piece,) = counted(
        lambda x: ops.selective_scan(x, x, -jnp.ones((6, 7)), states, states, jnp.ones(6)), x
    )
    assert (piece.macs, piece.official) == (3 * 4 * 5 * 6 * 7, 0)


@pytest.mark.parametrize("side, official", [(3, 27), (17, 4913), (101, 1030500)])
def test_of_an_einsum_the_organisers_counter_knows_four_digits(side, official):
    x = jnp.ones((side, side))
    (piece,) = counted(lambda x: words.einsum("ab,bc->ac", x, x), x)
    assert (piece.macs, piece.official) == (side**3, official)


@pytest.mark.parametrize("conv", [words.conv2d, nchw_conv], ids=["word", "raw"])
def test_a_convolution_writes_activations_and_others_do_not(conv):
    first, second = counted(lambda x: conv(x @ SQUARE, W))
    assert (first.activations, first.convs) == (0, 0)
    assert (second.activations, second.convs) == (jax.eval_shape(conv, X, W).size, 1)


def test_pieces_come_in_the_order_of_the_network():
    pieces = counted(lambda x: words.linear(words.conv2d(x @ SQUARE, W), W[0, 0].T))
    assert [piece.word for piece in pieces] == ["dot_general", "conv2d", "linear"]


# --- control flow and wrappers -----------------------------------------------------------------


def step(x, _=None):
    return x @ SQUARE, None


def test_a_scan_multiplies():
    assert macs(lambda x: lax.scan(step, x, length=7)[0]) == 7 * ONE
    assert (
        macs(lambda x: lax.scan(lambda x, _: lax.scan(step, x, length=3), x, length=2)[0])
        == 6 * ONE
    )


def test_a_scan_multiplies_convolutions_too():
    (piece,) = counted(
        lambda x: lax.scan(lambda x, _: (raw_conv(x, W[..., :6]), None), x, length=3)[0]
    )
    assert (piece.convs, piece.activations) == (3, 3 * X.size)


def test_a_cond_takes_its_costliest_branch():
    branches = [lambda x: x, lambda x: x @ SQUARE @ SQUARE, lambda x: x @ SQUARE]
    assert macs(lambda x, i: lax.switch(i, branches, x), X, jnp.int32(0)) == 2 * ONE


def test_one_platform_counts_among_several():
    def run(x):
        return lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: x @ SQUARE)

    assert macs(run) == ONE


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_wrappers_hide_nothing(wrap):
    assert macs(wrap(lambda x: x @ SQUARE)) == ONE


def with_own_gradient():
    @jax.custom_vjp
    def square(x):
        return x @ SQUARE

    square.defvjp(lambda x: (square(x), None), lambda _, g: (g,))
    return square


def with_own_tangent():
    square = jax.custom_jvp(lambda x: x @ SQUARE)
    square.defjvp(lambda primals, tangents: (square(*primals), tangents[0]))
    return square


@pytest.mark.parametrize("make", [with_own_gradient, with_own_tangent])
def test_of_functions_with_their_own_gradient_the_value_counts(make):
    assert macs(make()) == ONE


FREE = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "leaky relu": jax.nn.leaky_relu,
    "mean and variance": lambda x: x.mean() + x.var(),
    "shuffle": lambda x: words.pixel_shuffle(x[..., :4], 2),
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
def test_element_wise_work_and_moved_data_are_free(run):
    assert counted(run) == ()


# --- what nobody needs, what nobody counts, and where ------------------------------------------


def test_work_nobody_needs_is_known_as_such():
    dead = {
        "plain": lambda x: (x @ SQUARE, x)[1],
        "call": lambda x: (jax.jit(lambda x: (x, x @ SQUARE))(x))[0],
        "scan": lambda x: (lax.scan(step, x, length=3), x)[1],
        "cond": lambda x: (lax.cond(x[0, 0, 0, 0] > 0, step, lambda x: (x, None), x), x)[1],
    }
    for name, run in dead.items():
        pieces = counted(run)
        assert [piece.needed for piece in pieces] == [False], name
        assert pieces[0].macs > 0


def test_inputs_that_the_output_depends_on_are_known():
    _, needed = work(jax.make_jaxpr(lambda a, b, c: (a @ SQUARE + c, b)[0])(X, X, X).jaxpr)
    assert needed == [True, False, True]


def in_part(run, path="block_2.c1"):
    def inside(x):
        with jax.named_scope(SCOPE.format("block_2")), jax.named_scope(SCOPE.format(path)):
            return run(x)

    return inside


PLACED = {
    "plain": step,
    "mapped": jax.vmap(step),
    "einsum": lambda x: jnp.einsum("nhwc,cd->nhwd", x, SQUARE),
    "call": jax.jit(lambda x: x @ SQUARE),
    "scan": lambda x: lax.scan(step, x, length=2),
    "own scope": jax.named_scope("attention")(lambda x: x @ SQUARE),
    "remat": jax.checkpoint(lambda x: x @ SQUARE),
}


@pytest.mark.parametrize("run", PLACED.values(), ids=PLACED)
def test_work_is_laid_at_the_innermost_part(run):
    assert {piece.path for piece in counted(in_part(run))} == {"block_2.c1"}


def sharded(x):
    mesh = jax.make_mesh((1,), ("x",))
    spec = jax.P()
    return jax.shard_map(lambda x: x @ SQUARE, mesh=mesh, in_specs=spec, out_specs=spec)(x)


UNCOUNTED = {
    "fft": lambda x: jnp.fft.fft2(x, axes=(1, 2)).real,
    "while, whose number of turns is unknown,": lambda x: lax.while_loop(
        lambda x: x[0, 0, 0, 0] < 5, lambda x: x @ SQUARE, x
    ),
    "cholesky": lambda x: lax.linalg.cholesky(x[0, :, :4, :4]),
    "shard_map": sharded,
    "pure_callback": lambda x: jax.pure_callback(np.sin, x, x),
}


@pytest.mark.parametrize("what, run", UNCOUNTED.items(), ids=["fft", "while", *list(UNCOUNTED)[2:]])
def test_uncounted_work_is_an_error_that_names_its_place(what, run):
    with pytest.raises(UncountedWork) as caught:
        counted(in_part(run))
    assert str(caught.value) == (
        f"{what} is neither counted nor declared free\n"
        "  place:  block_2.c1\n"
        "  rule:   work is counted by word (esrjax.network.words, esrjax.network.ops), or is "
        "element-wise, or moves data\n"
        "  remedy: write it in those words, or file the primitive under COUNTED or FREE in "
        "esrjax/network/work.py"
    )
