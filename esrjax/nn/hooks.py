"""Intermediate outputs of a network by module path, and forward hooks."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

from esrjax.errors import NotFound

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


def forward_with_taps(net: nnx.Module, x: Array, paths: Sequence[str]) -> tuple[Array, list[Array]]:
    """Return the output of a network, and the outputs of some of its submodules.

    Args:
        net: The network.
        x: Its input.
        paths: Paths of submodules; `block_6:1` is the second output of `block_6`.

    Raises:
        NotFound: A path is not that of a submodule that runs; lists those that do.
    """
    if not paths:
        return net(x), []  # pyright: ignore[reportCallIssue] # networks are callable
    module_paths = {path.partition(":")[0] for path in paths}
    sr, outputs = taps(net, x, module_paths)
    if not module_paths <= outputs.keys():
        _, outputs = taps(net, x)  # once more with all of them, for the error
    return sr, [_tap_output(path, outputs) for path in paths]


def _tap_output(path: str, outputs: Mapping[str, Any]) -> Array:
    module_path, _, index = path.partition(":")
    output = outputs.get(module_path)
    if isinstance(output, tuple):
        output = dict(enumerate(output)).get(int(index or 0))
    if output is None:
        raise NotFound(
            f"Unknown tap {path!r}",
            rule="a tap is the path of a submodule that runs, PATH:N for the N-th of its outputs",
            location=", ".join(list(outputs)[:16]),
            remedy="choose one of the listed paths",
        )
    return output


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
