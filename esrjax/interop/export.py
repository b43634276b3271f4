"""Export of networks to ONNX and StableHLO: one file for images of any size, checked against JAX.

Input and output of an exported network are float32 `(1, 3, h, w)`, values in [0, `data_range`],
whatever precision it computes in.
"""

import json
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax import export as jax_export
from numpy.typing import NDArray

from esrjax.errors import ExportError, InvalidArgument
from esrjax.inference import Model
from esrjax.interop.onnx import lowerings, sessions
from esrjax.io import atomic_write, check_outputs, check_writable, write_bytes
from esrjax.nn import checkpoint_io, functional, ops
from esrjax.nn.quantization import fake_quantize, fake_quantize_weight, quantized_convs
from esrjax.nn.state_dict import cast

ExportFormat = Literal["onnx", "stablehlo"]
Dtype = Literal["float32", "float16", "bfloat16"]
# (1, 3, h, w) -> (1, 3, s·h, s·w)
NchwForward = Callable[[NDArray[np.float32]], NDArray[np.float32]]

REQUIRED_LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}
PLATFORMS = ("cpu", "cuda")  # that a StableHLO artifact runs on
IMAGE_SIZES = ((16, 24), (33, 21), (75, 131))  # (h, w), LR pixels: odd sides and several tiles
MAX_FLOAT32_DIFF = 1e-4  # of data_range, for exports in float32
# Against JAX, for exports in float16 and bfloat16, and for those with int8 convolutions: a value
# that float32 rounds to the other side of a half is a whole step of 8 bits away.
MIN_PSNR_DB = 50.0


@dataclass(frozen=True, kw_only=True)
class ExportCheck:
    """Difference between an exported network and JAX in float32; there, int8 is rounded, too.

    Attributes:
        image_sizes: (h, w) of the LR images, pixels.
        max_abs_diff: Largest absolute difference, as a fraction of `data_range`.
        psnr: PSNR of the exported network's outputs against JAX's, dB; None if they are equal.
        is_finite: Whether all outputs are finite.
    """

    image_sizes: tuple[tuple[int, int], ...]
    max_abs_diff: float
    psnr: float | None
    is_finite: bool

    def within_tolerance(self, dtype: Dtype, is_quantized: bool = False) -> bool:
        """Return whether the exported network computes the same as JAX, for its precision.

        Args:
            dtype: Precision of the exported network.
            is_quantized: Whether it has int8 convolutions.
        """
        if dtype == "float32" and not is_quantized:
            return self.is_finite and self.max_abs_diff < MAX_FLOAT32_DIFF
        return self.is_finite and (self.psnr is None or self.psnr >= MIN_PSNR_DB)


def compare(
    forward: NchwForward, images: Sequence[Any], references: Sequence[Any], data_range: float
) -> ExportCheck:
    """Compare an exported network with JAX.

    Args:
        forward: The exported network.
        images: LR images `(1, 3, h, w)`.
        references: JAX's outputs in float32, `(1, 3, s·h, s·w)`.
        data_range: Value of white.
    """
    diffs = [(forward(lr) - sr) / data_range for lr, sr in zip(images, references, strict=True)]
    errors = np.concatenate([diff.ravel() for diff in diffs]).astype(np.float64)
    mse = float(np.mean(errors**2))
    return ExportCheck(
        image_sizes=tuple(lr.shape[2:] for lr in images),
        max_abs_diff=float(np.max(np.abs(errors))),
        psnr=float(-10 * np.log10(mse)) if mse > 0 else None,
        is_finite=bool(np.isfinite(errors).all()),
    )


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """Metadata of an exported file, stored in the .onnx or as JSON next to the .stablehlo.

    Attributes:
        method: Name of the method.
        format: "onnx" or "stablehlo".
        dtype: Precision of weights and computation; inputs and outputs are float32.
        scale: Upscaling factor.
        data_range: Value of white in inputs and outputs.
        min_side: Smallest side of an LR image, pixels.
        receptive_field_radius: Radius in LR pixels, for exact tiling; None if the network needs
            the full image.
        hparams: Hyperparameters that differ from the method's defaults.
        license: License of the method.
        weights_sha256: SHA-256 of the checkpoint, or of the file that it was converted from.
        int8_convs: Number of convolutions with int8 kernels and uint8 inputs.
        layout: Layout of inputs and outputs.
        checks: Comparison with JAX by dtype. An ONNX file in float32 has one for float16 as well:
            the accuracy that engines with float16 reach.
        versions: Versions of Python and of packages.
    """

    method: str
    format: ExportFormat
    dtype: Dtype
    scale: int
    data_range: float
    min_side: int
    receptive_field_radius: int | None
    hparams: Mapping[str, Any]
    license: str
    weights_sha256: str
    int8_convs: int = 0
    layout: str = "NCHW float32, batch 1, RGB"
    checks: Mapping[str, ExportCheck] = field(default_factory=dict[str, ExportCheck])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def check_libraries(format: ExportFormat) -> None:
    """Check that the libraries of a format are installed.

    Args:
        format: "onnx" or "stablehlo".

    Raises:
        MissingExtra: If one is not.
    """
    for library in REQUIRED_LIBRARIES[format]:
        sessions.import_library(library)


def export(
    model: Model, target: Path, format: ExportFormat, dtype: Dtype = "float32"
) -> ExportMetadata:
    """Export a network, compare its outputs with JAX's and write it.

    StableHLO has no metadata: it is written next to the file, as `NAME.stablehlo.json`.

    Args:
        model: The network, with its method and weights.
        target: File to write.
        format: "onnx" or "stablehlo".
        dtype: Precision of weights and computation.

    Returns:
        The metadata.

    Raises:
        ExportError: If the network cannot be traced with symbolic height and width, cannot be
            converted to ONNX, or its outputs differ from JAX's.
        InvalidArgument: If it has int8 convolutions and `dtype` is not float32.
        UnwritableFile: If the file cannot be written, or is the checkpoint of the network.
    """
    metadata_path = target.with_name(target.name + ".json")
    outputs = [target] if format == "onnx" else [target, metadata_path]
    check_outputs(outputs, [model.checkpoint.path])
    check_writable(target)
    is_quantized = bool(quantized_convs(model.net))
    if is_quantized and dtype != "float32":
        raise InvalidArgument(
            f"{model.name} has int8 convolutions and cannot be exported in {dtype}",
            rule="the layers of such a network that are not int8 are float32",
            remedy="leave --dtype out, or export the float32 weights",
        )
    _check_symbolic_shape(model)
    net, min_side, data_range = model.net, model.method.min_side, model.method.data_range
    sizes = [(max(h, min_side), max(w, min_side)) for h, w in IMAGE_SIZES]
    images = [(data_range * _photo_like_noise(size)).astype(np.float32) for size in sizes]
    references = [
        np.asarray(model.forward(jnp.asarray(lr.transpose(0, 2, 3, 1)))).transpose(0, 3, 1, 2)
        for lr in images
    ]
    if format == "onnx":
        artifact = to_onnx(model.name, net, min_side, dtype)
        forward = _onnx_forward(artifact)
    else:
        artifact = to_stablehlo(net, min_side, dtype)
        forward = _stablehlo_forward(artifact)
    checks = {dtype: compare(forward, images, references, data_range)}
    if not checks[dtype].within_tolerance(dtype, is_quantized):
        raise _export_mismatch(model.name, format, dtype, checks[dtype], is_quantized)
    if format == "onnx" and dtype == "float32" and not is_quantized:
        float16_forward = _onnx_forward(to_onnx(model.name, net, min_side, "float16"))
        checks["float16"] = compare(float16_forward, images, references, data_range)
    export_metadata = _make_metadata(model, format, dtype, checks)
    if format == "onnx":
        write_bytes(target, _onnx_bytes(artifact, export_metadata))
    else:
        with atomic_write(target) as file, atomic_write(metadata_path) as json_file:
            file.write_bytes(artifact)
            json_file.write_text(json.dumps(asdict(export_metadata), indent=2))
    return export_metadata


def _photo_like_noise(size: tuple[int, int]) -> NDArray[np.float64]:
    """Return noise `(1, 3, h, w)` in [0, 1], its amplitude 1 / frequency as in photographs."""
    noise = np.random.default_rng(0).standard_normal((3, *size))
    rows, columns = (np.fft.fftfreq(side) for side in size)
    frequency = np.hypot(rows[:, None], columns[None])
    spectrum = np.fft.fft2(noise) / np.maximum(frequency, 1 / max(size))
    image = np.fft.ifft2(spectrum).real
    return ((image - image.min()) / np.ptp(image))[None]


# --- conversion ---

# Networks of these primitives alone run faster in OpenVINO than in XLA, all others slower
# (docs/benchmarks.md).
CONVOLUTIONAL_PRIMITIVES = lowerings.CALLS | frozenset(
    "add broadcast_in_dim concatenate conv_general_dilated convert_element_type ge gt le logistic "
    "lt max min mul neg pad reshape select_n slice split squeeze sub tanh transpose".split()
)
# Ops that are none of their primitives in an exported network, which convolves in int8 there.
QUANTIZERS = {op.__name__ for op in (fake_quantize, fake_quantize_weight)}


def nchw_forward(net: nnx.Module, dtype: Dtype = "float32") -> Callable[[Array], Array]:
    """Return the forward pass in NCHW, with float32 input and output.

    Args:
        net: The network, NHWC.
        dtype: Precision of weights and computation.

    Returns:
        A function `(1, 3, h, w) -> (1, 3, s·h, s·w)`.
    """
    compute_dtype = jnp.dtype(dtype)
    graphdef, state = nnx.split(cast(net, compute_dtype))

    def forward(lr: Array) -> Array:
        sr = nnx.merge(graphdef, state)(lr.transpose(0, 2, 3, 1).astype(compute_dtype))  # pyright: ignore[reportCallIssue] # networks are callable
        return sr.transpose(0, 3, 1, 2).astype(jnp.float32)

    return forward


def symbolic_input(min_side: int) -> jax.ShapeDtypeStruct:
    """Return an abstract LR image `(1, 3, h, w)` with symbolic height and width.

    Args:
        min_side: Smallest value of both; JAX needs it to decide comparisons of shapes.
    """
    h, w = jax_export.symbolic_shape("h, w", constraints=[f"h >= {min_side}", f"w >= {min_side}"])
    return jax.ShapeDtypeStruct((1, 3, h, w), jnp.float32)


def _check_symbolic_shape(model: Model) -> None:
    try:
        jax.eval_shape(nchw_forward(model.net), symbolic_input(model.method.min_side))
    except Exception as error:  # tracing a network raises almost anything
        frames = traceback.extract_tb(error.__traceback__)
        last = [f for f in frames if f"{os.sep}jax{os.sep}" not in f.filename][-1]
        raise ExportError(
            f"{model.name} cannot be traced for images of any size: "
            + str(error).strip().split("\n")[0],
            rule="height and width are symbolic in export: no `if` on them, no numpy functions",
            location=f"{last.filename}, line {last.lineno}: {last.line}",
            remedy="write its shape arithmetic with esrjax.nn.masking; see docs/export.md",
        ) from error


def to_onnx(name: str, net: nnx.Module, min_side: int, dtype: Dtype = "float32") -> Any:
    """Convert a network to ONNX, without check and metadata.

    Args:
        name: Name of the graph.
        net: The network.
        min_side: Smallest side of an LR image, pixels.
        dtype: Precision of weights and computation.

    Returns:
        An `onnx.ModelProto`.
    """
    # `native_lowering`: convolution and softmax as such, not in the forms that XLA runs faster.
    with functional.native_lowering(True), ops.implementation("reference"):
        return lowerings.to_onnx(nchw_forward(net, dtype), symbolic_input(min_side), name)


def is_convolutional(net: nnx.Module, min_side: int) -> bool:
    """Return whether a network consists of convolutions and element-wise operations.

    Args:
        net: The network.
        min_side: Smallest side of an LR image, pixels.
    """
    try:
        with functional.native_lowering(True), ops.implementation("reference"):
            jaxpr = jax.make_jaxpr(nchw_forward(net))(symbolic_input(min_side))
    except Exception:  # not traceable for all sizes: raises almost anything
        return False
    return CONVOLUTIONAL_PRIMITIVES.issuperset(_primitives(jaxpr.jaxpr))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        if str(equation.params.get("name")) in QUANTIZERS:
            continue
        yield equation.primitive.name
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            yield from _primitives(inner) if hasattr(inner, "eqns") else ()


def to_stablehlo(net: nnx.Module, min_side: int, dtype: Dtype = "float32") -> bytes:
    """Convert a network to a serialized `jax.export` artifact, without check.

    Args:
        net: The network.
        min_side: Smallest side of an LR image, pixels.
        dtype: Precision of weights and computation.
    """
    with ops.implementation("reference"):
        forward = jax.jit(nchw_forward(net, dtype))
        exported = jax_export.export(forward, platforms=PLATFORMS)(symbolic_input(min_side))
    return bytes(exported.serialize())


def to_onnx_bytes(model: Model) -> bytes:
    """Convert a network to the bytes of an .onnx file with metadata, without check."""
    onnx_proto = to_onnx(model.name, model.net, model.method.min_side)
    return _onnx_bytes(onnx_proto, _make_metadata(model, "onnx", "float32", {}))


def _onnx_bytes(onnx_proto: Any, export_metadata: ExportMetadata) -> bytes:
    """Store metadata in an ONNX model: its fields as JSON, but strings as they are."""
    fields = asdict(export_metadata)
    properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
    sessions.import_library("onnx").helper.set_model_props(onnx_proto, properties)
    return onnx_proto.SerializeToString()


def _onnx_forward(onnx_proto: Any) -> NchwForward:
    session = sessions.make_session(onnx_proto.SerializeToString())
    return lambda lr: session.run(None, {sessions.INPUT: lr})[0]


def _stablehlo_forward(artifact: bytes) -> NchwForward:
    call = jax_export.deserialize(bytearray(artifact)).call
    return lambda lr: np.asarray(call(lr))


def _export_mismatch(
    name: str, format: ExportFormat, dtype: Dtype, check: ExportCheck, is_quantized: bool
) -> ExportError:
    is_exact = dtype == "float32" and not is_quantized
    limit = f"{MAX_FLOAT32_DIFF:g} of data_range" if is_exact else f"{MIN_PSNR_DB:g} dB"
    problem = (
        f"differs from JAX in float32 by {check.max_abs_diff:.2g} of data_range, "
        f"{check.psnr or 0:.1f} dB"
    )
    return ExportError(
        f"{name} as {format} in {dtype} {problem if check.is_finite else 'is not finite'}",
        rule=f"all values are finite and the difference is within {limit}; nothing was written",
        location=", ".join(f"{h}x{w}" for h, w in check.image_sizes),
        remedy="run it in JAX" if dtype == "float32" else "export it in float32",
    )


def _make_metadata(
    model: Model, format: ExportFormat, dtype: Dtype, checks: Mapping[str, ExportCheck]
) -> ExportMetadata:
    method = model.method
    packages = ["esrjax", "jax", *(["onnx", "onnxruntime"] if format == "onnx" else [])]
    return ExportMetadata(
        method=model.name,
        format=format,
        dtype=dtype,
        scale=model.scale,
        data_range=method.data_range,
        min_side=method.min_side,
        receptive_field_radius=None if method.needs_full_image else model.receptive_field_radius,
        hparams=dict(model.hparams),
        license=method.license,
        weights_sha256=checkpoint_io.source_sha256(model.checkpoint),
        int8_convs=len(quantized_convs(model.net)),
        checks=checks,
        versions={"python": platform.python_version()} | {n: metadata.version(n) for n in packages},
    )
