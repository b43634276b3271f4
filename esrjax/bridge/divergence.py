"""The first place where two networks part, in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from esrjax.bridge.trace import NETWORK, Gap, Step

FLOAT32 = 1e-6  # of the spread: what a constant in float32 leaves behind


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """Where PyTorch's network and ours are first apart.

    kind: "part", where a part is given the same and gives something else; "code", where what lies
    between parts does. part: PyTorch's path of the part that shows it, `ours` ours; in its
    `call`-th run, `end`: in what it is given or in what it gives. after: the last part before it
    that agrees. inside: the part in whose `forward` it lies. unseen: parts that ran in between and
    that only PyTorch has, with their classes.
    """

    kind: Literal["part", "code"]
    part: str
    ours: str
    type: str
    call: int
    end: Literal["in", "out"]
    after: str | None
    inside: str
    unseen: tuple[str, ...]
    gap: Gap

    @property
    def place(self) -> str:
        """Where it is, in one line."""
        if self.kind == "part":
            aka = f", ours {self.ours}" if self.ours != self.part else ""
            run = f", run {self.call}" if self.call > 1 else ""
            return f"in {_named(self.part)} ({self.type}{aka}){run}"
        before = f"the end of {_named(self.part)}" if self.end == "out" else self.part
        between = f"after {self.after}, before {before}" if self.after else f"before {before}"
        unseen = f"; only PyTorch has {', '.join(self.unseen)} there" if self.unseen else ""
        return f"in the forward of {_named(self.inside)}, {between}{unseen}"

    @property
    def reason(self) -> str:
        """What was seen there, in one line."""
        gap, where = self.gap, ", ".join(map(str, self.gap.index))
        share = gap.max_abs / gap.spread if gap.spread else float("inf")
        hint = "; so little is often a constant in float32" if share < FLOAT32 else ""
        what = "what it is given" if self.end == "in" else "what it gives"
        return (
            f"{what} is {gap.ours:.9g} here and {gap.theirs:.9g} in PyTorch at [{where}]: "
            f"{gap.max_abs:.2e} apart, {share:.1e} of the spread{hint}"
        )

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {**asdict(self), "place": self.place, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What was seen of the parts of both networks.

    compared: moments. first: None where the networks agree. apart: parts that differ although what
    surrounds them does not: the two sides cut the network differently there. only_theirs,
    only_ours: parts that ran on one side alone. unfit: parts whose arrays have no common layout.
    """

    compared: int
    first: Divergence | None
    apart: tuple[str, ...]
    only_theirs: tuple[str, ...]
    only_ours: tuple[str, ...]
    unfit: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {**vars(self), "first": self.first.as_dict() if self.first else None}


def survey(steps: Sequence[Step], ours: Sequence[str]) -> Layers:
    """What the steps of a trace say. ours: paths of the parts of ours that ran."""
    met = {step.ours for step in steps}
    return Layers(
        compared=sum(step.gap is not None for step in steps),
        first=_first(steps),
        apart=_paths(
            step for place, step in enumerate(steps) if step.differs and not _persists(place, steps)
        ),
        only_theirs=_paths(step for step in steps if step.ours is None),
        only_ours=tuple(sorted({path for path in ours if path not in met})),
        unfit=_paths(step for step in steps if step.ours is not None and step.gap is None),
    )


def _first(steps: Sequence[Step]) -> Divergence | None:
    for place, step in enumerate(steps):
        if step.differs and _persists(place, steps):
            return _described(step, steps[:place])
    return None


def _persists(place: int, steps: Sequence[Step]) -> bool:
    """Whether the difference stays: what it reaches, and all that surrounds it, is apart too."""
    step, later = steps[place], steps[place + 1 :]
    ends = [each for each in later if each.moment.end == "out"]
    around = (next(each for each in ends if each.moment.path == path) for path in step.within)
    return not any(each.agrees for each in (*around, *_reached(step, later)))


def _reached(step: Step, later: Sequence[Step]) -> list[Step]:
    """Of a part's beginning, its end; of its end, the parts that are given the very same tensor."""
    moment = step.moment
    if moment.end == "in":
        return [each for each in later if each.moment.path == moment.path][:1]
    given = (each for each in later if each.moment.end == "in")
    return [each for each in given if set(each.moment.tensors) & set(moment.tensors)]


def _described(step: Step, before: Sequence[Step]) -> Divergence:
    last = max((i for i, s in enumerate(before) if s.agrees), default=None)
    known = None if last is None else before[last]
    between = before if last is None else before[last + 1 :]
    moment = step.moment
    itself = (
        known is not None
        and moment.end == "out"
        and (known.moment.path, known.moment.end) == (moment.path, "in")
    )
    unseen = {s.moment.path: s.moment.kind for s in between if s.ours is None}
    assert step.gap is not None and step.ours is not None
    return Divergence(
        kind="part" if itself else "code",
        part=moment.path,
        ours=step.ours,
        type=moment.kind,
        call=moment.call,
        end=moment.end,
        after=known.moment.path if known is not None and known.moment.end == "out" else None,
        inside=_common(_open(known), (*step.within, moment.path)[: _depth(step)]),
        unseen=tuple(f"{path} ({kind})" for path, kind in unseen.items()),
        gap=step.gap,
    )


def _depth(step: Step) -> int:
    """How many parts are running just before it: one that ends still is."""
    return len(step.within) + (step.moment.end == "out")


def _open(step: Step | None) -> tuple[str, ...]:
    """The parts that are running just after it."""
    if step is None:
        return ()
    return (*step.within, step.moment.path) if step.moment.end == "in" else step.within


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """The innermost part that both run in."""
    shared = NETWORK
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared = a
    return shared


def _named(path: str) -> str:
    return path or "the network"


def _paths(steps: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{step.moment.path} ({step.moment.kind})" for step in steps))
