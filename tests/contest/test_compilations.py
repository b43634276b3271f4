"""Counting of compilations, and compilation without the persistent cache."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from esrjax.contest import clock
from esrjax.contest.compilations import count_compilations, no_persistent_cache
from esrjax.network.compilation import compiler_options

CACHE_EVERYTHING = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def image(side: int) -> np.ndarray:
    return np.ones((1, side, side, 3), np.float32)


@pytest.mark.parametrize(("sides", "compilations"), [((8,), 1), ((8, 8), 1), ((8, 9), 2)])
def test_each_image_size_is_one_compilation(sides, compilations):
    double = jax.jit(lambda lr: lr * 2)
    with count_compilations() as seconds:
        for side in sides:
            double(image(side))
    assert len(seconds) == compilations and min(seconds) > 0
    double(image(10))
    assert len(seconds) == compilations  # the listener is gone


@pytest.fixture
def cache_dir(tmp_path):
    """Folder of a persistent cache that keeps every executable."""
    previous = {name: getattr(jax.config, name) for name in CACHE_EVERYTHING}
    options = CACHE_EVERYTHING | {"jax_compilation_cache_dir": str(tmp_path)}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in previous.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_timed_networks_bypass_the_persistent_cache(cache_dir):
    compiler_options()
    jax.jit(lambda lr: lr * 3)(image(8))
    num_cached = len(list(cache_dir.iterdir()))
    assert num_cached  # otherwise the test proves nothing
    clock.compile_forward(lambda lr: lr * 4, image(8))
    with no_persistent_cache():
        jax.jit(lambda lr: lr * 5)(image(8))
    assert len(list(cache_dir.iterdir())) == num_cached
    jax.jit(lambda lr: lr * 6)(image(8))
    assert len(list(cache_dir.iterdir())) > num_cached
