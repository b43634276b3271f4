"""The work in a trace: words by name, and what lies outside them.

Work that is neither counted nor declared free is an error, so nothing can be lost in silence.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esrjax.errors import UserError
from esrjax.network.reduction import SUM
from esrjax.network.words import PREFIX

# jax's own types of traces are not public; an equation has primitive, params, invars, outvars.
Jaxpr = Any
Equation = Any


class UncountedWork(UserError):
    """The trace holds work that is neither counted nor declared free."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of counted work.

    path: the part of the network that does it. macs: multiply-adds. official: the same as the
    organisers' counter gives them. activations: elements that a convolution writes. needed: the
    output depends on it.
    """

    path: str
    word: str
    macs: int
    official: int
    activations: int = 0
    convs: int = 0
    needed: bool = True


def work(jaxpr: Jaxpr) -> tuple[tuple[Work, ...], list[bool]]:
    """All counted work of a trace in order, and which of its inputs the output depends on."""
    found: list[Work] = []
    needed = _walk(jaxpr, [True] * len(jaxpr.outvars), "", 1, found)
    return tuple(reversed(found)), needed


def _walk(jaxpr: Jaxpr, wanted: list[bool], path: str, times: int, found: list[Work]) -> list[bool]:
    """From the outputs back, so that work nobody needs is known as such."""
    needed = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and _variable(v)}
    for equation in reversed(jaxpr.eqns):
        outputs = [v in needed for v in equation.outvars]
        place = _part(equation) or path
        inputs = _visit(equation, outputs, place, times, found)
        needed |= {
            v for v, used in zip(equation.invars, inputs, strict=True) if used and _variable(v)
        }
    return [v in needed for v in jaxpr.invars]


def _variable(value: Any) -> bool:
    return not hasattr(value, "val")


def _part(equation: Equation) -> str:
    """The innermost part that the equation stands in, by its path (`network.taps.SCOPE`)."""
    return (re.findall("<([^<>]*)>", str(equation.source_info.name_stack)) or [""])[-1]


def _visit(
    equation: Equation, wanted: list[bool], path: str, times: int, found: list[Work]
) -> list[bool]:
    name, inner = _name(equation), _inner(equation)
    if name in COUNTED:
        found.append(_piece(name, equation, path, times, any(wanted)))
    elif name in CALLS:
        return _walk(inner[0], wanted, path, times, found)
    elif name in ("scan", "cond"):
        found.extend(_repeated(equation, inner, any(wanted), path, times))
    elif name not in FREE:
        unknown = name == "while"
        raise _uncounted("while, whose number of turns is unknown," if unknown else name, path)
    return [any(wanted)] * len(equation.invars)


def _name(equation: Equation) -> str:
    """The word that the equation speaks, or its primitive."""
    name = str(equation.params.get("name"))
    if name == SUM:
        return "reduce_sum"
    spoken = name.startswith(PREFIX) and name.removeprefix(PREFIX) in COUNTED
    return name.removeprefix(PREFIX) if spoken else equation.primitive.name


def _inner(equation: Equation) -> list[Jaxpr]:
    """The jaxprs that the equation runs; of a function with its own gradient, only its value."""
    keys = ("call_jaxpr", "jaxpr", "branches")
    held: Any = next((equation.params[key] for key in keys if key in equation.params), ())
    every: tuple[Jaxpr, ...] = held if isinstance(held, tuple) else (held,)
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in every]


def _repeated(
    equation: Equation, inner: list[Jaxpr], wanted: bool, path: str, times: int
) -> list[Work]:
    """The work of a scan times its length, or of the costliest branch of a cond."""
    times *= equation.params.get("length", 1)
    branches: list[list[Work]] = [[] for _ in inner]
    for jaxpr, found in zip(inner, branches, strict=True):
        _walk(jaxpr, [wanted] * len(jaxpr.outvars), path, times, found)
    return max(branches, key=lambda found: sum(piece.macs for piece in found))


def _piece(name: str, equation: Equation, path: str, times: int, needed: bool) -> Work:
    conv, macs = name in CONVOLUTIONS, COUNTED[name](equation)
    return Work(
        path=path,
        word=name,
        macs=macs * times,
        official=MISCOUNTED.get(name, int)(macs) * times,
        activations=_elements(equation.outvars[0]) * times if conv else 0,
        convs=times if conv else 0,
        needed=needed,
    )


def _uncounted(what: str, path: str) -> UncountedWork:
    return UncountedWork(
        f"{what} is neither counted nor declared free",
        rule="work is counted by word (esrjax.network.words, esrjax.network.ops), or is "
        "element-wise, or moves data",
        place=path or "the network itself",
        remedy="write it in those words, or file the primitive under COUNTED or FREE in "
        "esrjax/network/work.py",
    )


# --- what is counted, and how: one multiply-add is one MAC -------------------------------------


def _elements(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _convolution(equation: Equation) -> int:
    """Output positions times elements of the kernel; works for every number of groups."""
    kernel, layout = equation.invars[1], equation.params.get("dimension_numbers")
    channels = kernel.aval.shape[-1 if layout is None else layout.rhs_spec[0]]
    return _elements(equation.outvars[0]) // channels * _elements(kernel)


def _product(equation: Equation) -> int:
    return _elements(equation.outvars[0]) * equation.invars[0].aval.shape[-1]


def _dot_general(equation: Equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return _elements(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _einsum(equation: Equation) -> int:
    return sum(piece.macs for piece in work(*_inner(equation))[0])


def _as_printed(macs: int) -> int:
    """fvcore reads an einsum's operations off numpy's description, which has four digits."""
    return int(float(f"{2 * macs:.3e}") / 2)


def _selective_scan(equation: Equation) -> int:
    """Decay, input and output of every state."""
    x, states = equation.invars[0], equation.invars[2].aval.shape[-1]
    return 3 * _elements(x) * states


def _norm(equation: Equation) -> int:
    return 5 * _elements(equation.outvars[0])


def _once_per_input(equation: Equation) -> int:
    return _elements(equation.invars[0])


def _four_per_output(equation: Equation) -> int:
    return 4 * _elements(equation.outvars[0])


COUNTED: Mapping[str, Callable[[Equation], int]] = {
    "conv2d": _convolution,
    "conv1d": _convolution,
    "linear": _product,
    "matmul": _product,
    "einsum": _einsum,
    "selective_scan": _selective_scan,
    "layer_norm": _norm,
    "group_norm": _norm,
    "average_pool": _once_per_input,
    "nearest": lambda equation: _elements(equation.outvars[0]),
    "bilinear": _four_per_output,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
}
CONVOLUTIONS = ("conv2d", "conv_general_dilated")

# What the organisers' counter makes of our figure, where that differs.
MISCOUNTED: Mapping[str, Callable[[int], int]] = {
    "einsum": _as_printed,
    "selective_scan": lambda macs: 0,  # an operator of its own, which fvcore does not see into
}

# Primitives that run one function once, on all of their inputs.
CALLS = frozenset(
    "checkpoint closed_call custom_jvp_call custom_vjp_call jit pjit remat remat2".split()
)

FREE = frozenset(
    """abs acos acosh add add_any and argmax argmin asin asinh atan atan2 atanh
    bitcast_convert_type broadcast_in_dim broadcast_to cbrt ceil clamp complex concatenate conj
    convert_element_type copy copy_p cos cosh cumlogsumexp cummax cummin cumprod cumsum
    device_put div dynamic_slice dynamic_update_slice eq erf erf_inv erfc exp exp2 expand_dims
    expm1 floor gather ge gt imag integer_pow iota is_finite le log log1p logistic lt max min
    mul name ne neg nextafter not optimization_barrier or pad platform_index pow random_bits
    random_fold_in random_seed random_split random_unwrap random_wrap real reduce_and reduce_max
    reduce_min reduce_or reduce_precision reduce_prod reduce_sum reduce_window_max reduce_xor
    rem reshape rev round rsqrt scatter scatter-add scatter-max scatter-min scatter-mul
    scatter-sub select_n sharding_constraint shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh slice sort split sqrt square squeeze stack stop_gradient
    sub tan tanh threefry2x32 tile top_k transpose unstack xor zeros_like""".split()
)
