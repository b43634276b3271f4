"""What an official ensemble once made, branch by branch, compared with ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from esrjax.bridge.case import TOLERANCE, Array, Body, Case, changed
from esrjax.bridge.golden import BadGolden, Parity, read
from esrjax.bridge.layouts import channels_first
from esrjax.method import Member
from esrjax.model import Fusion, Model
from esrjax.network import ops
from esrjax.pictures import upscale
from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import quantise
from esrjax.pictures.upscale import Floats, Upscaler

LEVEL = 1 / 255
SHARE = 1e-3  # of the 8-bit values of a picture that may differ, by one level
MOVES = 8  # of LR by one rounding, before a case that fails has failed

_BRANCH = re.compile(r"act_(?P<floats>\w+)_tta(?P<of_floats>\d+)|(?P<bytes>\w+)_u8_(?P<number>\d+)")


@dataclass(frozen=True)
class Stored:
    """What a golden file has of one input. branches: key -> the member it is about."""

    lr: Pixels
    fused: str
    branches: Mapping[str, str]


def parity(fusion: Fusion, golden: str | Path, body: Body = "auto") -> Parity:
    """Compare the ensemble's pictures, and those of its members, with the arrays of `golden`.

    `xK` is LR, white at 1, `yK` the fused bytes; `NAME_u8_K` a member's bytes, `act_NAME_ttaK` its
    floats before, with NAME the beginning of the member's name. All are NCHW in float32. Bytes may
    differ by one level, in a thousandth of all values. Networks that sort what they see may find
    two things as good as equal: a case that fails may pass where LR is moved by one rounding.
    """
    arrays = read(golden)
    stored = _stored(arrays, fusion, str(golden))
    cases: list[Case] = []
    with ops.body(body), jax.default_matmul_precision("highest"):
        for each in stored:
            cases += _settled(fusion, each, arrays, str(golden))
    known = {case.case for case in cases} | {f"x{each.fused[1:]}" for each in stored}
    unchecked = tuple(sorted(set(arrays) - known))
    return Parity(method=fusion.name, cases=tuple(cases), unchecked=unchecked)


def _stored(arrays: Mapping[str, Array], fusion: Fusion, place: str) -> list[Stored]:
    """Of every input, by number."""
    branches: dict[str, dict[str, str]] = {}
    for key in sorted(arrays):
        if found := _BRANCH.fullmatch(key):
            number = found["of_floats"] or found["number"]
            member = _member(found["floats"] or found["bytes"], fusion, key, place)
            branches.setdefault(number, {})[key] = member
    numbers = sorted(key[1:] for key in arrays if re.fullmatch(r"x\d+", key))
    return [
        Stored(_levels(arrays[f"x{number}"], place), f"y{number}", branches.get(number, {}))
        for number in numbers
    ]


def _member(said: str, fusion: Fusion, key: str, place: str) -> str:
    members = [name for name in fusion.members if name.startswith(said)]
    if len(members) != 1:
        raise _bad(f"stores {key!r}, and {said!r} begins the name of {len(members)} members", place)
    return members[0]


def _settled(
    fusion: Fusion, stored: Stored, arrays: Mapping[str, Array], place: str
) -> tuple[Case, ...]:
    """The cases of one input; those that fail, with LR moved where that helps."""
    cases = _cases(fusion, stored, arrays, fusion.upscalers(), place)
    for seed in range(MOVES):
        if all(case.passed for case in cases):
            break
        moved = {
            n: _moved(fusion.members[n], how, seed) for n, how in fusion.ensemble.members.items()
        }
        again = _cases(fusion, stored, arrays, moved, place)
        cases = [_better(*both) for both in zip(cases, again, strict=True)]
    return tuple(cases)


def _better(plain: Case, moved: Case) -> Case:
    if plain.passed or not moved.passed:
        return plain
    return replace(moved, changed_as_is=plain.changed)


def _moved(model: Model, how: Member, seed: int) -> Upscaler:
    """The member, given LR of which every value is the next float32 below or above."""
    chance = np.random.default_rng(seed)

    def forward(lr: jax.Array) -> jax.Array:
        x = np.asarray(lr)
        ends = np.where(chance.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return model.forward(np.nextafter(x, ends))  # pyright: ignore[reportArgumentType] # jit takes numpy

    return upscale.strategy(
        upscale.whole(forward, model.method.data_range),
        model.scale,
        self_ensemble=how.self_ensemble,
        windows=how.windows,
        mirrored=how.mirrored,
    )


# --- one array ---------------------------------------------------------------------------------


def _cases(
    fusion: Fusion,
    stored: Stored,
    arrays: Mapping[str, Array],
    runs: Mapping[str, Upscaler],
    place: str,
) -> list[Case]:
    """What is stored of one input: the branches, and what they are fused to."""
    fused = stored.fused in arrays
    needed = fusion.members if fused else set(stored.branches.values())
    found = {name: runs[name](stored.lr) for name in fusion.members if name in needed}
    outputs = {key: found[member] for key, member in stored.branches.items()}
    if fused:
        outputs = {stored.fused: fusion.blend(list(found.values())), **outputs}
    return [_compared(key, ours, arrays[key], place) for key, ours in outputs.items()]


def _compared(key: str, ours: Floats, theirs: Array, place: str) -> Case:
    floats = key.startswith("act_")
    sr = channels_first((ours if floats else quantise(ours, 1.0))[None]).astype(np.float64)
    if sr.shape != theirs.shape:
        raise _bad(f"has {key} of {theirs.shape}, which is {sr.shape} here", place)
    apart = np.abs(sr - theirs)
    if not floats:
        return Case(
            case=key,
            shape=theirs.shape,
            max_abs=float(apart.max()) * LEVEL,
            allowed=LEVEL,
            changed=int((apart > 0).sum()),
            changeable=int(SHARE * apart.size),
        )
    return Case(
        case=key,
        shape=theirs.shape,
        max_abs=float(apart.max()),
        allowed=TOLERANCE * max(1.0, float(np.ptp(theirs))),
        changed=changed(sr, theirs, 1.0),
    )


def _levels(x: Array, place: str) -> Pixels:
    """`(1, 3, h, w)`, white at 1 -> the picture's bytes."""
    levels = np.rint(x.astype(np.float64) * 255)
    if x.shape[:2] != (1, 3) or np.abs(x * 255.0 - levels).max() > 1e-3:
        raise _bad(f"has an input {x.shape} that is no 8-bit picture", place)
    return levels[0].transpose(1, 2, 0).astype(np.uint8)


def _bad(why: str, place: str) -> BadGolden:
    return BadGolden(
        f"the golden file {why}",
        rule="xK is an 8-bit picture / 255, yK the fused bytes, MEMBER_u8_K a member's bytes, "
        "act_MEMBER_ttaK its floats; NCHW, MEMBER the beginning of a member's name",
        place=place,
        remedy="check that file and ensemble belong together",
    )
