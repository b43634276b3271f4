"""Calls of networks: `jax.jit` with compiler options, platforms, errors of a plugin's code."""

import functools
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast

import jax
from jax import lax
from jax.extend.core import get_opaque_trace_state

from esrjax.errors import PluginError, UserError, error_summary

P = ParamSpec("P")
R = TypeVar("R")

# For checks over tiny images, whose time is nearly all compilation.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
# By default XLA's CPU backend gives dense convolutions and matmuls to YNNPACK, which runs on one
# core; without it they use all cores.
DISABLE_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
# JAX keeps the executable and the trace of every shape for ever, some 3.5 MB for a network and a
# size of images.
MAX_PROGRAMS = 128
# Context manager: a trace has the branches of this platform ("cpu", "cuda", "tpu") alone.
single_platform = cast("Any", jax.make_user_context(None))
# Context manager: `loop_body(True)` while the body of a `lax.scan` is traced, where XLA's CPU
# backend needs convolutions in another form (`conv_lowering`).
loop_body = cast("Any", jax.make_user_context(False))
_programs: set[Hashable] = set()  # function and shapes of what was compiled since the last clearing


@functools.cache
def compiler_options() -> Mapping[str, Any]:
    """Return the compiler options under which networks are fast on the default platform.

    Empty on other platforms than the CPU, and where this version of XLA lacks the option.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=dict(DISABLE_YNNPACK)).lower().compile()
    except jax.errors.JaxRuntimeError:  # this version of XLA has no such option
        return {}
    return DISABLE_YNNPACK


def platform_dependent(
    *args: Any, default: Callable[..., Any], **branches: Callable[..., Any]
) -> Any:
    """Return `lax.platform_dependent`, or inside of `single_platform` the branch of that platform.

    The trace of the first has every branch, so that it can be lowered for each platform. Its
    gradient has what each of them saves for the backward pass.

    Args:
        *args: Arguments of the branches.
        default: The branch of all platforms that have none.
        **branches: Platform -> its branch.
    """
    if (platform := single_platform.value) is not None:
        return branches.get(platform, default)(*args)
    return lax.platform_dependent(*args, default=default, **branches)


def jit(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Return `jax.jit(function)` with `compiler_options`, and memory that stays bounded.

    All functions that this returns have together at most `MAX_PROGRAMS` executables; the next one
    clears the caches of JAX, so that what is still called is compiled once more.

    JAX refuses compiler options of a function that is called while another one is traced (an outer
    jit, a gradient); there the plain `jax.jit(function)` is called, a part of that computation.

    Args:
        function: The function to compile.
        **options: Keyword arguments of `jax.jit`.
    """
    nested_jit = jax.jit(function, **options)

    @functools.cache  # at the first call, since compiler_options() starts a backend
    def top_level_jit() -> Callable[P, R]:
        return jax.jit(function, compiler_options=dict(compiler_options()), **options)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_tracing():
            return nested_jit(*args, **kwargs)
        _bound_programs(function, (*args, *kwargs.values()))
        return top_level_jit()(*args, **kwargs)

    return call


def _bound_programs(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Clear JAX's caches if a call needs one executable more than `MAX_PROGRAMS`.

    Calls are told apart by the shapes of the images among the arguments. States are not looked at:
    a training step has hundreds of arrays, whose shapes do not change from call to call.
    """
    shapes = tuple(getattr(argument, "shape", None) for argument in arguments)
    program = (id(function), shapes)
    if program not in _programs and len(_programs) >= MAX_PROGRAMS:
        jax.clear_caches()
        _programs.clear()
    _programs.add(program)


def call_network(net: Any, lr: jax.Array) -> jax.Array:
    """Return `net(lr)`, for a call that is traced.

    Args:
        net: A network of a plugin.
        lr: LR images, (n, h, w, 3).

    Raises:
        PluginError: The network raises an error, or returns no array.
    """
    try:
        sr = net(lr)
    except UserError:
        raise
    except Exception as error:  # code of a plugin raises anything
        problem, cause = error_summary(error), error
    else:
        if isinstance(sr, jax.Array):
            return sr
        problem, cause = f"it returns {type(sr).__name__}", None
    raise PluginError(
        f"The network fails on LR images of shape {lr.shape}: {problem}",
        rule="a network returns SR images (n, s·h, s·w, 3) for LR images (n, h, w, 3), of any size "
        "from Method.min_side on",
        location=f"{type(net).__module__}.{type(net).__qualname__}",
        remedy="correct the network, or Method.min_side; `esrjax method check NAME` checks both",
    ) from cause


def is_tracing() -> bool:
    """Return whether the caller runs while JAX traces a function."""
    return get_opaque_trace_state() != _no_trace_state()


@functools.cache
def _no_trace_state() -> Any:
    """Return JAX's trace state outside of every trace.

    Trace state is local to a thread, so that of a new thread is clean. The state of this thread, or
    at import, may be that of a trace: this module may be imported by a function that JAX traces.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(get_opaque_trace_state).result()
