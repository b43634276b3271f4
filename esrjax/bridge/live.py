"""Is our network a user's own PyTorch network? Both run, side by side, on the same pictures."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from esrjax.bridge import pytorch, slopes, trace
from esrjax.bridge.case import EXACT, TOLERANCE, Array, Body, Case, changed
from esrjax.bridge.divergence import Layers, survey
from esrjax.bridge.layouts import channels_first
from esrjax.bridge.peer import Peer, PeerMismatch
from esrjax.bridge.quality import Quality, quality
from esrjax.bridge.rule import Rule
from esrjax.method import Form, Method
from esrjax.network import ops
from esrjax.network.compilation import jit
from esrjax.network.naming import Naming
from esrjax.network.weights import cast, tensors
from esrjax.pictures.sets import Pair

SIDE = 16  # of the drawn pictures, LR pixels, at least
ROUNDING = 10  # times PyTorch's own distance from double precision, allowed in float32
INPUTS = ("picture", "noise")


@dataclass(frozen=True, kw_only=True)
class Live:
    """All that was compared. notes: what a reader should know of how it was done."""

    method: str
    form: Form
    cases: tuple[Case, ...]
    layers: Layers
    data: Quality | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> dict[str, bool]:
        """Every question that was asked, and whether the two sides agree."""
        asked = {f"{case.case}, {case.precision}": case.passed for case in self.cases}
        asked["layers"] = self.layers.first is None
        return asked if self.data is None else {**asked, "data": self.data.passed}

    @property
    def passed(self) -> bool:
        """They agree in everything."""
        return all(self.verdicts.values())

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {
            "method": self.method,
            "form": self.form,
            "passed": self.passed,
            "cases": [case.as_dict() for case in self.cases],
            "layers": self.layers.as_dict(),
            "data": self.data and self.data.as_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """Two networks that hold the same weights: ours, and PyTorch's."""

    name: str
    method: Method
    net: nnx.Module
    form: Form
    peer: Peer

    @property
    def naming(self) -> Naming:
        """Of PyTorch's parts and ours."""
        return Naming(self.method.torch_names)


def live(
    match: Match,
    x: Array,
    rules: Sequence[Rule] = (),
    pairs: Sequence[Pair] = (),
    body: Body = "auto",
) -> Live:
    """Compare both networks on `x (2, h, w, 3)`, float32, and on the pairs of a set.

    Structure is judged in double precision: outputs, every part, gradients, and the steps of
    every rule. Use is judged in single precision, with operations run by `body`.
    """
    outputs, layers, theirs = structure(match, x)
    learning, notes = _learning(match, x, theirs, rules)
    forward = _compiled(match.net, body)
    used = _use(match, forward, x, theirs)
    return Live(
        method=match.name,
        form=match.form,
        cases=(*outputs, *used, *learning),
        layers=layers,
        data=_seen(match, forward, pairs) if pairs else None,
        notes=(*sorted(match.peer.notes), *notes),
    )


def inputs(method: Method, seed: int) -> Array:
    """A drawn picture and white noise, 8 bits each: `(2, h, w, 3)`, white at `data_range`."""
    side = max(SIDE, method.min_side)
    height, width = side + 5, side + 13  # unlike each other and most numbers of channels
    draw = np.random.RandomState(seed)  # numpy promises this stream for ever, and of no other
    rows, columns = np.mgrid[:height, :width][..., None]
    waves = sum(
        np.sin(down * rows + right * columns + draw.uniform(0, 2 * np.pi, 3))
        for down, right in draw.uniform(-0.6, 0.6, (6, 2))
    )
    edge = rows + 2 * columns > height + width / 2
    picture = np.rint(255 * np.clip(0.5 + waves / 12 + 0.2 * edge, 0, 1))
    noise = draw.randint(0, 256, picture.shape)
    return np.stack([picture, noise]).astype(np.float32) / np.float32(255 / method.data_range)


# --- structure ---------------------------------------------------------------------------------


def structure(match: Match, x: Array) -> tuple[list[Case], Layers, Array]:
    """The outputs and all parts, in double precision; and PyTorch's output `(N, 3, H, W)`."""
    moments = pytorch.moments(match.peer, x.astype(np.float64))
    with _double():
        calls = trace.calls(cast(match.net, np.float64), x.astype(np.float64))
    (theirs, *_), (ours, *_) = moments[-1].arrays, calls[trace.NETWORK, "out"][0]
    ours = _same_shape(match, channels_first(ours), theirs)
    cases = [
        _case(case, mine, other, EXACT * trace.spread(other), precision="float64")
        for case, mine, other in zip(INPUTS, ours, theirs, strict=True)
    ]
    steps = trace.follow(moments, calls, match.naming)
    return cases, survey(steps, [path for path, _ in calls]), theirs


def _learning(
    match: Match, x: Array, output: Array, rules: Sequence[Rule]
) -> tuple[list[Case], list[str]]:
    """The gradients and the steps of every rule; and what only our gradient reaches."""
    x, naming = x.astype(np.float64), match.naming
    target = np.random.RandomState(1).random_sample(output.shape) * match.method.data_range
    theirs = pytorch.gradients(match.peer, x, target)
    with _double():
        net = cast(match.net, np.float64)
        ours = slopes.gradients(net, naming, x, target)
        cases = slopes.compared(ours, theirs)
        for rule in rules:
            cases += slopes.steps(tensors(net, naming), theirs[1], rule)
    alone = slopes.trained(match.net, naming) - set(theirs[1])
    still = sorted(key for key in alone if ours[1][key].any())
    some = ", ".join(still[:3]) + f" and {len(still) - 3} more" * (len(still) > 3)
    return cases, [f"no gradient of PyTorch's reaches {some}: not compared"] if still else []


@contextlib.contextmanager
def _double() -> Generator[None]:
    """Double precision is possible, and no kernel is in the way."""
    with jax.enable_x64(True), ops.body("reference"):
        yield


# --- use ---------------------------------------------------------------------------------------


def _use(match: Match, forward: Callable[[Any], Any], x: Array, exact: Array) -> list[Case]:
    """The outputs, no farther apart than rounding takes PyTorch itself."""
    white = match.method.data_range
    sides = channels_first(np.asarray(forward(x))), pytorch.output(match.peer, x)
    cases: list[Case] = []
    for case, mine, other, truth in zip(INPUTS, *sides, exact, strict=True):
        own = ROUNDING * float(np.abs(other - truth).max())
        allowed = max(TOLERANCE * max(white, trace.spread(other)), own)
        cases.append(_case(case, mine, other, allowed, changed=changed(mine, other, white)))
    return cases


def _seen(match: Match, forward: Callable[[Any], Any], pairs: Sequence[Pair]) -> Quality:
    def theirs(x: Any) -> Any:
        return np.moveaxis(pytorch.output(match.peer, x), 1, -1)

    return quality(forward, theirs, match.method.data_range, pairs)


def _compiled(net: nnx.Module, body: Body) -> Callable[[Any], Any]:
    """`(n, h, w, 3) -> (n, s·h, s·w, 3)`."""
    graph, state = nnx.split(net)
    run = jit(lambda state, x: nnx.merge(graph, state)(x))  # pyright: ignore[reportCallIssue] # networks are callable

    def forward(x: Any) -> Any:
        with ops.body(body), jax.default_matmul_precision("highest"):
            return run(state, x)

    return forward


def _case(name: str, ours: Array, theirs: Array, allowed: float, **more: Any) -> Case:
    with np.errstate(invalid="ignore"):  # of two infinities
        apart = float(np.abs(ours.astype(np.float64) - theirs).max())
    return replace(Case(case=name, shape=theirs.shape, max_abs=apart, allowed=allowed), **more)


def _same_shape(match: Match, ours: Array, theirs: Array) -> Array:
    if ours.shape == theirs.shape:
        return ours
    raise PeerMismatch(
        f"{match.peer.source.name} gives {theirs.shape} for what {match.name} gives {ours.shape}",
        rule=f"both make pictures {match.method.scale} times larger, (N, 3, h, w)",
        place=str(match.peer.source.file),
        remedy="check what it is built with (--torch-args), and its scale",
    )
