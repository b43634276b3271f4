"""Weights that anybody can draw again: a function of seed, key and shape alone."""

import zlib
from collections.abc import Mapping

import numpy as np


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Tensors of a lively network: kernels keep the spread of what they are given."""
    return {key: _tensor(key, shape, seed) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    # numpy promises this stream for ever, and of no other generator.
    noise = np.random.RandomState(zlib.crc32(f"{seed} {key}".encode())).standard_normal(shape)
    if len(shape) > 1:
        return noise / np.prod(shape[1:]) ** 0.5
    return 0.1 * noise + (0.0 if key.endswith("bias") else 1.0)
