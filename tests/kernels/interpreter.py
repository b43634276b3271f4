"""The interpreter of Mosaic GPU: kernels on a CPU, with unwritten memory being NaN."""

from jax.experimental.pallas import mosaic_gpu

if hasattr(mosaic_gpu, "InterpretGPUParams"):
    ON_CPU = mosaic_gpu.InterpretGPUParams()
else:  # not public before JAX 0.11
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    ON_CPU = InterpretGPUParams()
