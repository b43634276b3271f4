"""Cost of networks: parameters, multiply-adds (MACs), activations, convolutions and memory.

All of them are counted in a trace.

`params`, `macs`, `activations` and `convs` follow the organisers' counters (fvcore for MACs, hooks
on Conv2d modules for activations and convolutions: NTIRE 2026 report, section 3). `macs_full` also
counts the ops that those counters miss; `params_full` leaves out the parameters on which the output
does not depend. Element-wise operations cost nothing in either.

Counted ops are counted by name, other primitives by rule. A primitive without a rule that is not
declared free of cost is an error, so that nothing is missed in silence.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.errors import PluginError, UncountedOp, list_some
from esrjax.io import matches_any, unmatched_patterns
from esrjax.method import Method
from esrjax.nn import ops
from esrjax.nn.compilation import call_network
from esrjax.nn.functional import OP_PREFIX, SUM_OP
from esrjax.nn.hooks import with_hooks

# JAX has no public types for these. An equation has primitive, params, invars and outvars.
Jaxpr = Any
Equation = Any
ImageSize = int | tuple[int, int]  # of the LR image, pixels: the side of a square, or (h, w)


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

    def times(self, count: int) -> "OpCost":
        """Return the cost of `count` runs of the op."""
        figures = ("macs_full", "macs", "activations", "convs")
        return replace(self, **{figure: count * getattr(self, figure) for figure in figures})


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


def cost_of(method: Method, net: nnx.Module, *, image_size: ImageSize = 256) -> Cost:
    """Return the cost of a network of `method`, with that method's corrections to the count.

    Args:
        method: Its `cost_options` are used.
        net: As of `cost`.
        image_size: As of `cost`.
    """
    return cost(net, image_size=image_size, **vars(method.cost_options))


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
    paths = {op.path for op in op_costs}
    if unmatched := unmatched_patterns(excluded or (), paths):
        raise PluginError(
            f"Pattern {unmatched[0]!r} matches no module",
            rule="every glob pattern of CostOptions.excluded matches a module with counted ops",
            location=list_some(sorted(paths), 12),
            remedy="correct the pattern, or remove it",
        )
    counted_ops = [
        op
        for op in op_costs
        if (op.is_needed or matches_any(op.path, included or ()))
        and not matches_any(op.path, excluded or ())
    ]
    return Cost(
        params=sum(param_counts),
        # The trace has further inputs than parameters, last: hence not strict.
        params_full=sum(count for count, used in zip(param_counts, needed, strict=False) if used),
        macs=sum(op.macs for op in counted_ops),
        macs_full=sum(op.macs_full for op in op_costs if op.is_needed),
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
            net = nnx.merge(graphdef, params, rest)
            return call_network(with_hooks(net, lambda path, output: None), lr)

    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)
    height_width = (image_size, image_size) if isinstance(image_size, int) else image_size
    lr = jax.ShapeDtypeStruct((1, *height_width, 3), dtype)
    param_counts = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    return jax.make_jaxpr(forward)(params, rest, lr).jaxpr, param_counts


# --- counting ------------------------------------------------------------------------------------


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
    ops, needed = _walk(jaxpr, [True] * len(jaxpr.outvars), "")
    return tuple(reversed(ops)), needed


def _walk(
    jaxpr: Jaxpr, outputs_needed: Iterable[bool], path: str
) -> tuple[list[OpCost], list[bool]]:
    """Return the ops of a jaxpr in reverse order, and which of its inputs are needed.

    Walking back from the outputs shows which ops they depend on.
    """
    ops: list[OpCost] = []
    needed = _needed_variables(jaxpr.outvars, outputs_needed)
    for equation in reversed(jaxpr.eqns):
        outputs = [v in needed for v in equation.outvars]
        # The innermost of the scopes that `esrjax.nn.hooks.with_hooks` adds.
        *_, module_path = [path, *re.findall("<([^<>]*)>", str(equation.source_info.name_stack))]
        equation_ops, inputs = _visit_equation(equation, outputs, module_path)
        ops += equation_ops
        needed |= _needed_variables(equation.invars, inputs)
    return ops, [v in needed for v in jaxpr.invars]


def _needed_variables(variables: list[Any], are_needed: Iterable[bool]) -> set[Any]:
    pairs = zip(variables, are_needed, strict=True)
    return {v for v, is_needed in pairs if is_needed and not hasattr(v, "val")}  # no literals


def _visit_equation(
    equation: Equation, outputs_needed: list[bool], path: str
) -> tuple[list[OpCost], list[bool]]:
    """Return the ops of an equation, and which of its inputs are needed."""
    name, is_needed = _op_name(equation), any(outputs_needed)
    ops: list[OpCost] = []
    if name in CALL_PRIMITIVES:
        return _walk(_inner_jaxprs(equation)[0], outputs_needed, path)
    if name in MAC_RULES:
        macs, convs = MAC_RULES[name](equation), int(name in CONVOLUTIONS)
        op = OpCost(
            path=path,
            op=name,
            macs_full=macs,
            macs=FVCORE_RULES.get(name, int)(macs),
            activations=convs * _output_size(equation),
            convs=convs,
            is_needed=is_needed,
        )
        ops = [op]
    elif name in ("scan", "cond"):
        ops = _loop_or_branch_ops(equation, is_needed, path)
    elif name not in ZERO_COST:
        reason = ", whose number of iterations is unknown," if name == "while" else ""
        raise UncountedOp(
            f"{name}{reason} is neither counted nor free of cost",
            rule="an op is one of esrjax.nn.functional or esrjax.nn.ops, or is "
            "element-wise, or moves data",
            location=path or "the network itself",
            remedy="use those ops, or add the primitive to MAC_RULES or ZERO_COST in "
            "esrjax/nn/cost.py",
        )
    return ops, [is_needed] * len(equation.invars)


def _op_name(equation: Equation) -> str:
    """Return the name of a counted op, or of the equation's primitive."""
    name = str(equation.params.get("name"))
    if name == SUM_OP:
        return "reduce_sum"
    is_counted_op = name.startswith(OP_PREFIX) and name.removeprefix(OP_PREFIX) in MAC_RULES
    return name.removeprefix(OP_PREFIX) if is_counted_op else equation.primitive.name


def _inner_jaxprs(equation: Equation) -> list[Jaxpr]:
    """Return the jaxprs that the equation runs; of a custom_vjp the forward pass only, of a while
    loop its body.
    """
    keys = ("call_jaxpr", "jaxpr", "body_jaxpr", "branches")
    value: Any = next(equation.params[key] for key in keys if key in equation.params)
    jaxprs: tuple[Jaxpr, ...] = value if isinstance(value, tuple) else (value,)
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in jaxprs]


def _loop_or_branch_ops(equation: Equation, is_needed: bool, path: str) -> list[OpCost]:
    """Return the ops of a scan, times its length, or of the costliest branch of a cond.

    `lax.platform_dependent` is a cond in a trace, one branch for each platform.
    """
    branches = [
        _walk(jaxpr, [is_needed] * len(jaxpr.outvars), path)[0] for jaxpr in _inner_jaxprs(equation)
    ]
    costliest = max(branches, key=lambda ops: sum(op.macs_full for op in ops))
    return [op.times(equation.params.get("length", 1)) for op in costliest]


# --- rules: one multiply-add is one MAC ----------------------------------------------------------


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _output_size(equation: Equation) -> int:
    return _size(equation.outvars[0])


def _conv_macs(equation: Equation) -> int:
    """Return output positions times elements of the kernel, right for every number of groups."""
    # A counted op has no layout among its parameters: its kernel is (..., out). The primitive has.
    kernel, layout = equation.invars[1], equation.params.get("dimension_numbers")
    channels = kernel.aval.shape[-1 if layout is None else layout.rhs_spec[0]]
    return _output_size(equation) // channels * _size(kernel)


def _matmul_macs(equation: Equation) -> int:
    return _output_size(equation) * equation.invars[0].aval.shape[-1]


def _dot_general_macs(equation: Equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return _output_size(equation) * math.prod(shape[axis] for axis in contracted)


def _norm_macs(equation: Equation) -> int:
    """Return 5 for each element, as fvcore counts an affine normalisation."""
    return 5 * _output_size(equation)


MAC_RULES: Mapping[str, Callable[[Equation], int]] = {
    "conv2d": _conv_macs,
    "conv1d": _conv_macs,
    "linear": _matmul_macs,
    "matmul": _matmul_macs,
    "einsum": lambda eqn: sum(op.macs_full for op in count_ops(*_inner_jaxprs(eqn))[0]),
    # 3 for each state and token: decay, input and output
    "selective_scan": lambda eqn: 3 * _size(eqn.invars[0]) * eqn.invars[2].aval.shape[-1],
    "layer_norm": _norm_macs,
    "group_norm": _norm_macs,
    "global_avg_pool": lambda eqn: _size(eqn.invars[0]),
    "resize_nearest": _output_size,
    "resize_bilinear": lambda eqn: 4 * _output_size(eqn),
    "conv_general_dilated": _conv_macs,
    "dot_general": _dot_general_macs,
}
CONVOLUTIONS = ("conv2d", "conv_general_dilated")

# MACs of an op -> what the organisers' counter gives for it, where that differs.
FVCORE_RULES: Mapping[str, Callable[[int], int]] = {
    # fvcore reads it off the text of `np.einsum_path`, which has four significant digits and counts
    # a multiply-add as two operations.
    "einsum": lambda macs: int(float(f"{2 * macs:.3e}") / 2),
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


# --- memory --------------------------------------------------------------------------------------

# Their output is a view of their input, or XLA computes it wherever it is read.
VIEWS = frozenset(
    "broadcast_in_dim copy expand_dims iota optimization_barrier reshape squeeze "
    "stop_gradient".split()
)


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of a value of a trace, `nbytes` bytes."""

    nbytes: int


@dataclass(frozen=True, eq=False)
class FlatEquation:
    """An equation of a trace: what it reads and writes, and the memory that it takes besides."""

    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    body_bytes: int


def peak_bytes(jaxpr: Jaxpr) -> int:
    """Return the most memory, in bytes, that the values of a jaxpr take at once.

    A value takes memory from its equation to the last one that reads it, in the order of the jaxpr;
    inputs of the jaxpr are not counted, its outputs are. Loops take the memory of one iteration,
    and that of all their stacked outputs. XLA orders and fuses operations in its own way: for
    training steps the result is within a quarter of what it allocates (docs/log.md).

    Args:
        jaxpr: The jaxpr. Trace it inside of `single_platform`: otherwise its gradients have what
            every platform saves.
    """
    inputs = [Buffer(0) for _ in jaxpr.invars]
    equations: list[FlatEquation] = []
    outputs = _flatten(jaxpr, inputs, equations)
    equations = _needed_equations(equations, outputs)
    last_use = dict.fromkeys(outputs, len(equations))
    for index, equation in reversed([*enumerate(equations)]):
        # A view keeps what it is a view of.
        views = [o for o in equation.outputs if not o.nbytes]
        last = max([index, *(last_use.get(view, 0) for view in views)])
        for buffer in equation.inputs:
            last_use[buffer] = max(last_use.get(buffer, 0), last)
    freed = defaultdict[int, int](int)
    for buffer, index in last_use.items():
        freed[index] += buffer.nbytes
    live = peak = 0
    for index, equation in enumerate(equations):
        live += sum(buffer.nbytes for buffer in equation.outputs if buffer in last_use)
        if equation.body_bytes:
            peak = max(peak, live + equation.body_bytes)
        live -= freed[index]
        peak = max(peak, live)
    return peak


def _flatten(jaxpr: Jaxpr, inputs: Iterable[Buffer], equations: list[FlatEquation]) -> list[Buffer]:
    """Append the equations of a jaxpr and of the functions that it calls; return its outputs."""
    buffers: dict[Any, Buffer] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Buffer:
        return Buffer(0) if hasattr(variable, "val") else buffers.setdefault(variable, Buffer(0))

    for equation in jaxpr.eqns:
        operands, name = [read(variable) for variable in equation.invars], equation.primitive.name
        if name in CALL_PRIMITIVES:
            outputs = _flatten(_inner_jaxprs(equation)[0], operands, equations)
        else:
            outputs = [Buffer(_nbytes(variable, name)) for variable in equation.outvars]
            body = _body_bytes(equation)
            equations.append(FlatEquation(tuple(operands), tuple(outputs), body))
        buffers |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _nbytes(variable: Any, primitive: str) -> int:
    """Return the size of an output; 0 of a view, and of what is not an array of numbers."""
    dtype = getattr(variable.aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 0)  # a PRNG key has none
    if dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        itemsize = 4  # XLA's CPU backend computes in float32
    return 0 if primitive in VIEWS or not itemsize else _size(variable) * itemsize


def _body_bytes(equation: Equation) -> int:
    """Return the memory of one iteration of a loop, or of the largest branch of a cond.

    That of a convolution whose images are features, as in the gradient of a kernel, are transposed
    copies of its operands.
    """
    if equation.primitive.name == "conv_general_dilated":
        is_kernel_gradient = equation.params["dimension_numbers"].lhs_spec[0] != 0
        return is_kernel_gradient * sum(_nbytes(variable, "") for variable in equation.invars)
    if equation.primitive.name not in ("scan", "while", "cond"):
        return 0
    return max(map(peak_bytes, _inner_jaxprs(equation))) * equation.params.get("unroll", 1)


def _needed_equations(equations: list[FlatEquation], outputs: list[Buffer]) -> list[FlatEquation]:
    """Return the equations on which the outputs depend, in order."""
    needed, kept = set(outputs), list[FlatEquation]()
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    return kept[::-1]
