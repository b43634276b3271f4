"""Multiply-adds (MACs) of the ops in a jaxpr: counted ops by name, other primitives by rule.

A primitive without a rule that is not declared free of cost is an error, so that nothing is missed
in silence.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.errors import PluginError, UncountedOp
from esrjax.nn import ops
from esrjax.nn.functional import OP_PREFIX, SUM_OP
from esrjax.nn.hooks import with_hooks

# JAX has no public types for these. An equation has primitive, params, invars and outvars.
Jaxpr = Any
Equation = Any


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """Cost of one counted op.

    Attributes:
        path: Path of the module that runs the op; empty outside of all submodules.
        op: Name of the op, or of the primitive.
        macs_full: Multiply-adds.
        macs: Multiply-adds as the organisers' counter (fvcore) gives them.
        activations: Elements that it writes, if it is a 2-D convolution, else 0.
        convs: How many 2-D convolutions it is.
        is_needed: Whether the output of the network depends on it.
    """

    path: str
    op: str
    macs_full: int
    macs: int
    activations: int = 0
    convs: int = 0
    is_needed: bool = True


def count_ops(jaxpr: Jaxpr) -> tuple[tuple[OpCost, ...], list[bool]]:
    """Return the cost of every counted op in a trace.

    Args:
        jaxpr: A jaxpr whose every output is needed.

    Returns:
        The ops in the order in which they run, and for each input of the jaxpr whether an output
        depends on it.

    Raises:
        UncountedOp: The trace contains an op of unknown cost.
    """
    ops: list[OpCost] = []
    needed = _walk(jaxpr, [True] * len(jaxpr.outvars), "", 1, ops)
    return tuple(reversed(ops)), needed


def _walk(
    jaxpr: Jaxpr, outputs_needed: list[bool], path: str, repeats: int, ops: list[OpCost]
) -> list[bool]:
    """Append the ops of a jaxpr in reverse order; return which of its inputs are needed.

    Walking back from the outputs shows which ops they depend on.
    """
    needed = {
        v
        for v, is_needed in zip(jaxpr.outvars, outputs_needed, strict=True)
        if is_needed and _is_variable(v)
    }
    for equation in reversed(jaxpr.eqns):
        outputs = [v in needed for v in equation.outvars]
        module_path = _module_path(equation) or path
        inputs = _visit_equation(equation, outputs, module_path, repeats, ops)
        needed |= {
            v
            for v, is_needed in zip(equation.invars, inputs, strict=True)
            if is_needed and _is_variable(v)
        }
    return [v in needed for v in jaxpr.invars]


def _is_variable(value: Any) -> bool:
    return not hasattr(value, "val")  # literals have it


def _module_path(equation: Equation) -> str:
    """Return the path of the innermost module of an equation (`esrjax.nn.hooks.with_hooks`)."""
    return (re.findall("<([^<>]*)>", str(equation.source_info.name_stack)) or [""])[-1]


def _visit_equation(
    equation: Equation, outputs_needed: list[bool], path: str, repeats: int, ops: list[OpCost]
) -> list[bool]:
    name, inner_jaxprs = _op_name(equation), _inner_jaxprs(equation)
    if name in MAC_RULES:
        ops.append(_op_cost(name, equation, path, repeats, any(outputs_needed)))
    elif name in CALL_PRIMITIVES:
        return _walk(inner_jaxprs[0], outputs_needed, path, repeats, ops)
    elif name in ("scan", "cond"):
        ops.extend(_loop_or_branch_ops(equation, inner_jaxprs, any(outputs_needed), path, repeats))
    elif name not in ZERO_COST:  # a while loop has no known number of iterations
        is_while = name == "while"
        raise _uncounted_op(
            "while, whose number of iterations is unknown," if is_while else name, path
        )
    return [any(outputs_needed)] * len(equation.invars)


def _op_name(equation: Equation) -> str:
    """Return the name of a counted op, or of the equation's primitive."""
    name = str(equation.params.get("name"))
    if name == SUM_OP:
        return "reduce_sum"
    is_counted_op = name.startswith(OP_PREFIX) and name.removeprefix(OP_PREFIX) in MAC_RULES
    return name.removeprefix(OP_PREFIX) if is_counted_op else equation.primitive.name


def _inner_jaxprs(equation: Equation) -> list[Jaxpr]:
    """Return the jaxprs that the equation runs; of a custom_vjp the forward pass only."""
    keys = ("call_jaxpr", "jaxpr", "branches")
    value: Any = next((equation.params[key] for key in keys if key in equation.params), ())
    jaxprs: tuple[Jaxpr, ...] = value if isinstance(value, tuple) else (value,)
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in jaxprs]


def _loop_or_branch_ops(
    equation: Equation, inner_jaxprs: list[Jaxpr], is_needed: bool, path: str, repeats: int
) -> list[OpCost]:
    """Return the ops of a scan, times its length, or of the costliest branch of a cond.

    `lax.platform_dependent` is a cond in a trace, one branch for each platform.
    """
    repeats *= equation.params.get("length", 1)
    branches: list[list[OpCost]] = [[] for _ in inner_jaxprs]
    for jaxpr, costs in zip(inner_jaxprs, branches, strict=True):
        _walk(jaxpr, [is_needed] * len(jaxpr.outvars), path, repeats, costs)
    return max(branches, key=lambda costs: sum(op.macs_full for op in costs))


def _op_cost(name: str, equation: Equation, path: str, repeats: int, is_needed: bool) -> OpCost:
    is_conv, macs = name in CONVOLUTIONS, MAC_RULES[name](equation)
    return OpCost(
        path=path,
        op=name,
        macs_full=macs * repeats,
        macs=FVCORE_RULES.get(name, int)(macs) * repeats,
        activations=_num_elements(equation.outvars[0]) * repeats if is_conv else 0,
        convs=repeats if is_conv else 0,
        is_needed=is_needed,
    )


def _uncounted_op(name: str, path: str) -> UncountedOp:
    return UncountedOp(
        f"{name} is neither counted nor free of cost",
        rule="an op is one of esrjax.nn.functional or esrjax.nn.ops, or is "
        "element-wise, or moves data",
        location=path or "the network itself",
        remedy="use those ops, or add the primitive to MAC_RULES or ZERO_COST in esrjax/nn/cost.py",
    )


# --- rules: one multiply-add is one MAC --------------------------------------------------------


def _num_elements(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _conv_macs(equation: Equation) -> int:
    """Return output positions times elements of the kernel, right for every number of groups."""
    # A counted op has no layout among its parameters: its kernel is (..., out). The primitive has.
    kernel, layout = equation.invars[1], equation.params.get("dimension_numbers")
    channels = kernel.aval.shape[-1 if layout is None else layout.rhs_spec[0]]
    return _num_elements(equation.outvars[0]) // channels * _num_elements(kernel)


def _matmul_macs(equation: Equation) -> int:
    return _num_elements(equation.outvars[0]) * equation.invars[0].aval.shape[-1]


def _dot_general_macs(equation: Equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return _num_elements(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _einsum_macs(equation: Equation) -> int:
    return sum(op.macs_full for op in count_ops(*_inner_jaxprs(equation))[0])


def _fvcore_einsum_macs(macs: int) -> int:
    """Return fvcore's count of an einsum.

    fvcore reads it off the text of `np.einsum_path`, which has four significant digits and counts a
    multiply-add as two operations.
    """
    return int(float(f"{2 * macs:.3e}") / 2)


def _selective_scan_macs(equation: Equation) -> int:
    """Return 3 for each state and token: decay, input and output."""
    x, states = equation.invars[0], equation.invars[2].aval.shape[-1]
    return 3 * _num_elements(x) * states


def _norm_macs(equation: Equation) -> int:
    """Return 5 for each element, as fvcore counts an affine normalisation."""
    return 5 * _num_elements(equation.outvars[0])


def _one_per_input(equation: Equation) -> int:
    return _num_elements(equation.invars[0])


def _four_per_output(equation: Equation) -> int:
    return 4 * _num_elements(equation.outvars[0])


MAC_RULES: Mapping[str, Callable[[Equation], int]] = {
    "conv2d": _conv_macs,
    "conv1d": _conv_macs,
    "linear": _matmul_macs,
    "matmul": _matmul_macs,
    "einsum": _einsum_macs,
    "selective_scan": _selective_scan_macs,
    "layer_norm": _norm_macs,
    "group_norm": _norm_macs,
    "global_avg_pool": _one_per_input,
    "resize_nearest": lambda equation: _num_elements(equation.outvars[0]),
    "resize_bilinear": _four_per_output,
    "conv_general_dilated": _conv_macs,
    "dot_general": _dot_general_macs,
}
CONVOLUTIONS = ("conv2d", "conv_general_dilated")

# MACs of an op -> what the organisers' counter gives for it, where that differs.
FVCORE_RULES: Mapping[str, Callable[[int], int]] = {
    "einsum": _fvcore_einsum_macs,
    "selective_scan": lambda macs: 0,  # a CUDA op of its own, for which fvcore has no rule
}

# Primitives that run one function once, on all of their inputs.
CALL_PRIMITIVES = frozenset(
    "checkpoint closed_call custom_jvp_call custom_vjp_call jit pjit remat remat2".split()
)

# Element-wise primitives, reductions, and those that move data: free, as in fvcore.
ZERO_COST = frozenset(
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


# --------------------------------------------------------------------------------------------------
# Cost of a network: parameters, multiply-adds (MACs), activations, convolutions.
#
# `params`, `macs`, `activations` and `convs` follow the organisers' counters (fvcore for MACs,
# hooks on Conv2d modules for activations and convolutions: NTIRE 2026 report, section 3).
# `macs_full` also counts the ops that those counters miss; `params_full` leaves out the parameters
# on which the output does not depend. Element-wise operations cost nothing in either.
# --------------------------------------------------------------------------------------------------


ImageSize = int | tuple[int, int]  # of the LR image, pixels: the side of a square, or (h, w)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a network for one image.

    Attributes:
        params: Number of elements of all parameters.
        params_full: Number of elements of those parameters that the output depends on.
        macs: Multiply-adds as the organisers' counter gives them.
        macs_full: Multiply-adds of all ops that the output depends on.
        activations: Elements that the convolutions write.
        convs: Number of convolutions that run.
        ops: Cost of every counted op, in the order in which they run.
    """

    params: int
    params_full: int
    macs: int
    macs_full: int
    activations: int
    convs: int
    ops: tuple[OpCost, ...]


class CostPatterns(Protocol):
    """Corrections of a method to the count, those of `esrjax.method.Method`."""

    @property
    def cost_excluded(self) -> Mapping[str, str]: ...

    @property
    def cost_included(self) -> Mapping[str, str]: ...


def cost_of(method: CostPatterns, net: nnx.Module, *, image_size: ImageSize = 256) -> Cost:
    """Return the cost of a network of `method`, with that method's corrections to the count.

    Args:
        method: Its `cost_excluded` and `cost_included` are used.
        net: As of `cost`.
        image_size: As of `cost`.
    """
    return cost(
        net, image_size=image_size, excluded=method.cost_excluded, included=method.cost_included
    )


def cost(
    net: nnx.Module,
    *,
    image_size: ImageSize = 256,
    excluded: Mapping[str, str] | None = None,
    included: Mapping[str, str] | None = None,
) -> Cost:
    """Return the cost of `net` for one LR image, by tracing it; nothing is computed.

    Args:
        net: A network; an abstract one (`nnx.eval_shape`) will do.
        image_size: Size of the LR image in pixels: the side of a square, or (h, w).
        excluded: Glob patterns of module paths that the organisers' counter misses, each with its
            reason.
        included: Patterns of those that it counts though the output does not depend on them, each
            with its reason. Unlike those of `excluded` they may match nothing, because a network
            of other hyperparameters may lack that module.

    Raises:
        PluginError: A pattern of `excluded` matches no op.
        UncountedOp: The network contains an op of unknown cost.
    """
    trace, param_counts = _trace(net, image_size)
    op_costs, needed = count_ops(trace)
    for pattern in excluded or {}:
        _check_match(pattern, op_costs)
    needed_ops = [op for op in op_costs if op.is_needed]
    reached_ops = [op for op in op_costs if op.is_needed or _matches(op, included or {})]
    counted_ops = [op for op in reached_ops if not _matches(op, excluded or {})]
    return Cost(
        params=sum(param_counts),
        # The trace has further inputs than parameters, last: hence not strict.
        params_full=sum(count for count, used in zip(param_counts, needed, strict=False) if used),
        macs=sum(op.macs for op in counted_ops),
        macs_full=sum(op.macs_full for op in needed_ops),
        activations=sum(op.activations for op in op_costs),
        convs=sum(op.convs for op in op_costs),
        ops=op_costs,
    )


def mismatches(actual: Cost, reported: Mapping[str, float]) -> list[str]:
    """Return a line such as `params is 3, reported 4` for every reported figure that differs."""
    return [
        f"{figure} is {getattr(actual, figure)}, reported {reported[figure]}"
        for figure in ("params", "macs", "activations", "convs")
        if figure in reported and reported[figure] != getattr(actual, figure)
    ]


def _trace(net: nnx.Module, image_size: ImageSize) -> tuple[Any, list[int]]:
    """Return the jaxpr of `net`, whose first inputs are the parameters, and their element counts.

    The reference implementations are traced: a kernel's work cannot be counted.
    """
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def forward(params: Any, rest: Any, lr: jax.Array) -> jax.Array:
        # Hooks that do nothing, for their named scopes: by these an op is assigned to its module.
        with ops.implementation("reference"):
            return with_hooks(nnx.merge(graphdef, params, rest), lambda path, output: None)(lr)

    params, rest = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, rest)
    )
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)
    height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
    lr = jax.ShapeDtypeStruct((1, *height_width, 3), dtype)
    param_counts = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    return jax.make_jaxpr(forward)(params, rest, lr).jaxpr, param_counts


def _matches(op: OpCost, patterns: Mapping[str, str]) -> bool:
    return any(fnmatchcase(op.path, pattern) for pattern in patterns)


def _check_match(pattern: str, op_costs: tuple[OpCost, ...]) -> None:
    if not any(fnmatchcase(op.path, pattern) for op in op_costs):
        raise PluginError(
            f"Pattern {pattern!r} matches no module",
            rule="every glob pattern of Method.cost_excluded matches a module with counted ops",
            location=", ".join(sorted({op.path for op in op_costs})[:12]),
            remedy="correct the pattern, or remove it",
        )
