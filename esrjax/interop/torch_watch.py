"""What a PyTorch network does while it runs: `Exercise`, the parts that are used, and `Counts`.

A ReLU that never opens, a saturated sigmoid or a module whose output is constant hides mistakes
before it. The network is watched: its modules by hooks, its functions by a `TorchFunctionMode`.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from esrjax.interop.array_diff import Array
from esrjax.interop.torch_model import CudaToCpu, TorchModel, wrap_user_errors
from esrjax.io import matches_any
from esrjax.method import Method
from esrjax.nn.cost import Cost, OpCost, cost_of

MIN_VARIATION = 1e-7  # of the largest value: peak-to-peak range of an output that varies

# Names of functions in torch, torch.Tensor and torch.nn.functional. Piecewise linear functions have
# another gradient for negative inputs; clamps below their minimum.
_CLAMPS = ("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_")
_RECTIFIERS = frozenset(("relu", "relu_", *_CLAMPS))
_PIECEWISE = frozenset("relu relu_ leaky_relu leaky_relu_ prelu rrelu".split())
_SATURATING = frozenset(
    "sigmoid sigmoid_ tanh tanh_ softmax log_softmax hardsigmoid hardtanh relu6 erf".split()
)


@dataclass(frozen=True, kw_only=True)
class ExerciseReport:
    """Parts of the PyTorch network that no image and no weights have exercised.

    Attributes:
        closed: ReLUs (and clamps at a minimum) that never opened, so that whatever comes before
            them was not compared.
        constant: Modules and saturating functions whose output never varied.
        one_sided: Piecewise linear functions whose input had one sign everywhere.
        dead_units: Piecewise linear functions of which single channels were never positive.
        zero_gradients: Weights whose gradient was zero everywhere.
    """

    closed: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()
    one_sided: tuple[str, ...] = ()
    dead_units: tuple[str, ...] = ()
    zero_gradients: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is closed or constant, so that a mistake could hide behind it."""
        return not (self.closed or self.constant)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        return {**asdict(self), "passed": self.passed}


@dataclass(kw_only=True)
class _Units:
    """Signs that the channels of a function's input have had: bool `(C,)`."""

    is_positive: Any
    is_negative: Any


@dataclass(kw_only=True, eq=False)
class Exercise:
    """What was seen in all runs so far. Functions and modules are named by place, see `_place`."""

    units: dict[str, _Units] = field(default_factory=dict[str, _Units])
    variation: dict[str, float] = field(default_factory=dict[str, float])
    max_grads: dict[str, float] = field(default_factory=dict[str, float])

    def watch(self) -> Watch:
        """Return the context of one run of the network."""
        return Watch(self)

    def add_output(self, place: str, arrays: Iterable[Array]) -> None:
        """Record how much the output of a module or function varies, of its largest value."""
        for array in arrays:
            if array.size > 1:
                low, high = float(array.min()), float(array.max())
                variation = (high - low) / max(abs(low), abs(high), np.finfo(float).tiny)
                self.variation[place] = max(self.variation.get(place, 0.0), variation)

    def add_signs(self, place: str, values: Array) -> None:
        """Record which channels of a function's input have positive and negative values."""
        if values.ndim > 1:  # (N, C), (N, C, h, w); tokens are (N, L, C)
            values = np.moveaxis(values, 2 if values.ndim == 3 else 1, -1)
            values = values.reshape(-1, values.shape[-1])
        else:
            values = values.reshape(-1, 1)
        signs = _Units(is_positive=(values > 0).any(0), is_negative=(values < 0).any(0))
        known = self.units.setdefault(place, signs)
        if known.is_positive.shape == signs.is_positive.shape:
            known.is_positive |= signs.is_positive
            known.is_negative |= signs.is_negative

    def add_gradients(self, max_grads: dict[str, float]) -> None:
        """Record the largest absolute gradient of every weight."""
        for key, value in max_grads.items():
            self.max_grads[key] = max(self.max_grads.get(key, 0.0), value)

    def report(self) -> ExerciseReport:
        """Return what no run has exercised."""
        one_sided = {
            place: units
            for place, units in self.units.items()
            if not (units.is_positive.any() and units.is_negative.any())
        }
        closed = [
            place
            for place, units in one_sided.items()
            if not units.is_positive.any() and place.partition(" ")[0] in _RECTIFIERS
        ]
        floor = MIN_VARIATION * max(self.max_grads.values(), default=0.0)
        return ExerciseReport(
            closed=tuple(closed),
            constant=tuple(p for p, value in self.variation.items() if value < MIN_VARIATION),
            one_sided=tuple(place for place in one_sided if place not in closed),
            dead_units=tuple(
                f"{place}: {int((~units.is_positive).sum())} of {len(units.is_positive)} channels"
                for place, units in self.units.items()
                if place not in one_sided and not units.is_positive.all()
            ),
            zero_gradients=tuple(k for k, value in self.max_grads.items() if value <= floor * 1e-6),
        )


class Watch(TorchFunctionMode):
    """Context manager that records functions and modules of one run in an `Exercise`.

    Attributes:
        stack: Paths of the modules that run, outermost first; kept by the hooks of the run.
    """

    def __init__(self, exercise: Exercise):
        super().__init__()
        self.exercise = exercise
        self.stack: list[str] = []
        self._counts = Counter[tuple[str, str]]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        x = args[0] if args else kwargs.get("input")
        if torch.is_tensor(x) and x.is_floating_point():
            threshold = _threshold(name, args, kwargs)
            if threshold is not None:
                self.exercise.add_signs(self._place(name), x.detach().numpy() - threshold)
            elif name in _SATURATING:
                output = func(*args, **kwargs)
                self.exercise.add_output(self._place(name), [output.detach().numpy()])
                return output
        return func(*args, **kwargs)

    def _place(self, name: str) -> str:
        """Return the name of a function with the module that calls it, and its number there."""
        module = self.stack[-1] if self.stack else ""
        self._counts[module, name] += 1
        count = self._counts[module, name]
        number = f" (call {count})" if count > 1 else ""
        return f"{name}{number} in {module or 'the network'}"


def _threshold(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Return the input at which a piecewise linear function changes its gradient, or None."""
    if name in _CLAMPS:
        bound = args[1] if len(args) > 1 else kwargs.get("min")
        return float(bound) if isinstance(bound, int | float) else None
    return 0.0 if name in _PIECEWISE else None


# --- counts ---
#
# The organisers count parameters as PyTorch registers them, activations and convolutions by hooks
# on `torch.nn.Conv2d`, and MACs by fvcore (NTIRE 2026 report, section 3). Here PyTorch's MACs are
# those of `torch.utils.flop_counter`, which sees all convolutions and matrix products that run.

_CONVOLUTIONS = ("conv2d", "conv1d", "conv_general_dilated")
_MATMULS = ("linear", "matmul", "einsum", "dot_general")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one network for one image.

    Attributes:
        params: Elements of all parameters.
        conv_macs: Multiply-adds of convolutions that run.
        matmul_macs: Multiply-adds of matrix products that run, linear layers included.
        activations: Elements that 2-D convolutions write, as the organisers count.
        convs: 2-D convolutions that run, as the organisers count.
    """

    params: int
    conv_macs: int
    matmul_macs: int
    activations: int
    convs: int


@dataclass(frozen=True, kw_only=True)
class CountsReport:
    """Counts of both networks.

    Attributes:
        image_size: LR size (h, w) of the image.
        jax: Those of the JAX network, from `esrjax.nn.cost`.
        torch: Those of the PyTorch network.
        not_counted: What the organisers' counter loses.
    """

    image_size: tuple[int, int]
    jax: Counts
    torch: Counts
    not_counted: tuple[str, ...]

    @property
    def differences(self) -> dict[str, tuple[int, int]]:
        """JAX's and PyTorch's counts that differ, by name."""
        jax_counts, torch_counts = asdict(self.jax), asdict(self.torch)
        pairs = {name: (count, torch_counts[name]) for name, count in jax_counts.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `differences` in plain types, for JSON."""
        return {**asdict(self), "differences": self.differences}


def compare_counts(
    method: Method, net: nnx.Module, model: TorchModel, image_size: tuple[int, int]
) -> CountsReport:
    """Count both networks, in eval mode.

    Args:
        method: The method; its corrections of the count apply.
        net: The JAX network.
        model: The PyTorch network, with the same weights.
        image_size: LR size (h, w).

    Raises:
        TorchModelError: If the PyTorch network's code raises an error.
        UncountedOp: If the JAX network contains an op of unknown cost.
    """
    cost = cost_of(method, net, image_size=image_size)
    torch_counts, functional_convs = _torch_counts(model, image_size)
    jax_counts = Counts(
        params=cost.params,
        conv_macs=sum(op.macs_full for op in cost.ops if op.op in _CONVOLUTIONS),
        matmul_macs=sum(op.macs_full for op in cost.ops if op.op in _MATMULS),
        activations=cost.activations,
        convs=cost.convs,
    )
    return CountsReport(
        image_size=image_size,
        jax=jax_counts,
        torch=torch_counts,
        not_counted=(*_lost_ops(method, cost), *functional_convs),
    )


def _torch_counts(model: TorchModel, image_size: tuple[int, int]) -> tuple[Counts, list[str]]:
    """Return PyTorch's counts, and a line on convolutions that are no `torch.nn.Conv2d`."""
    module, convs = model.module, list[tuple[int, int]]()  # activations and MACs

    def on_conv2d(conv: Any, _: Any, output: Any) -> None:
        convs.append((output.numel(), output.numel() // output.shape[1] * conv.weight.numel()))

    with contextlib.ExitStack() as stack:
        for conv in module.modules():
            if isinstance(conv, torch.nn.Conv2d):
                stack.enter_context(conv.register_forward_hook(on_conv2d))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        stack.enter_context(CudaToCpu(model.source.file, model.notes))
        stack.enter_context(wrap_user_errors(model.source.file, "Running it"))
        module.float()(torch.zeros(1, 3, *image_size))
    macs: dict[bool, int] = defaultdict(int)  # by whether the op is a convolution
    for op, flops in counter.get_flop_counts().get("Global", {}).items():
        macs["conv" in str(op)] += flops // 2
    counts = Counts(
        params=sum(param.numel() for param in module.parameters()),
        conv_macs=macs[True],
        matmul_macs=macs[False],
        activations=sum(activations for activations, _ in convs),
        convs=len(convs),
    )
    lost = macs[True] - sum(conv_macs for _, conv_macs in convs)
    line = f"{lost:,} MACs of convolutions that are no torch.nn.Conv2d: no activations"
    return counts, [line] if lost else []


def _lost_ops(method: Method, cost: Cost) -> list[str]:
    """Return one line for each kind of work that the organisers' counter does not see."""
    options = method.cost_options
    groups: dict[str, list[OpCost]] = defaultdict(list)
    for op in cost.ops:
        if op.macs < op.macs_full:
            groups[f"{op.op}, for which fvcore has no exact rule"].append(op)
        elif reason := _reason(op.path, options.excluded or {}):
            groups[f"{op.op}, {reason}"].append(op)
        elif not op.is_needed and not matches_any(op.path, options.included or ()):
            groups[f"{op.op} whose output is not returned"].append(op)
    return [_line(reason, ops) for reason, ops in groups.items()]


def _reason(path: str, patterns: Mapping[str, str]) -> str | None:
    return next((reason for glob, reason in patterns.items() if matches_any(path, (glob,))), None)


def _line(reason: str, ops: Iterable[OpCost]) -> str:
    ops = list(ops)
    lost = sum(op.macs_full - (op.macs if op.macs < op.macs_full else 0) for op in ops)
    more = f" and {len(ops) - 1} more" if len(ops) > 1 else ""
    return f"{lost:,} MACs of {reason}: {ops[0].path or 'the network'}{more}"
