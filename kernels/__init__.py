"""Pallas (Mosaic GPU) kernels for operations of `esrjax.nn.ops`, one file per operation.

`tuning` holds the checks and tuned configurations of all kernels, `row_layout` the tiles of the
kernels that keep rows in registers, and `fused_conv3` and `smem` the fused blocks of convolutions.
"""
