"""What a PyTorch network does with pictures: outputs, moments, gradients, steps.

Pictures come as `(N, h, w, C)`; all that is given back is as PyTorch has it, in NumPy.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from esrjax.bridge.case import Array
from esrjax.bridge.cpu import OnlyCPU, told
from esrjax.bridge.peer import Peer
from esrjax.bridge.trace import End, Moment
from esrjax.network.archive import Tensors


def output(peer: Peer, x: Array) -> Array:
    """`(N, h, w, 3) -> (N, 3, s·h, s·w)` in the precision of `x`."""
    with _running(peer, x) as given, torch.no_grad():
        return _array(peer.module(given))


def moments(peer: Peer, x: Array) -> list[Moment]:
    """What every part was given and gave, in the order in which it happened."""
    seen: list[Moment] = []
    kept: list[Any] = []  # as long as a tensor is, no other can have its id
    with contextlib.ExitStack() as hooks, _running(peer, x) as given, torch.no_grad():
        for path, part in peer.module.named_modules():
            hooks.enter_context(_watched(path, part, seen, kept))
        peer.module(given)
    return seen


def gradients(peer: Peer, x: Array, target: Array) -> tuple[Array, Tensors]:
    """Of the mean square distance to `target (N, 3, H, W)`: by the input, and by the weights.

    Weights that it does not train, or does not read in eval mode, have none.
    """
    with _running(peer, x) as given:
        given.requires_grad_()
        peer.module.zero_grad()
        (peer.module(given) - torch.from_numpy(target)).square().mean().backward()
        leaves = peer.module.named_parameters()
        reached = {key: _array(leaf.grad) for key, leaf in leaves if leaf.grad is not None}
        return _array(given.grad), reached


def has(optimiser: str) -> bool:
    """Whether this PyTorch has an optimiser of that name; Muon came with 2.9."""
    return hasattr(torch.optim, optimiser)


def stepped(
    optimiser: str,
    said: Mapping[str, Any],
    held: Tensors,
    slopes: Tensors,
    scales: Sequence[float] = (1.0,),
) -> Tensors:
    """The weights after steps of an optimiser of `torch.optim`, from scaled gradients."""
    leaves = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in held.items()}
    rule = getattr(torch.optim, optimiser)(leaves.values(), **said)
    for scale in scales:
        for key, leaf in leaves.items():
            leaf.grad = torch.tensor(scale * slopes[key])
        with _Precise():
            rule.step()
    return {key: _array(leaf) for key, leaf in leaves.items()}


class _Precise(TorchFunctionMode):
    """`torch.optim.Muon` rounds to bfloat16 on its way, which hides all but gross mistakes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _running(peer: Peer, x: Array) -> Generator[Any]:
    """The input as PyTorch wants it, with the network in its precision."""
    given = torch.tensor(np.moveaxis(x, -1, 1).copy())
    with OnlyCPU(peer.source.file, peer.notes), told(peer.source.file, "running it"):
        peer.module.to(given.dtype)
        yield given


@contextlib.contextmanager
def _watched(path: str, part: Any, seen: list[Moment], kept: list[Any]) -> Generator[None]:
    """While it is open, what the part is given and gives goes into `seen`."""
    runs = Counter[End]()

    def see(end: End, values: Any) -> None:
        tensors = _tensors(values)
        kept.extend(tensors)
        runs[end] += 1
        seen.append(
            Moment(
                path=path,
                kind=type(part).__name__,
                end=end,
                call=runs[end],
                arrays=tuple(map(_array, tensors)),
                tensors=tuple(map(id, tensors)),
            )
        )

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        see("in", (*args, *kwargs.values()))

    def leave(_: Any, args: Any, output: Any) -> None:
        see("out", output if isinstance(output, tuple | list) else (output,))

    before = part.register_forward_pre_hook(enter, with_kwargs=True)
    after = part.register_forward_hook(leave)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _tensors(values: Any) -> list[Any]:
    """The images and tokens among what a part is given, or gives."""
    tensors = (value for value in values if torch.is_tensor(value) and value.ndim)
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _array(tensor: Any) -> Array:
    """A copy: parts that work in place change what others gave."""
    return tensor.detach().numpy().copy()
