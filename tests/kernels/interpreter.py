"""The interpreter of Mosaic GPU: kernels on a CPU, with unwritten memory being NaN."""

from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # not public yet

ON_CPU = InterpretGPUParams()
