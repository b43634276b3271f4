"""Compilations by XLA: how many there are, and none of them answered from a cache on disk."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

EVENT = "/jax/core/compile/backend_compile_duration"
SWITCH = "jax_enable_compilation_cache"


@contextmanager
def counted() -> Generator[list[float]]:
    """A list that gets the seconds of every program that XLA compiles meanwhile."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == EVENT:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextmanager
def uncached() -> Generator[None]:
    """JAX's persistent compilation cache is neither read nor written meanwhile."""
    before = getattr(jax.config, SWITCH)
    _switch(False)
    try:
        yield
    finally:
        _switch(before)


def _switch(on: bool) -> None:
    jax.config.update(SWITCH, on)
    compilation_cache.reset_cache()  # JAX asks the switch once, and then no more
