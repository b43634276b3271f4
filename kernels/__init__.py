"""Pallas (Mosaic GPU) kernels for operations of `esrjax.nn.ops`, one file per operation.

`devices` holds the checks and tuned configurations of all kernels; `lanes` the tiles of the kernels
that keep rows in registers; `walk`, `course`, `strip` and `room` the fused blocks of convolutions.
"""
