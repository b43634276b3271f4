"""Parameters, multiply-adds (MACs), activations and convolutions of both networks.

The organisers count parameters as PyTorch registers them, activations and convolutions by hooks on
`torch.nn.Conv2d`, and MACs by fvcore (NTIRE 2026 report, section 3). Here PyTorch's MACs are those
of `torch.utils.flop_counter`, which sees every convolution and matrix product that runs.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

from esrjax.interop.torch_model import CudaToCpu, TorchModel, wrap_user_errors
from esrjax.io import matches_any
from esrjax.method import Method
from esrjax.nn.cost import Cost, OpCost, cost_of

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
    module, activations, modules_macs = model.module, [], [0]

    def on_conv2d(conv: Any, _: Any, output: Any) -> None:
        activations.append(output.numel())
        modules_macs[0] += output.numel() // output.shape[1] * conv.weight.numel()

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
        activations=sum(activations),
        convs=len(activations),
    )
    lost = macs[True] - modules_macs[0]
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
