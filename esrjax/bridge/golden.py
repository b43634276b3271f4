"""Outputs and activations that PyTorch once gave, compared with ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from esrjax.bridge.case import TOLERANCE, Array, Body, Case, changed
from esrjax.bridge.layouts import channels_first, layouts
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.network import ops
from esrjax.network.compilation import jit
from esrjax.network.naming import Naming
from esrjax.network.taps import heads, taps
from esrjax.network.weights import cast

Runs = tuple[dict[str, Array], dict[str, Any]]  # outputs by number; parts' outputs by path

_INPUT = re.compile(r"x(\d+)")
_ACTIVATION = re.compile(r"act_(?P<path>.+?)(?:__out(?P<output>\d+))?")


class BadGolden(UserError):
    """A file that holds no pairs of inputs and outputs, or names parts that the network lacks."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """All cases of a golden file. unchecked: its keys that no case covers."""

    method: str
    cases: tuple[Case, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def verdicts(self) -> dict[str, bool]:
        """Every case, and whether it passes."""
        return {case.case: case.passed for case in self.cases}

    @property
    def passed(self) -> bool:
        """Every case passes, and there is one."""
        return bool(self.cases) and all(case.passed for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {
            "method": self.method,
            "passed": self.passed,
            "max_abs": float(np.max([case.max_abs for case in self.cases])),
            "cases": [case.as_dict() for case in self.cases],
            "unchecked": list(self.unchecked),
        }


def parity(
    name: str, method: Method, net: nnx.Module, golden: str | Path, body: Body = "auto"
) -> Parity:
    """Compare `net`, in deploy form, with the arrays of `golden` (.npz, float32, NCHW).

    `xK` is an input and `yK` its output, in the method's data range; `act_PATH` what the part that
    PyTorch calls PATH (`__` for dots, `__outN` its N-th output) gave for `x0`, `y0_NAME` what the
    network's further head NAME did. Run in float32; a case that fails there may pass in double
    precision, within the same tolerance.
    """
    arrays, naming, place = read(golden), Naming(method.torch_names), str(golden)
    cases = _cases(_run(net, arrays, body), arrays, naming, method.data_range, place)
    if not all(case.passed for case in cases):
        exact = _cases(_run_double(net, arrays), arrays, naming, method.data_range, place)
        cases = [_judged(*pair) for pair in zip(cases, exact, strict=True)]
    known = {case.case for case in cases} | {key for key in arrays if _INPUT.fullmatch(key)}
    return Parity(method=name, cases=tuple(cases), unchecked=tuple(sorted(set(arrays) - known)))


def _cases(
    runs: Runs, arrays: Mapping[str, Array], naming: Naming, white: float, place: str
) -> list[Case]:
    """Every output and every stored activation, compared."""
    outputs, parts = runs
    return [
        *(_compared(f"y{k}", y, arrays[f"y{k}"], white) for k, y in sorted(outputs.items())),
        *(
            _compared(f"y0_{name}", np.asarray(y), arrays[f"y0_{name}"], white)
            for name, y in sorted(heads(parts).items())
            if f"y0_{name}" in arrays
        ),
        *(
            _compared(key, _part(key, parts, naming, place), arrays[key], white, activation=True)
            for key in sorted(key for key in arrays if key.startswith("act_"))
        ),
    ]


def _judged(single: Case, double: Case) -> Case:
    """The float32 case, or, where it fails and the double-precision one does not, that one.

    A network without bound amplifies the rounding of white noise; its structure is then judged
    where there is next to none.
    """
    if single.passed or not double.passed:
        return single
    return replace(double, precision="float64", float32_max_abs=single.max_abs)


def read(golden: str | Path) -> dict[str, Array]:
    """The arrays of a golden file, which holds at least one input and its output."""
    try:
        with np.load(golden, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, AttributeError) as error:
        raise _bad(golden, f"cannot be read as .npz: {error}") from error
    if not any(_INPUT.fullmatch(key) and f"y{key[1:]}" in arrays for key in arrays):
        raise _bad(golden, "holds no x0 with its y0")
    return arrays


def _run(net: nnx.Module, arrays: Mapping[str, Array], body: Body = "reference") -> Runs:
    """The outputs for every input that has one, and the parts' outputs for `x0`."""
    graph, state = nnx.split(net)
    run = jit(lambda state, x: taps(nnx.merge(graph, state), x))
    outputs: dict[str, Array] = {}
    first: dict[str, Any] = {}
    with ops.body(body), jax.default_matmul_precision("highest"):
        for key in sorted(k for k in arrays if _INPUT.fullmatch(k) and f"y{k[1:]}" in arrays):
            y, parts = run(state, arrays[key].transpose(0, 2, 3, 1))
            outputs[key[1:]] = np.asarray(y)
            first = first or parts
    return outputs, first


def _run_double(net: nnx.Module, arrays: Mapping[str, Array]) -> Runs:
    """The same in double precision, by reference bodies."""
    with jax.enable_x64(True):
        return _run(cast(net, np.float64), {k: v.astype(np.float64) for k, v in arrays.items()})


def _part(key: str, parts: Mapping[str, Any], naming: Naming, place: str) -> Array:
    """Our output of the part that the key names."""
    fields = _ACTIVATION.fullmatch(key)
    assert fields is not None
    path = naming.to_flax(fields["path"].replace("__", "."))
    if path not in parts:
        raise _bad(place, f"stores {key!r}, but the network runs no part {path!r}", parts)
    output = parts[path]
    return np.asarray(output[int(fields["output"] or 0)] if isinstance(output, tuple) else output)


def _compared(
    case: str, ours: Array, theirs: Array, white: float, *, activation: bool = False
) -> Case:
    """`ours (N, h, w, C)` or as it is, against `theirs`."""
    if activation:
        found = layouts(ours, theirs.shape)
    else:
        found = [channels_first(ours)] if channels_first(ours).shape == theirs.shape else []
    if not found:
        raise _bad(case, f"is {theirs.shape} in the file and {channels_first(ours).shape} here")
    ours, spread = found[0], float(np.ptp(theirs))
    return Case(
        case=case,
        shape=tuple(theirs.shape),
        max_abs=float(np.max(np.abs(ours.astype(np.float64) - theirs))),
        allowed=TOLERANCE * max(white, spread),
        changed=None if activation else changed(ours, theirs, white),
    )


def _bad(place: str | Path, why: str, parts: Mapping[str, Any] | None = None) -> BadGolden:
    known = "" if parts is None else "; it runs " + ", ".join(list(parts)[:12])
    return BadGolden(
        f"the golden file {why}{known}",
        rule="xK -> yK in float32 NCHW; act_PATH is the output of a part for x0",
        place=str(place),
        remedy="check that file and method belong together",
    )
