"""What every method must satisfy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.network import canvas, words
from esrjax.network.compilation import QUICK
from esrjax.network.cost import cost_of, departures
from esrjax.network.naming import Naming
from esrjax.network.reparam import Reparam, deploy
from esrjax.network.taps import heads, taps
from esrjax.network.weights import cast, leaves, load, scattered, tensors
from esrjax.testing.verdict import Verdict, judged, require

Sizes = Mapping[str, Any]
EXACT = 1e-9  # of white: what double precision must agree to
CLOSE = 1e-5  # of white: what float32 must agree to


class MissingChex(UserError):
    """The laws are asserted with chex, which is not installed."""


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What every law works on: the networks in both forms, freshly initialised."""

    method: Method
    sizes: Sizes
    train: nnx.Module
    thin: nnx.Module
    side: int

    def picture(self, batch: int = 1, dtype: Any = jnp.float32, h: int = 0, w: int = 0) -> Any:
        """A random LR picture, by default a little wider than high."""
        shape = (batch, h or self.side, w or self.side + 3, 3)
        noise = np.random.default_rng(0).random(shape) * self.method.data_range
        return jnp.asarray(noise, dtype)

    def call(self, net: nnx.Module, lr: Any) -> Any:
        """What `net` makes of `lr`; compiled once for networks of the same parts."""
        return self._forward(*nnx.split(net), lr)

    @functools.cached_property
    def _forward(self) -> Callable[[Any, Any, Any], Any]:
        def forward(graph: Any, state: Any, lr: Any) -> Any:
            return nnx.merge(graph, state)(lr)

        return jax.jit(forward, static_argnums=0, compiler_options=QUICK)


def check_method(method: Method, **sizes: Any) -> None:
    """Raise AssertionError, naming every broken law, unless `method` keeps them all.

    `sizes` are the network's own, by default `method.tiny()`: small ones make the check fast. Only
    the reported figures are always those of the default sizes.
    """
    require("the method", verdicts(method, **sizes))


def verdicts(method: Method, **sizes: Any) -> tuple[Verdict, ...]:
    """Every law with its outcome; sizes as in `check_method`."""
    _require_chex()
    sizes = sizes or dict(method.tiny())
    train = method.build(**sizes)
    train.eval()
    bench = _Bench(
        method=method,
        sizes=sizes,
        train=train,
        thin=deploy(train),
        side=max(12, method.min_side),
    )
    return tuple(judged(law, bench) for law in LAWS)


# --- the laws ----------------------------------------------------------------------------------


def _gives_larger_pictures(bench: _Bench) -> None:
    """SR is `scale` times LR, float32, finite, in both forms."""
    import chex

    lr = bench.picture(batch=2)
    n, h, w, _ = lr.shape
    for net in (bench.train, bench.thin):
        sr = bench.call(net, lr)
        chex.assert_shape(sr, (n, bench.method.scale * h, bench.method.scale * w, 3))
        chex.assert_type(sr, jnp.float32)
        chex.assert_tree_all_finite(sr)


def _keeps_pictures_apart(bench: _Bench) -> None:
    """A picture's result does not depend on the others of its batch."""
    lr = bench.picture(batch=2)
    other = lr.at[0].set(lr[0, ::-1] / 2)
    _assert_close(bench, bench.call(bench.thin, other)[1:], bench.call(bench.thin, lr)[1:], CLOSE)


def _deploys_exactly(bench: _Bench) -> None:
    """The deploy form equals the train form in double precision, borders included."""
    with jax.enable_x64(True):
        train = scattered(cast(bench.train, jnp.float64))
        before = tensors(train, Naming({}))
        thin = deploy(train)
        assert not any(isinstance(part, Reparam) for _, part in nnx.iter_modules(thin))
        _assert_same(tensors(deploy(thin), Naming({})), tensors(thin, Naming({})))
        _assert_same(tensors(train, Naming({})), before)
        if not any(isinstance(part, Reparam) for _, part in nnx.iter_modules(train)):
            return  # nothing to fuse: both forms are one
        lr = bench.picture(dtype=jnp.float64)
        reference = train(lr)  # pyright: ignore[reportCallIssue] # networks are callable
        spread = float(jnp.ptp(reference)) / bench.method.data_range
        _assert_close(bench, thin(lr), reference, EXACT * max(1.0, spread))  # pyright: ignore[reportCallIssue]


def _crosses_to_torch_and_back(bench: _Bench) -> None:
    """Weights under PyTorch's names come back bit for bit, in both forms."""
    naming = Naming(bench.method.torch_names)
    for net in (bench.train, bench.thin):
        paths = [path for path, _ in leaves(net)]
        keys = [naming.to_torch(path) for path in paths]
        assert len(set(keys)) == len(keys), "two weights share one torch key"
        assert [naming.to_flax(key) for key in keys] == paths, "torch_names is not reversible"
        back = load(net, tensors(net, naming), naming)
        _assert_same(tensors(back, Naming({})), tensors(net, Naming({})))


def _traces_once(bench: _Bench) -> None:
    """A second picture of the same size does not trace again."""
    import chex

    graph, state = nnx.split(bench.thin)

    def forward(state: Any, lr: Any) -> Any:
        return nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable

    chex.clear_trace_counter()  # chex knows functions by an address that may have been another's
    once = jax.jit(chex.assert_max_traces(forward, n=1))
    for lr in (bench.picture(), bench.picture() / 2):
        jax.eval_shape(once, state, lr)


def _has_gradients(bench: _Bench) -> None:
    """Every trainable parameter has a finite gradient that is not zero everywhere."""
    import chex

    graph, _, rest = nnx.split(bench.train, nnx.Param, ...)
    lr = bench.picture()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def slopes(params: Any) -> Any:
        def loss(params: Any) -> Any:
            sr, parts = taps(nnx.merge(graph, params, rest), lr)
            pictures = (sr, *heads(parts).values())
            return sum((jnp.sum(jnp.sin(y)) for y in pictures), jnp.zeros((), sr.dtype))

        return jax.grad(loss)(params)

    with words.plain(True):  # the smallest program: that lowerings agree is a law of the words
        draws = [
            slopes(nnx.state(scattered(bench.train, seed=seed), nnx.Param)) for seed in (1, 2, 3)
        ]
    chex.assert_tree_all_finite(draws)
    still = set.intersection(*map(_silent, draws))  # a ReLU may be silent for one draw
    assert not still, f"no gradient reaches {', '.join(sorted(still)[:5])}"


def _silent(gradients: Any) -> set[str]:
    flat = nnx.to_flat_state(gradients)
    return {".".join(map(str, path)) for path, leaf in flat if not np.any(np.asarray(leaf[...]))}


def _fits_any_canvas(bench: _Bench) -> None:
    """On a larger masked canvas a picture's result is the same (unless it is whole_picture)."""
    if bench.method.whole_picture:
        return
    lr = bench.picture()
    h, w = lr.shape[1:3]
    room = [(0, 0), (0, 7), (0, 5), (0, 0)]
    mask = jnp.pad(jnp.ones((h, w)), room[1:3])
    with canvas.picture(mask):
        large = bench.thin(jnp.pad(lr, room))  # pyright: ignore[reportCallIssue] # networks are callable
    scale = bench.method.scale
    _assert_close(bench, large[:, : scale * h, : scale * w], bench.call(bench.thin, lr), CLOSE)


def _costs_what_is_reported(bench: _Bench) -> None:
    """Parameters, MACs, activations and convolutions are those that were reported."""
    method = bench.method
    full = nnx.eval_shape(lambda: deploy(method.build())) if bench.sizes else bench.thin
    counted = cost_of(method, full)
    wrong = departures(counted, bench.method.reported)
    assert not wrong, "; ".join(wrong)


LAWS = (
    _gives_larger_pictures,
    _keeps_pictures_apart,
    _deploys_exactly,
    _crosses_to_torch_and_back,
    _traces_once,
    _has_gradients,
    _fits_any_canvas,
    _costs_what_is_reported,
)


# --- what they are made of ---------------------------------------------------------------------


def _assert_close(bench: _Bench, ours: Any, theirs: Any, tolerance: float) -> None:
    import chex

    chex.assert_trees_all_close(ours, theirs, rtol=0, atol=tolerance * bench.method.data_range)


def _assert_same(ours: Any, theirs: Any) -> None:
    import chex

    chex.assert_trees_all_equal(ours, theirs)


def _require_chex() -> None:
    try:
        import chex  # noqa: F401 # pyright: ignore[reportUnusedImport] # only whether it is there
    except ImportError as error:
        raise MissingChex(
            "checking a method needs chex",
            rule="the laws are asserted with chex, an optional dependency",
            remedy='pip install "esrjax[dev]"',
        ) from error
