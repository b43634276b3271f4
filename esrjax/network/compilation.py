"""What XLA is told when it compiles a network."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

Given = ParamSpec("Given")
Result = TypeVar("Result")

QUICK = {"xla_backend_optimization_level": 0}  # pictures are tiny: nearly all time is compilation
# By itself XLA's CPU gives dense convolutions and products to YNNPACK, which runs on one core.
ALL_CORES = {"xla_cpu_experimental_ynn_fusion_type": ""}
ALONE = get_opaque_trace_state()  # where nothing is traced


@functools.cache
def flags() -> Mapping[str, Any]:
    """The compiler options that networks are fast with on the default platform."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=dict(ALL_CORES)).lower().compile()
    except jax.errors.JaxRuntimeError:  # a version of XLA that does not know it
        return {}
    return ALL_CORES


def jit(function: Callable[Given, Result], **options: Any) -> Callable[Given, Result]:
    """`jax.jit` with `flags`; within another compilation or a gradient it is a part of that."""
    part = jax.jit(function, **options)

    @functools.cache
    def whole() -> Callable[Given, Result]:
        return jax.jit(function, compiler_options=dict(flags()), **options)

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        compiled = whole() if get_opaque_trace_state() == ALONE else part
        return compiled(*args, **kwargs)

    return call
