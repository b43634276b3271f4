"""Context managers that count XLA compilations and disable the persistent compilation cache."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_OPTION = "jax_enable_compilation_cache"


@contextmanager
def count_compilations() -> Generator[list[float]]:
    """Yield a list that receives the seconds of each XLA compilation inside the block."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextmanager
def no_persistent_cache() -> Generator[None]:
    """Neither read nor write JAX's persistent compilation cache inside the block.

    A compilation that is answered from the cache would be reported as almost free.
    """
    previous = getattr(jax.config, CACHE_OPTION)
    _set_cache_enabled(False)
    try:
        yield
    finally:
        _set_cache_enabled(previous)


def _set_cache_enabled(enabled: bool) -> None:
    jax.config.update(CACHE_OPTION, enabled)
    compilation_cache.reset_cache()  # JAX reads the option once, until the cache is reset
