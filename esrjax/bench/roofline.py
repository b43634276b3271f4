"""Roofline of a network: its minimum runtime from MACs, memory traffic and measured machine peaks.

Source: the roofline model (Williams et al., 2009, doi:10.1145/1498765.1498785).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.bench.timing import time_interleaved
from esrjax.method import Method
from esrjax.nn.compilation import compiler_options
from esrjax.nn.cost import cost_of

# Platform -> bytes that the copy reads (and as many that it writes), and side of the square
# matrices of the matmul, elements. Both are large enough for the machine's peak, and fast to
# measure.
PROBE_SIZES = {"cpu": (2**28, 1024)}
ACCELERATOR_PROBE_SIZE = 2**28, 8192

Bound = Literal["memory", "compute"]  # which peak limits a network: memory-bound, compute-bound


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The least that one forward pass must compute and move.

    Attributes:
        macs: Multiply-adds.
        elements: Array elements that are read or written: LR and SR image once, weights once, and
            the output of each convolution twice, as it is written and read again.
    """

    macs: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class MachinePeak:
    """Peak throughput of the machine in one precision, measured in the same run as the networks.

    Attributes:
        bytes_per_s: Bytes read and written by the fastest copy of a large array.
        macs_per_s: Multiply-adds of the fastest matmul of large square matrices.
        samples_ms: Runtimes of all runs: `memory` of the copy, `compute` of the matmul.
    """

    bytes_per_s: float
    macs_per_s: float
    samples_ms: Mapping[Bound, tuple[float, ...]]

    def min_time_ms(self, macs: int, num_bytes: int) -> tuple[float, Bound]:
        """Return the minimum milliseconds for that work, and the peak that limits it."""
        compute_ms, memory_ms = macs / self.macs_per_s * 1e3, num_bytes / self.bytes_per_s * 1e3
        return (compute_ms, "compute") if compute_ms > memory_ms else (memory_ms, "memory")


def workload(method: Method, net: nnx.Module, image_size: tuple[int, int], scale: int) -> Workload:
    """Return the workload of one forward pass.

    Args:
        method: Method of the network.
        net: Network in deploy form.
        image_size: (height, width) of the LR image.
        scale: Upscaling factor of the network.

    Raises:
        UncountedOp: The network has an op whose cost is unknown.
    """
    cost = cost_of(method, net, image_size=image_size)
    image_elements = 3 * math.prod(image_size) * (1 + scale**2)
    activations = sum(op.activations for op in cost.ops if op.is_needed)
    elements = image_elements + cost.params_full + 2 * activations
    return Workload(macs=cost.macs_full, elements=elements)


class PeakProbe:
    """A copy and a matmul in one precision, whose fastest runs are the peaks of the machine.

    Peaks are measured in the process of the benchmark, before and after the networks: clocks,
    other load and the number of cores differ between machines and hours, so a data sheet's peak
    would not bound what was measured.

    Args:
        precision: Dtype of array and matrices.
    """

    def __init__(self, precision: str):
        platform = jax.default_backend()
        self.copy_bytes, self.matrix_size = PROBE_SIZES.get(platform, ACCELERATOR_PROBE_SIZE)
        dtype = jnp.dtype(precision)
        matrix = jnp.full((self.matrix_size, self.matrix_size), 0.5, dtype)
        self.calls: dict[Bound, Callable[[], jax.Array]] = {
            "memory": _copy_call(jnp.ones(self.copy_bytes // dtype.itemsize, dtype)),
            "compute": _matmul_call(matrix),
        }
        self.samples_ms: dict[Bound, list[float]] = {name: [] for name in self.calls}

    def measure(self, budget_s: float) -> None:
        """Time copy and matmul once more, interleaved, and add the runs to the samples."""
        timings = time_interleaved(self.calls, budget_s=budget_s)
        for name, samples in self.samples_ms.items():
            samples += timings.samples_ms(name)

    def peak(self) -> MachinePeak:
        """Return the peaks over all samples so far."""
        return MachinePeak(
            bytes_per_s=2 * self.copy_bytes / min(self.samples_ms["memory"]) * 1e3,
            macs_per_s=self.matrix_size**3 / min(self.samples_ms["compute"]) * 1e3,
            samples_ms={name: tuple(samples) for name, samples in self.samples_ms.items()},
        )


def _copy_call(array: jax.Array) -> Callable[[], jax.Array]:
    """Add 1 to an array in place: its buffer is donated, so no call allocates memory."""
    options: Any = {"compiler_options": dict(compiler_options()), "donate_argnums": 0}
    compiled: Any = jax.jit(lambda x: x + jnp.ones_like(x), **options).lower(array).compile()
    buffer = [array]  # a donated array is deleted, so each call takes the output of the last one

    def call() -> jax.Array:
        buffer[0] = compiled(buffer[0])
        return buffer[0]

    return call


def _matmul_call(matrix: jax.Array) -> Callable[[], jax.Array]:
    """Square a matrix, in the matmul precision in which the networks run."""
    options = dict(compiler_options())
    compiled = jax.jit(jnp.matmul, compiler_options=options).lower(matrix, matrix).compile()
    return functools.partial(compiled, matrix, matrix)
