"""Traces of all modules in JAX and PyTorch, their alignment, and `Divergence`, where they differ.

`jax_*` names arrays and paths of the flax.nnx network, `torch_*` those of the PyTorch network.
PyTorch's hooks fire in execution order, and that order is kept; JAX's calls are looked up by path.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.interop.array_diff import (
    FLOAT64_RTOL,
    Array,
    candidate_layouts,
    ratio,
    rebuild,
    value_range,
)
from esrjax.nn.compilation import FAST_COMPILE
from esrjax.nn.hooks import with_hooks
from esrjax.nn.state_dict import KeyMap

InOut = Literal["in", "out"]
CallKey = tuple[str, InOut]  # path of an nnx module, and its inputs or outputs
JaxCalls = Mapping[CallKey, Sequence[tuple[Array, ...]]]  # one tuple of arrays per call
JaxGrads = Mapping[str, Sequence[tuple[Array, ...]]]  # gradients of the outputs, likewise

ROOT = ""  # path of the network itself, as in `torch.nn.Module.named_modules`
GRAD_FLOOR = 1e-6  # of the largest gradient of all outputs: smaller ones are compared with this
FLOAT32_CONSTANT_RTOL = 1e-6  # of the value range: error of a constant kept in float32


@dataclass(frozen=True, kw_only=True, eq=False)
class HookEvent:
    """The inputs ("in") or outputs ("out") of one call of a PyTorch module.

    Attributes:
        path: Path of the module, `ROOT` for the network.
        class_name: Class of the module.
        io: "in" when the module's forward begins, "out" when it has ended.
        call_index: Number of the module's call, from 1; a module may run several times.
        tensors: Floating-point tensors among its inputs or outputs. A tensor may be the output of
            one module and the input of others.
        arrays: Their values at the time; modules that work in place change the tensors later.
        grads: Gradients of the outputs by position, after a backward pass.
    """

    path: str
    class_name: str
    io: InOut
    call_index: int
    tensors: tuple[Any, ...]
    arrays: tuple[Array, ...]
    grads: dict[int, Array] = field(default_factory=dict[int, Array])


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
        return self.exceeds(0.0)

    def exceeds(self, floor: float) -> bool:
        """Return whether it exceeds rounding of values as large as `floor`, too."""
        return not self.max_abs_diff <= FLOAT64_RTOL * max(self.value_range, floor)


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceEvent(HookEvent):
    """A hook event of PyTorch, compared with the call of the JAX module of the same weights.

    Attributes:
        jax_path: Path of the nnx module; None if it has no counterpart, or ran less often.
        is_wrapper: Whether `Method.torch_names` names a module inside of this one as the
            counterpart, for example of a convolution with a ReLU after it.
        diff: Largest difference; None where no arrays could be compared.
        grad_diff: Largest difference of the gradients of the outputs, likewise.
        stack_before: Paths of the PyTorch modules that run just before the event, outermost first.
        stack_after: Paths of those that run just after it. One of the two has the module itself.
    """

    jax_path: str | None
    is_wrapper: bool
    diff: MaxDiff | None
    grad_diff: MaxDiff | None
    stack_before: tuple[str, ...]
    stack_after: tuple[str, ...]

    @property
    def agrees(self) -> bool | None:
        """Whether the arrays are equal; None where no arrays could be compared."""
        return None if self.diff is None else not self.diff.differs


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
        return call_traced(nnx.merge(graphdef, state), x)[1]

    return jax.tree.map(np.asarray, run(state, x))


def call_traced(
    net: nnx.Module, x: Any, perturbations: JaxGrads | None = None
) -> tuple[Any, dict[CallKey, list[Any]]]:
    """Run the JAX network under a transformation of JAX; return its output and `JaxCalls`.

    Args:
        net: The network.
        x: Images `(N, h, w, 3)`.
        perturbations: Added to the outputs of every module: gradients with respect to these zeros
            are those of the outputs.
    """
    calls: dict[CallKey, list[Any]] = defaultdict(list)

    def on_output(path: str, output: Any) -> Any:
        if perturbations is not None:
            output = _add(output, perturbations[path][len(calls[path, "out"])])
        calls[path, "out"].append(_arrays(output))
        return output

    hooked: Any = with_hooks(
        net, on_output, lambda path, inputs: calls[path, "in"].append(_arrays(inputs))
    )
    y = hooked(x)
    calls[ROOT, "in"].append((x,))
    calls[ROOT, "out"].append((y,))
    return y, dict(calls)


def zero_perturbations(net: nnx.Module, x: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return zeros in the shapes of the outputs of all modules, for `call_traced`."""
    calls = jax.eval_shape(lambda x: call_traced(net, x)[1], x)
    return {
        path: [tuple(jnp.zeros(array.shape, array.dtype) for array in arrays) for arrays in outputs]
        for (path, io), outputs in calls.items()
        if io == "out" and path != ROOT
    }


def _add(output: Any, perturbations: Sequence[Any]) -> Any:
    """Add to the floating-point arrays of a module's output, see `_arrays`."""
    if not isinstance(output, tuple | list):
        return output + perturbations[0] if perturbations else output
    remaining = iter(perturbations)
    return rebuild(output, [v + next(remaining) if _arrays(v) else v for v in output])


def align(
    hook_events: Iterable[HookEvent],
    jax_calls: JaxCalls,
    key_map: KeyMap,
    jax_grads: JaxGrads | None = None,
) -> list[TraceEvent]:
    """Pair every hook event of PyTorch with the call of the corresponding JAX module.

    Args:
        hook_events: PyTorch's events in execution order, from `torch_optim.record_events`.
        jax_calls: JAX's calls, from `record_calls`.
        key_map: Maps PyTorch's module paths to those of nnx (`Method.torch_names`).
        jax_grads: JAX's gradients of the outputs of all modules, to compare these too.

    Returns:
        One event per hook event, in PyTorch's order.
    """
    hook_events, trace_events = list(hook_events), list[TraceEvent]()
    jax_paths = {path: key_map.to_flax(path) for path in sorted({e.path for e in hook_events})}
    # A module comes after those that contain it, so that these are the innermost.
    innermost = {jax_path: path for path, jax_path in jax_paths.items()}
    stack: tuple[str, ...] = ()
    for hook in hook_events:
        stack_before = stack
        stack = (*stack, hook.path) if hook.io == "in" else stack[:-1]
        jax_path = jax_paths[hook.path]
        calls = jax_calls.get((jax_path, hook.io), ())
        has_run = hook.call_index <= len(calls)
        event = TraceEvent(
            **vars(hook),
            jax_path=jax_path if has_run else None,
            is_wrapper=hook.path == jax_path and innermost[jax_path] != hook.path,
            diff=_largest_diff(calls[hook.call_index - 1], hook.arrays) if has_run else None,
            grad_diff=_grad_diff(hook, (jax_grads or {}).get(jax_path, ())) if has_run else None,
            stack_before=stack_before,
            stack_after=stack,
        )
        trace_events.append(event)
    return trace_events


def _arrays(values: Any) -> tuple[Any, ...]:
    """Return the floating-point arrays, without scalars, among a module's inputs or outputs."""
    values = values if isinstance(values, tuple | list) else (values,)
    arrays = [value for value in values if isinstance(value, jax.Array) and value.ndim]
    return tuple(array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating))


def _largest_diff(jax_arrays: Sequence[Array], torch_arrays: Sequence[Array]) -> MaxDiff | None:
    """Return the relatively largest difference among the arrays at the same position."""
    diffs = map(max_diff, jax_arrays, torch_arrays)
    return max((diff for diff in diffs if diff is not None), key=_relative_diff, default=None)


def _grad_diff(hook: HookEvent, jax_grads: Sequence[tuple[Array, ...]]) -> MaxDiff | None:
    """Return the relatively largest difference of the gradients of a module's outputs."""
    if hook.io == "in" or hook.call_index > len(jax_grads):
        return None
    grads = jax_grads[hook.call_index - 1]
    pairs = [(grads[i], grad) for i, grad in hook.grads.items() if i < len(grads)]
    diffs = [diff for pair in pairs if (diff := max_diff(*pair)) is not None]
    return max(diffs, key=_relative_diff, default=None)


def _relative_diff(diff: MaxDiff) -> float:
    return ratio(diff.max_abs_diff, diff.value_range)


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


# --- the first divergence ---


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first difference, in PyTorch's execution order, between the two networks.

    Attributes:
        cause: "module" if a module has the same inputs and other outputs; "code" if the difference
            arises in the code between two modules; "gradient" if all inputs and outputs agree, and
            the gradient of a module's output differs: it arises in the code after the module.
        torch_path: PyTorch's path of the module at which it shows.
        jax_path: nnx path of the same module.
        class_name: Its class in PyTorch.
        call_index: Number of the module's call, from 1.
        io: Whether its inputs ("in") or outputs ("out") differ.
        last_agreeing: PyTorch's path of the last module before it whose outputs agree.
        enclosing: PyTorch's path of the module whose `forward` contains the difference.
        torch_only: Modules, with their classes, that ran in between and exist in PyTorch only.
        persists: Whether the modules that enclose or consume the array differ as well; if not, the
            rest of the network hides the difference, at least for these images.
        diff: The largest difference there.
    """

    cause: Literal["module", "code", "gradient"]
    torch_path: str
    jax_path: str
    class_name: str
    call_index: int
    io: InOut
    last_agreeing: str | None
    enclosing: str
    torch_only: tuple[str, ...]
    persists: bool
    diff: MaxDiff

    @property
    def location(self) -> str:
        """Where the difference arises, in one line."""
        module = self.torch_path or "the network"
        if self.cause == "module":
            jax_name = f", JAX {self.jax_path}" if self.jax_path != self.torch_path else ""
            call = f", call {self.call_index}" if self.call_index > 1 else ""
            return f"in {module} ({self.class_name}{jax_name}){call}"
        if self.cause == "gradient":
            enclosing = self.enclosing or "the network"
            return f"in the backward pass of {enclosing}, after {module} ({self.class_name})"
        after = f"after {self.last_agreeing}, " if self.last_agreeing else ""
        before = f"the end of {module}" if self.io == "out" else self.torch_path
        torch_only = f"; only PyTorch has {', '.join(self.torch_only)} there"
        return (
            f"in the forward of {self.enclosing or 'the network'}, {after}before {before}"
            + torch_only * bool(self.torch_only)
        )

    @property
    def description(self) -> str:
        """Both values and their difference, in one line."""
        diff, index = self.diff, ", ".join(map(str, self.diff.index))
        relative = diff.max_abs_diff / diff.value_range if diff.value_range else float("inf")
        hint = "; often a constant kept in float32" if relative < FLOAT32_CONSTANT_RTOL else ""
        label = "input" if self.io == "in" else "output"
        label = f"gradient of the {label}" if self.cause == "gradient" else label
        return (
            f"{label} at [{index}] is {diff.jax_value:.9g} in JAX and "
            f"{diff.torch_value:.9g} in PyTorch: "
            f"difference {diff.max_abs_diff:.2e}, {relative:.1e} of the value range{hint}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `location` and `description` in plain types, for JSON."""
        return {**asdict(self), "location": self.location, "description": self.description}


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The comparison of all modules of both networks.

    Attributes:
        num_compared: Inputs and outputs that were compared.
        first_divergence: The first difference that persists, or else the first of all, or else
            the last of gradients, where the backward pass meets it first; None if all inputs,
            outputs and their gradients agree.
        hidden_diffs: Modules that differ while the modules around and after them agree.
        boundary_diffs: Wrappers of which the same holds; these are no divergence.
        torch_only: Modules that ran in PyTorch only.
        jax_only: Modules that ran in JAX only.
        shape_mismatch: Modules whose arrays have no common layout and are not compared.
    """

    num_compared: int
    first_divergence: Divergence | None
    hidden_diffs: tuple[str, ...]
    boundary_diffs: tuple[str, ...]
    torch_only: tuple[str, ...]
    jax_only: tuple[str, ...]
    shape_mismatch: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields in plain types, for JSON."""
        divergence = self.first_divergence and self.first_divergence.as_dict()
        return {**vars(self), "first_divergence": divergence}


def summarize(events: Sequence[TraceEvent], jax_paths: Sequence[str]) -> LayerReport:
    """Summarize an aligned trace.

    Args:
        events: Result of `trace.align`, in PyTorch's execution order.
        jax_paths: Paths of the JAX modules that ran.
    """
    indices = [index for index, event in enumerate(events) if event.agrees is False]
    persistent = [index for index in indices if _persists(index, events)]
    hidden = [index for index in indices if index not in persistent]
    boundaries = [index for index in hidden if events[index].is_wrapper]
    hidden = [index for index in hidden if index not in boundaries]
    first = next(iter(persistent or hidden), None)
    uncompared = [event for event in events if event.diff is None]
    return LayerReport(
        num_compared=len(events) - len(uncompared),
        first_divergence=_gradient_divergence(events)
        if first is None
        else _make_divergence(events, first, persists=bool(persistent)),
        hidden_diffs=_unique_labels(events[i] for i in hidden),
        boundary_diffs=_unique_labels(events[i] for i in boundaries),
        torch_only=_unique_labels(event for event in uncompared if event.jax_path is None),
        jax_only=tuple(sorted(set(jax_paths) - {event.jax_path for event in events})),
        shape_mismatch=_unique_labels(event for event in uncompared if event.jax_path is not None),
    )


def _unique_labels(events: Iterable[TraceEvent]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{event.path} ({event.class_name})" for event in events))


def _persists(index: int, events: Sequence[TraceEvent]) -> bool:
    """Return whether the modules that enclose or consume the differing array differ as well.

    A difference that vanishes may be one of boundaries: PyTorch applies a ReLU inside of a module
    and JAX after it. Or the images and weights hide it, so that it is reported all the same.
    """
    event, later = events[index], events[index + 1 :]
    outputs = [e for e in later if e.io == "out"]
    dependents = [next(e for e in outputs if e.path == path) for path in event.stack_after]
    if event.io == "out":
        ids = set(map(id, event.tensors))
        dependents += [e for e in later if e.io == "in" and ids & set(map(id, e.tensors))]
    return not any(e.agrees for e in dependents)


def _make_divergence(events: Sequence[TraceEvent], index: int, *, persists: bool) -> Divergence:
    event = events[index]
    last = max((i for i in range(index) if events[i].agrees), default=-1)
    agreeing = None if last == -1 else events[last]
    same_input = agreeing and (agreeing.path, agreeing.io, event.io) == (event.path, "in", "out")
    assert event.diff is not None and event.jax_path is not None
    return Divergence(
        cause="module" if same_input else "code",
        torch_path=event.path,
        jax_path=event.jax_path,
        class_name=event.class_name,
        call_index=event.call_index,
        io=event.io,
        last_agreeing=agreeing.path if agreeing and agreeing.io == "out" else None,
        enclosing=_innermost_common(agreeing.stack_after if agreeing else (), event.stack_before),
        torch_only=_unique_labels(e for e in events[last + 1 : index] if e.jax_path is None),
        persists=persists,
        diff=event.diff,
    )


def _gradient_divergence(events: Sequence[TraceEvent]) -> Divergence | None:
    """Return the first difference of gradients that the backward pass meets."""
    diffs = [event.grad_diff for event in events if event.grad_diff is not None]
    floor = GRAD_FLOOR * max((diff.value_range for diff in diffs), default=0.0)
    for event in reversed(events):
        diff, jax_path = event.grad_diff, event.jax_path
        if diff is not None and jax_path is not None and diff.exceeds(floor):
            return Divergence(
                cause="gradient",
                torch_path=event.path,
                jax_path=jax_path,
                class_name=event.class_name,
                call_index=event.call_index,
                io="out",
                last_agreeing=None,
                enclosing=[ROOT, *event.stack_after][-1],
                torch_only=(),
                persists=True,
                diff=diff,
            )
    return None


def _innermost_common(stack_a: tuple[str, ...], stack_b: tuple[str, ...]) -> str:
    """Return the innermost module that both stacks have in common."""
    pairs = zip(stack_a, stack_b, strict=False)
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return [ROOT, *(path for path, _ in common)][-1]
