"""Compile the kernels for an H200 on a machine without a GPU: registers, spills, planned memory.

XLA compiles for a described device, Mosaic GPU calls `ptxas`. Nothing runs. Needs JAX's plugin for
CUDA in a folder, of the version of JAX, and `ptxas` on the PATH (the package nvidia-cuda-nvcc):

    pip install --no-deps --target cuda jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2
    python tools/assemble.py cuda

Prints the figures of docs/kernels.md. "serialized": `ptxas` had too few registers to let `wgmma`
instructions overlap. "memory" is what XLA plans for temporary arrays.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported
os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"

import jax
import numpy as np
from esrjax_kernels.tuning import H200_SMS
from jaxlib import _jax, xla_client

from esrjax.nn import ops
from esrjax.testing.kernels import NETWORK_DIMS, operand_shapes

DTYPES = ("float32", "bfloat16")
# As XLA describes a GPU (stream_executor/device_description.proto).
H200 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {H200_SMS} fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 149000000000
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 1 }}
device_description_str: "NVIDIA H200"
"""
# Windows of 16x16 and 8x8 pixels in an image of 339x510, with HAT's and SwinIR's heads.
ATTENTIONS = {
    "HAT, 256 keys": (1, 704, 6, 256, 256, 30, True),
    "HAT, 576 keys": (1, 704, 6, 256, 576, 30, False),
    "SwinIR, 64 keys": (1, 2752, 6, 64, 64, 30, True),
}


def h200_sharding(plugin: Path) -> jax.sharding.Sharding:
    """Return the sharding with which arrays lie on a described H200."""
    (library,) = plugin.glob("jax_plugins/xla_cuda*/xla_cuda_plugin.so")
    (runtime,) = plugin.glob("jax_cuda*_plugin/libmosaic_gpu_runtime.so")
    os.environ["MOSAIC_GPU_RUNTIME_LIB_PATH"] = str(runtime)
    xla_client.load_pjrt_plugin_dynamically("cuda", str(library))
    xla_client.initialize_pjrt_plugin("cuda")
    options = {"topology": "1x1x1", "target_config": H200}
    topology: Any = _jax.get_default_c_api_topology("cuda", "1x1x1", options)
    mesh = jax.sharding.Mesh(np.array(topology._make_compile_only_devices()[:1]), "x")
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_for(sharding: Any, function: Callable[..., Any], operands: Any) -> tuple[Any, str]:
    """Return the compiled function, and what `ptxas` printed."""
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in operands]
    with captured_output() as output:
        compiled = jax.jit(function).lower(*arrays).compile()
    return compiled, output[0]


@contextmanager
def captured_output() -> Iterator[list[str]]:
    """Capture what C++ writes to the standard error and output; the list has it afterwards."""
    output: list[str] = []
    with tempfile.TemporaryFile("w+") as file:
        saved = {fd: os.dup(fd) for fd in (1, 2)}
        sys.stdout.flush()
        for fd in saved:
            os.dup2(file.fileno(), fd)
        try:
            yield output
        finally:
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            file.seek(0)
            output.append(file.read())


def gradient(operation: Callable[..., Any], operands: Any) -> Callable[..., Any]:
    """Return the gradient of an operation, except that of a mask."""
    num_grads = len(operands) - (len(operands) == 5)

    def step(*args: Any) -> Any:
        function = lambda *inputs: operation(*inputs, *args[num_grads:])  # noqa: E731
        return jax.vjp(function, *args[:num_grads])[1](args[0])

    return step


def registers(sharding: Any) -> Iterator[str]:
    """Yield a row for each kernel at the sizes of networks."""
    for name, dims_list in NETWORK_DIMS.items():
        kernel = ops.find_kernel(name)
        for dims in dims_list:
            for dtype in DTYPES:
                operands = operand_shapes(name, dims, dtype)
                if kernel is None or kernel.unsupported_reason(*operands):
                    continue
                function = gradient(kernel.call, operands) if kernel.differentiable else kernel.call
                _, output = compile_for(sharding, function, operands)
                yield from _register_rows(output, dims, dtype)


def _register_rows(output: str, dims: Any, dtype: str) -> Iterator[str]:
    pattern = r"entry function '(\w+?)_mosaic.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    sizes = ", ".join(map(str, dims)) + (", serialized" if "are serialized" in output else "")
    for name, spills, count in sorted(re.findall(pattern, output, re.DOTALL)):
        yield f"| `{name}` | {sizes} | {dtype} | {count} | {spills} |"


def attention_memory(sharding: Any) -> Iterator[str]:
    """Yield a row for each attention: memory of the kernel and of the reference."""
    for title, dims in ATTENTIONS.items():
        for dtype in DTYPES:
            operands = operand_shapes("window_attention", dims, dtype)
            kernel = ops.find_kernel("window_attention")
            assert kernel is not None
            cells: list[str] = []
            for transform in (lambda operation, _: operation, gradient):
                for operation in (kernel.call, reference):
                    compiled, _ = compile_for(sharding, transform(operation, operands), operands)
                    cells.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:,.0f}")
            yield f"| {title} | {dtype} | {' | '.join(cells)} |"


def reference(*operands: Any) -> Any:
    """Return window attention by XLA."""
    with ops.implementation("reference"):
        return ops.window_attention(*operands)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plugin", type=Path, help="folder with JAX's plugin for CUDA")
    h200 = h200_sharding(parser.parse_args().plugin)
    print(
        "| kernel | sizes | dtype | registers | bytes spilled |\n| --- | --- | --- | ---: | ---: |"
    )
    for row in registers(h200):
        print(row, flush=True)
    header = "forward, kernel | forward, reference | gradient, kernel | gradient, reference"
    print(f"\n| memory, MiB | dtype | {header} |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for row in attention_memory(h200):
        print(row, flush=True)
