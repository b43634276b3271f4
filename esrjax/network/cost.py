"""Cost of a network: parameters, multiply-adds (MACs), activations, convolutions.

`params`, `macs`, `activations` and `convs` follow the organisers' counters (fvcore for MACs, hooks
on Conv2d modules for activations and convolutions: NTIRE 2026 report, section 3). `macs_full` also
counts the ops that those counters miss; `params_full` leaves out the parameters on which the output
does not depend. Element-wise operations cost nothing in either.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.errors import UserError
from esrjax.network import ops
from esrjax.network.taps import with_hooks
from esrjax.network.work import OpCost, count_ops

ImageSize = int | tuple[int, int]  # of the LR image, pixels: the side of a square, or (h, w)


class UnmatchedPattern(UserError):
    """Raised when a pattern of `Method.cost_excluded` matches no op of the network."""


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
        UnmatchedPattern: A pattern of `excluded` matches no op.
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
        raise UnmatchedPattern(
            f"Pattern {pattern!r} matches no module",
            rule="every glob pattern of Method.cost_excluded matches a module with counted ops",
            location=", ".join(sorted({op.path for op in op_costs})[:12]),
            remedy="correct the pattern, or remove it",
        )
