"""Traces of all modules' inputs and outputs in JAX and PyTorch, and their alignment.

`jax_*` names arrays and paths of the flax.nnx network, `torch_*` those of the PyTorch network.
PyTorch's hooks fire in execution order, and that order is kept; JAX's calls are looked up by path.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from esrjax.bridge.case import FLOAT64_RTOL, Array
from esrjax.bridge.layouts import candidate_layouts
from esrjax.network.compilation import FAST_COMPILE
from esrjax.network.naming import KeyMap
from esrjax.network.taps import with_hooks

InOut = Literal["in", "out"]
CallKey = tuple[str, InOut]  # path of an nnx module, and its inputs or outputs
JaxCalls = Mapping[CallKey, Sequence[tuple[Array, ...]]]  # one tuple of arrays per call

ROOT = ""  # path of the network itself, as in `torch.nn.Module.named_modules`


@dataclass(frozen=True, kw_only=True, eq=False)
class HookEvent:
    """The inputs ("in") or outputs ("out") of one call of a PyTorch module.

    Attributes:
        path: Path of the module, `ROOT` for the network.
        class_name: Class of the module.
        io: "in" when the module's forward begins, "out" when it has ended.
        call_index: Number of the module's call, from 1; a module may run several times.
        arrays: Floating-point tensors among its inputs or outputs.
        tensor_ids: `id` of each tensor: the output of one module and the input of another have the
            same id exactly if they are the same tensor.
    """

    path: str
    class_name: str
    io: InOut
    call_index: int
    arrays: tuple[Array, ...]
    tensor_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaxDiff:
    """The element with the largest absolute difference of two arrays.

    Attributes:
        index: Its index in PyTorch's layout.
        jax_value: JAX's value there.
        torch_value: PyTorch's value there.
        max_abs_diff: Their absolute difference.
        value_range: Peak-to-peak range of PyTorch's array, see `value_range`.
    """

    index: tuple[int, ...]
    jax_value: float
    torch_value: float
    max_abs_diff: float
    value_range: float

    @property
    def differs(self) -> bool:
        """Whether the difference exceeds rounding in float64; NaN does."""
        return not self.max_abs_diff <= FLOAT64_RTOL * self.value_range


@dataclass(frozen=True, kw_only=True)
class TraceEvent:
    """A hook event of PyTorch, compared with the call of the JAX module of the same weights.

    Attributes:
        hook: PyTorch's event.
        jax_path: Path of the nnx module; None if it has no counterpart, or ran less often.
        diff: Largest difference; None where no arrays could be compared.
        module_stack: Paths of the PyTorch modules that are running, outermost first, without the
            module itself.
    """

    hook: HookEvent
    jax_path: str | None
    diff: MaxDiff | None
    module_stack: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether arrays were compared and differ."""
        return self.diff is not None and self.diff.differs

    @property
    def agrees(self) -> bool:
        """Whether arrays were compared and are equal."""
        return self.diff is not None and not self.diff.differs


def record_calls(net: nnx.Module, x: Array) -> JaxCalls:
    """Run the JAX network and record inputs and outputs of every module.

    Args:
        net: The network.
        x: Images `(N, h, w, 3)`, in the precision to compute in.

    Returns:
        Arrays by module path and "in" or "out", one tuple per call.
    """
    graphdef, state = nnx.split(net)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(state: Any, x: Any) -> Any:
        calls: dict[CallKey, list[Any]] = defaultdict(list)
        net = with_hooks(
            nnx.merge(graphdef, state),
            lambda path, output: calls[path, "out"].append(_arrays(output)),
            lambda path, inputs: calls[path, "in"].append(_arrays(inputs)),
        )
        calls[ROOT, "in"].append((x,))
        calls[ROOT, "out"].append((net(x),))
        return dict(calls)

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, run(state, x))


def align(
    hook_events: Iterable[HookEvent], jax_calls: JaxCalls, key_map: KeyMap
) -> list[TraceEvent]:
    """Pair every hook event of PyTorch with the call of the corresponding JAX module.

    Args:
        hook_events: PyTorch's events in execution order, from `pytorch.record_events`.
        jax_calls: JAX's calls, from `record_calls`.
        key_map: Maps PyTorch's module paths to those of nnx (`Method.torch_names`).

    Returns:
        One event per hook event, in PyTorch's order.
    """
    trace_events: list[TraceEvent] = []
    module_stack: list[str] = []
    for hook in hook_events:
        if hook.io == "out":
            module_stack.pop()
        jax_path = key_map.to_flax(hook.path) if hook.path else ROOT
        calls = jax_calls.get((jax_path, hook.io), ())
        jax_arrays = calls[hook.call_index - 1] if hook.call_index <= len(calls) else None
        trace_events.append(
            TraceEvent(
                hook=hook,
                jax_path=None if jax_arrays is None else jax_path,
                diff=None if jax_arrays is None else _largest_diff(jax_arrays, hook.arrays),
                module_stack=tuple(module_stack),
            )
        )
        if hook.io == "in":
            module_stack.append(hook.path)
    return trace_events


def _arrays(values: Any) -> tuple[Any, ...]:
    """Return the floating-point arrays, without scalars, among a module's inputs or outputs."""
    values = values if isinstance(values, tuple | list) else (values,)
    return tuple(
        value
        for value in values
        if isinstance(value, jax.Array)
        and value.ndim
        and jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
    )


def _largest_diff(jax_arrays: Sequence[Array], torch_arrays: Sequence[Array]) -> MaxDiff | None:
    """Return the relatively largest difference among the arrays at the same position."""
    diffs = [max_diff(*pair) for pair in zip(jax_arrays, torch_arrays, strict=False)]
    return max((g for g in diffs if g is not None), key=_relative_diff, default=None)


def _relative_diff(diff: MaxDiff) -> float:
    ratio = (
        diff.max_abs_diff / diff.value_range if diff.value_range else float(diff.max_abs_diff > 0)
    )
    return np.inf if np.isnan(ratio) else ratio


def max_diff(jax_array: Array, torch_array: Array) -> MaxDiff | None:
    """Return the largest difference in the layout in which the arrays are closest.

    The layout is not known: if channels and rows have the same extent, several layouts fit, and
    only one of them makes sense.

    Args:
        jax_array: JAX's array, channels last.
        torch_array: PyTorch's array, channels first or last, an image or tokens.

    Returns:
        The difference, or None if no layout fits. Arrays of different shapes are no error: the two
        networks may divide their computation into modules differently, for example with a pixel
        shuffle inside or outside of a `Sequential`.
    """
    if jax_array.size != torch_array.size:
        return None
    diffs = [
        _max_diff_of_equal_shapes(layout, torch_array)
        for layout in candidate_layouts(jax_array, torch_array.shape)
    ]
    return min(diffs, key=_relative_diff, default=None)


def _max_diff_of_equal_shapes(jax_array: Array, torch_array: Array) -> MaxDiff:
    with np.errstate(invalid="ignore"):  # inf - inf
        abs_diff = np.abs(jax_array.astype(np.float64) - torch_array)
    index = np.unravel_index(np.argmax(abs_diff), abs_diff.shape)  # argmax returns the first NaN
    return MaxDiff(
        index=tuple(map(int, index)),
        jax_value=float(jax_array[index]),
        torch_value=float(torch_array[index]),
        max_abs_diff=float(abs_diff[index]),
        value_range=value_range(torch_array),
    )


def value_range(array: Array) -> float:
    """Return the peak-to-peak range, or the largest absolute value of a constant array."""
    return float(np.ptp(array)) or float(np.max(np.abs(array)))
