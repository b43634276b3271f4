"""Where two networks part: what their parts are given and give, compared as it happens."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from esrjax.bridge.case import EXACT, Array
from esrjax.bridge.layouts import layouts
from esrjax.network.compilation import QUICK
from esrjax.network.naming import Naming
from esrjax.network.taps import watched

End = Literal["in", "out"]
Key = tuple[str, End]  # a part of ours, and whether it is what it is given or what it gives
Calls = Mapping[Key, Sequence[tuple[Array, ...]]]  # one for every time that the part runs

NETWORK = ""  # the path of the whole


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """A part of the PyTorch network begins (`in`) or has ended (`out`) its `call`-th run.

    kind: its class. arrays: what it is given, or gives. tensors: what tells these from each other,
    one for each; a tensor that one part gives and another is given has the same in both.
    """

    path: str
    kind: str
    end: End
    call: int
    arrays: tuple[Array, ...]
    tensors: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest difference of two arrays, at `index` in PyTorch's layout.

    spread: of PyTorch's array: peak to peak, or its largest value where it is constant.
    """

    index: tuple[int, ...]
    ours: float
    theirs: float
    max_abs: float
    spread: float

    @property
    def differs(self) -> bool:
        """More than double precision explains; NaN does."""
        return not self.max_abs <= EXACT * self.spread


@dataclass(frozen=True, kw_only=True)
class Step:
    """A moment that both sides have, or not. gap: None where nothing could be compared."""

    moment: Moment
    ours: str | None  # our path
    gap: Gap | None
    within: tuple[str, ...]  # the parts that are running, outermost first

    @property
    def differs(self) -> bool:
        """Whether the two sides are apart here."""
        return self.gap is not None and self.gap.differs

    @property
    def agrees(self) -> bool:
        """Whether they could be compared, and are not."""
        return self.gap is not None and not self.gap.differs


def calls(net: nnx.Module, x: Array) -> Calls:
    """What every part of `net` is given and gives when it runs on `x (N, h, w, 3)`."""
    graph, state = nnx.split(net)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(state: Any, x: Any) -> Any:
        seen: dict[Key, list[Any]] = defaultdict(list)
        net = watched(
            nnx.merge(graph, state),
            lambda path, output: seen[path, "out"].append(_arrays(output)),
            lambda path, inputs: seen[path, "in"].append(_arrays(inputs)),
        )
        seen[NETWORK, "in"].append((x,))
        seen[NETWORK, "out"].append((net(x),))
        return dict(seen)

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, run(state, x))


def follow(moments: Iterable[Moment], ours: Calls, naming: Naming) -> list[Step]:
    """Every moment of PyTorch's beside ours, in PyTorch's order."""
    steps: list[Step] = []
    running: list[str] = []
    for moment in moments:
        if moment.end == "out":
            running.pop()
        path = naming.to_flax(moment.path) if moment.path else NETWORK
        runs = ours.get((path, moment.end), ())
        found = runs[moment.call - 1] if moment.call <= len(runs) else None
        steps.append(
            Step(
                moment=moment,
                ours=None if found is None else path,
                gap=None if found is None else _widest(found, moment.arrays),
                within=tuple(running),
            )
        )
        if moment.end == "in":
            running.append(moment.path)
    return steps


def _arrays(values: Any) -> tuple[Any, ...]:
    """The images and tokens among what a part of ours was given, or gave."""
    values = values if isinstance(values, tuple | list) else (values,)
    return tuple(
        value
        for value in values
        if isinstance(value, jax.Array)
        and value.ndim
        and jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
    )


def _widest(ours: Sequence[Array], theirs: Sequence[Array]) -> Gap | None:
    """Of the arrays in the same place that can be compared, the pair farthest apart."""
    gaps = [gap(*pair) for pair in zip(ours, theirs, strict=False)]
    return max((g for g in gaps if g is not None), key=_share, default=None)


def _share(gap: Gap) -> float:
    share = gap.max_abs / gap.spread if gap.spread else float(gap.max_abs > 0)
    return np.inf if np.isnan(share) else share


def gap(ours: Array, theirs: Array) -> Gap | None:
    """How far apart they are in the layout in which they are closest; None where none fits."""
    if ours.size != theirs.size:
        return None
    gaps = [_gap(layout, theirs) for layout in layouts(ours, theirs.shape)]
    return min(gaps, key=_share, default=None)


def _gap(ours: Array, theirs: Array) -> Gap:
    with np.errstate(invalid="ignore"):  # of two infinities
        apart = np.abs(ours.astype(np.float64) - theirs)
    index = np.unravel_index(np.argmax(apart), apart.shape)  # the first NaN, where there is one
    return Gap(
        index=tuple(map(int, index)),
        ours=float(ours[index]),
        theirs=float(theirs[index]),
        max_abs=float(apart[index]),
        spread=spread(theirs),
    )


def spread(array: Array) -> float:
    """Peak to peak, or the largest value where it is constant."""
    return float(np.ptp(array)) or float(np.max(np.abs(array)))
