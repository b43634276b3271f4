"""Benchmark of methods: interleaved runtimes of all cases at several image sizes, with roofline.

A case is a combination of method, engine, op implementation and precision. Source of the roofline:
Williams et al., 2009, doi:10.1145/1498765.1498785.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from esrjax.bench import timing
from esrjax.bench.timing import time_interleaved
from esrjax.errors import UncountedOp
from esrjax.evaluation.upscale import check_min_side
from esrjax.method import Method
from esrjax.nn import ops
from esrjax.nn.compilation import compiler_options
from esrjax.nn.cost import cost_of
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import cast

Precision = Literal["float32", "bfloat16"]
BenchRow = dict[str, Any]
ImageSize = tuple[int, int]  # (height, width) of the LR image

# Key of a row -> engine whose runtime is the denominator of that ratio.
RATIO_BASELINES = {"torch_eager_ratio": "pytorch", "torch_compile_ratio": "pytorch-compiled"}

# Platform -> bytes that the copy reads (and as many that it writes), and side of the square
# matrices of the matmul, elements. Both are large enough for the machine's peak, and fast to
# measure.
PROBE_SIZES = {"cpu": (2**28, 1024)}
ACCELERATOR_PROBE_SIZE = 2**28, 8192

Bound = Literal["memory", "compute"]  # which peak limits a network: memory-bound, compute-bound


# --- roofline: the minimum runtime, from MACs, memory traffic and measured machine peaks ---


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


# --- cases ---


class SkipBackend(Exception):
    """Raised when an engine cannot run the network, by its factory; the other cases still run."""


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One row of a benchmark at each image size.

    Attributes:
        method: Name of the method.
        engine: What runs it, such as `jax-cpu` or `pytorch`.
        implementation: Implementation of ops (`auto`, `reference`, `kernel`); None for engines
            without that choice.
        precision: Dtype of weights and images.
    """

    method: str
    engine: str
    implementation: str | None = None
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class CompiledCase:
    """A network bound to one input image, ready to be called.

    Attributes:
        call: Runs one forward pass.
        compile_s: Compilation time, s; None where nothing was compiled.
        executable_mib: Memory of arguments, outputs and temporaries as the compiler plans it, MiB;
            None where no compiler reports it.
    """

    call: Callable[[], Any]
    compile_s: float | None = None
    executable_mib: float | None = None


# Takes one LR image (1, h, w, 3) as a NumPy array in the precision of the case.
Factory = Callable[[Any], CompiledCase]
TorchFactories = Mapping[str, Mapping[str, Factory]]  # by method and engine


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An engine that runs deployed networks.

    Attributes:
        factory: Name, method and network -> factory of its compiled case.
        supports_variants: Whether it runs every implementation and precision that is benchmarked;
            otherwise it runs one case, in float32.
    """

    factory: Callable[[str, Method, nnx.Module], Factory]
    supports_variants: bool = False


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Op implementations and precisions to benchmark, in all combinations."""

    implementations: Sequence[str] = ("auto",)
    precisions: Sequence[Precision] = ("float32",)


def jax_backend() -> dict[str, Backend]:
    """Return JAX on its default platform, by its engine name (`jax-cpu`, `jax-gpu`)."""
    return {f"jax-{jax.default_backend()}": Backend(factory=_jax_factory, supports_variants=True)}


def bench_cases(
    name: str,
    method: Method,
    net: nnx.Module,
    backends: Mapping[str, Backend],
    variants: Variants,
) -> Iterator[tuple[BenchCase, Factory]]:
    """Yield the benchmark cases of one deployed network, each with its factory.

    Args:
        name: Name of the method.
        method: The method itself.
        net: Its network in deploy form, in float32.
        backends: Engine name -> backend.
        variants: Implementations and precisions, for backends that support them.
    """
    for engine, backend in backends.items():
        cases = [BenchCase(method=name, engine=engine)]
        if backend.supports_variants:
            pairs = itertools.product(variants.implementations, variants.precisions)
            cases = [replace(cases[0], implementation=i, precision=p) for i, p in pairs]
        for case in cases:
            yield case, backend.factory(name, method, cast(net, case.precision))


def _jax_factory(name: str, method: Method, net: nnx.Module) -> Factory:
    def compile_case(image: Any) -> CompiledCase:
        lr = jax.device_put(image)
        program = timing.compile_forward(timing.forward_fn(net), lr)
        return CompiledCase(
            call=functools.partial(program.call, lr),
            compile_s=program.compile_s,
            executable_mib=program.executable_mib,
        )

    return compile_case


def bench(
    methods: Mapping[str, Method],
    image_sizes: Sequence[ImageSize],
    hparams: Mapping[str, Any],
    seconds: float,
    backends: Mapping[str, Backend] | None = None,
    *,
    variants: Variants | None = None,
    torch_factories: TorchFactories | None = None,
) -> dict[str, Any]:
    """Time untrained, deployed networks of several methods, interleaved at each image size.

    Args:
        methods: Methods by name.
        image_sizes: (height, width) of the LR images.
        hparams: Hyper-parameters that every network is built with.
        seconds: Time budget of each row, and of each probe of the machine's peaks.
        backends: Engine name -> backend; JAX alone by default.
        variants: Op implementations and precisions, for backends that support them.
        torch_factories: Method -> engine -> factory of the user's PyTorch network.

    Returns:
        `device` and `machine` describe the machine; `peaks` has its measured peaks by precision;
        `rows` has one row for each image size, method, engine, implementation and precision;
        `notes` lists the cases that were skipped and the rooflines that are missing, and why.

    Raises:
        ImageTooSmall: A method does not accept one of the image sizes; nothing has run by then.
        InvalidArgument: A method does not have one of `hparams`; likewise.
    """
    for name, method in methods.items():
        method.check_hparams(hparams)
        for image_size in image_sizes:
            check_min_side(name, method.min_side, image_size)
    backends, variants = backends or jax_backend(), variants or Variants()
    nets: dict[str, nnx.Module] = {}
    factories: dict[BenchCase, Factory] = {}
    for name, method in methods.items():
        nets[name] = net = deploy(method.build(**hparams))
        net.eval()  # no stochastic depth
        factories |= bench_cases(name, method, net, backends, variants)
        torch = (torch_factories or {}).get(name, {})
        factories |= {BenchCase(method=name, engine=engine): f for engine, f in torch.items()}
    notes: list[str] = []
    peaks, timed_rows = _measure(factories, image_sizes, seconds, notes)
    rows: list[BenchRow] = []
    for image_size, timed in zip(image_sizes, timed_rows, strict=True):
        works = {
            name: _workload(name, method, nets[name], image_size, method.scale_of(hparams), notes)
            for name, method in methods.items()
        }
        rows += [
            row | _roofline_columns(row, works[row["method"]], peaks[row["precision"]])
            for row in timed
        ]
    machine = timing.machine_info() | {"implementation": ",".join(variants.implementations)}
    return {
        "device": machine["device"],
        "machine": machine,
        "peaks": {precision: vars(peak) for precision, peak in peaks.items()},
        "rows": rows,
        "notes": list(dict.fromkeys(notes)),
    }


def _measure(
    factories: Mapping[BenchCase, Factory],
    image_sizes: Sequence[ImageSize],
    seconds: float,
    notes: list[str],
) -> tuple[dict[str, MachinePeak], list[list[BenchRow]]]:
    """Measure the machine's peaks before and after the networks, and the networks in between.

    Returns:
        The peaks by precision, and for each image size the rows of the cases.
    """
    compiler_options()  # compiles once in a process; must not count as a compilation of a case
    precisions = dict.fromkeys(case.precision for case in factories)
    probes = {precision: PeakProbe(precision) for precision in precisions}
    for probe in probes.values():
        probe.measure(seconds)
    rows = [_time_cases(factories, size, seconds, notes) for size in image_sizes]
    for probe in probes.values():
        probe.measure(seconds)
    return {precision: probe.peak() for precision, probe in probes.items()}, rows


def _time_cases(
    factories: Mapping[BenchCase, Factory],
    image_size: ImageSize,
    seconds: float,
    notes: list[str],
) -> list[BenchRow]:
    """Time all cases that can run at one image size; their rows, still without roofline."""
    image = np.random.default_rng(0).random((1, *image_size, 3))
    programs = _compile_cases(factories, image, notes)
    calls = {case: program.call for case, (program, _) in programs.items()}
    # Each timed call follows an untimed one if engines with thread pools of their own alternate.
    several_engines = len({case.engine for case in programs}) > 1
    timings = timing.time_interleaved(calls, budget_s=seconds, prime_before_each=several_engines)
    return [
        {
            "method": case.method,
            "image_size": "{}x{}".format(*image_size),
            "engine": case.engine,
            "implementation": case.implementation,
            "precision": case.precision,
            **_median_columns(("median_ms", "low_ms", "high_ms"), timings.samples_ms(case)),
            "first_ms": timings.first_ms[case],
            "samples_ms": timings.samples_ms(case),
            "compile_s": program.compile_s,
            "compilations": num_compilations,
            "peak_mib": program.executable_mib,
            **_ratio_columns(timings, case),
        }
        for case, (program, num_compilations) in programs.items()
    ]


def _compile_cases(
    factories: Mapping[BenchCase, Factory], image: NDArray[np.float64], notes: list[str]
) -> dict[BenchCase, tuple[CompiledCase, int]]:
    """The cases that can run, each with the number of its XLA compilations."""
    programs: dict[BenchCase, tuple[CompiledCase, int]] = {}
    for case, factory in factories.items():
        with (
            timing.count_compilations() as compile_seconds,
            ops.implementation(case.implementation) if case.implementation else nullcontext(),
        ):
            try:
                program = factory(image.astype(jnp.dtype(case.precision)))
            except SkipBackend as error:
                notes.append(f"{case.method}: {case.engine} skipped, {error}")
                continue
        programs[case] = program, len(compile_seconds)
    return programs


def _ratio_columns(timings: timing.InterleavedTimings[BenchCase], case: BenchCase) -> BenchRow:
    """Return runtimes divided by those of the method's PyTorch networks.

    Ratios are taken in each round; the row has their median and its 95 % interval. A ratio of
    medians would keep the drift of the machine between rounds.
    """
    columns: BenchRow = {}
    for name, engine in RATIO_BASELINES.items():
        base = BenchCase(method=case.method, engine=engine)
        keys = (name, f"{name}_low", f"{name}_high")
        if case == base or base not in timings.first_ms:
            columns |= dict.fromkeys(keys)
        else:
            columns |= _median_columns(keys, timings.ratios(case, base))
    return columns


def _median_columns(keys: tuple[str, str, str], samples: Sequence[float]) -> BenchRow:
    """Median of the samples, and its 95 % interval."""
    values = (float(np.median(samples)), *timing.median_interval(samples))
    return dict(zip(keys, values, strict=True))


def _workload(
    name: str,
    method: Method,
    net: nnx.Module,
    image_size: ImageSize,
    scale: int,
    notes: list[str],
) -> Workload | None:
    try:
        return workload(method, net, image_size, scale)
    except UncountedOp as error:
        notes.append(f"{name}: no roofline, {error.problem}")
        return None


def _roofline_columns(row: BenchRow, work: Workload | None, peak: MachinePeak) -> BenchRow:
    if work is None:
        return dict.fromkeys(("macs", "bytes", "min_time_ms", "bound", "roofline_fraction"))
    num_bytes = work.elements * jnp.dtype(row["precision"]).itemsize
    min_time_ms, bound = peak.min_time_ms(work.macs, num_bytes)
    return {
        "macs": work.macs,
        "bytes": num_bytes,
        "min_time_ms": min_time_ms,
        "bound": bound,
        "roofline_fraction": min_time_ms / row["median_ms"],
    }
