"""Benchmarks of networks; and `Timing`, a runtime as data, which is read without JAX."""

from pydantic.dataclasses import dataclass

from esrjax.schema import STRICT, NonNegativeInt, PositiveFloat


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Timing:
    """Runtime of one forward pass on LR images of one shape, on one machine.

    Attributes:
        median_ms: Median over the timed runs, ms.
        low_ms: Lower end of the 95 % bootstrap interval of the median, ms.
        high_ms: Upper end of that interval, ms.
        num_runs: Number of timed runs.
        compile_s: Seconds for tracing, lowering and compiling.
        first_ms: Runtime of the first call of the compiled executable, ms; not among the runs.
        executable_mib: Memory of arguments, outputs and temporaries as the compiler plans it, MiB.
        peak_mib: Peak of the device's allocator since the process began, MiB, if it is reported.
        shape: Shape of the LR image, (1, h, w, 3).
        dtype: Dtype of the LR image.
        precision: JAX's default matmul precision.
        device: Name of the GPU, or model and cores of the CPU.
        driver: Version of the GPU's driver.
        implementation: Requested implementation of ops (`auto`, `reference` or `kernel`).
    """

    median_ms: PositiveFloat
    low_ms: PositiveFloat
    high_ms: PositiveFloat
    num_runs: NonNegativeInt
    compile_s: float
    first_ms: PositiveFloat
    executable_mib: float | None = None
    peak_mib: float | None = None
    shape: tuple[int, ...]
    dtype: str
    precision: str
    device: str
    driver: str | None = None
    implementation: str | None = None

    @property
    def conditions(self) -> str:
        """What two runtimes on one device must have in common to be comparable."""
        return f"{self.dtype}{list(self.shape)}, {self.precision} precision"
