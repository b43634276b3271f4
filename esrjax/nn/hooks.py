"""Intermediate outputs of a network by module path, and forward hooks."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

Net = TypeVar("Net", bound=nnx.Module)
Hook = Callable[[str, Any], Any]
HEAD_PREFIX = "head_"
SCOPE_FORMAT = "<{}>"  # tells named scopes of module paths from those of JAX and of networks


def taps(
    net: nnx.Module, x: Array, paths: Collection[str] | None = None
) -> tuple[Array, dict[str, Any]]:
    """Run a network and return its output together with those of its submodules.

    Args:
        net: A network.
        x: Its input.
        paths: Paths of the submodules of which outputs are returned; all by default.

    Returns:
        The output, and outputs by module path (`block_1.c1`). Of a submodule that runs more than
        once it is the last output.
    """
    outputs: dict[str, Any] = {}
    y: Array = with_hooks(net, outputs.__setitem__, paths=paths)(x)  # pyright: ignore[reportCallIssue] # networks are callable
    return y, outputs


def heads(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Return the SR images of further scales by name: outputs of submodules called `head_NAME`.

    Args:
        outputs: As `taps` returns them.
    """
    return {
        path.removeprefix(HEAD_PREFIX): output
        for path, output in outputs.items()
        if path.startswith(HEAD_PREFIX) and "." not in path
    }


def with_hooks(
    net: Net, on_output: Hook, on_input: Hook | None = None, paths: Collection[str] | None = None
) -> Net:
    """Return a copy of `net` with hooks on its submodules, as PyTorch's `register_forward_hook`.

    Each hooked submodule is also traced in a named scope of its path (`SCOPE_FORMAT`), by which
    `esrjax.nn.cost` assigns ops to modules.

    Args:
        net: A network.
        on_output: Called as `on_output(path, output)` after a submodule has run, innermost first. A
            result other than None replaces the output.
        on_input: Called as `on_input(path, inputs)` before it runs, with a tuple of its arguments.
        paths: Paths of the submodules to hook; all by default.
    """
    copy = nnx.clone(net)
    for path, module in list(nnx.iter_modules(copy)):
        name = ".".join(map(str, path))
        if name and callable(module) and (paths is None or name in paths):
            _add_hooks(module, name, on_output, on_input)
    return copy


def _add_hooks(module: nnx.Module, path: str, on_output: Hook, on_input: Hook | None) -> None:
    cls: Any = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if on_input is not None:
            on_input(path, (*args, *kwargs.values()))
        with jax.named_scope(SCOPE_FORMAT.format(path)):
            output = cls.__call__(self, *args, **kwargs)
        replacement = on_output(path, output)
        return output if replacement is None else replacement

    # Python looks `__call__` up on the class, so that a hook needs a subclass. nnx modules refuse
    # ordinary assignment to `__class__`.
    hooked_cls = type(cls.__name__, (cls,), {"__call__": call})
    object.__setattr__(module, "__class__", hooked_cls)
