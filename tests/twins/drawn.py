"""Reproducible random weights: a function of seed, key and shape alone."""

import zlib
from collections.abc import Mapping

import numpy as np


def random_state_dict(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random tensors by key; kernels roughly preserve the variance of their inputs."""
    return {key: _tensor(key, shape, seed) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    # RandomState is the only generator whose stream NumPy guarantees.
    noise = np.random.RandomState(zlib.crc32(f"{seed} {key}".encode())).standard_normal(shape)
    if len(shape) > 1:
        return noise / np.prod(shape[1:]) ** 0.5
    return 0.1 * noise + (0.0 if key.endswith("bias") else 1.0)
