"""Compilations are counted, and those that are timed are none that a disk remembers."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from esrjax.contest import clock
from esrjax.contest.compilations import counted, uncached
from esrjax.network.compilation import flags

KEPT = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def picture(side: int) -> np.ndarray:
    return np.ones((1, side, side, 3), np.float32)


@pytest.mark.parametrize(("sides", "programs"), [((8,), 1), ((8, 8), 1), ((8, 9), 2)])
def test_a_size_is_a_program(sides, programs):
    run = jax.jit(lambda lr: lr * 2)
    with counted() as seconds:
        for side in sides:
            run(picture(side))
    assert len(seconds) == programs and min(seconds) > 0
    run(picture(10))
    assert len(seconds) == programs  # nobody listens any more


@pytest.fixture
def disk(tmp_path):
    """The folder of a persistent cache that keeps every program."""
    before = {name: getattr(jax.config, name) for name in KEPT}
    for name, value in (KEPT | {"jax_compilation_cache_dir": str(tmp_path)}).items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_what_is_timed_is_compiled_anew(disk):
    flags()
    jax.jit(lambda lr: lr * 3)(picture(8))
    kept = len(list(disk.iterdir()))
    assert kept  # or this proves nothing
    clock.compiled(lambda lr: lr * 4, picture(8))
    with uncached():
        jax.jit(lambda lr: lr * 5)(picture(8))
    assert len(list(disk.iterdir())) == kept
    jax.jit(lambda lr: lr * 6)(picture(8))
    assert len(list(disk.iterdir())) > kept
