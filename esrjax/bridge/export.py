"""Networks out to engines: one file for pictures of any size, checked before it is written.

What leaves here takes and gives float32 `(1, 3, h, w)`, white at the method's `data_range`,
whatever it calculates in.
"""

import json
import os
import platform
import secrets
import traceback
from collections.abc import Callable, Mapping
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

from esrjax.bridge.check import CLOSE, EXACT, Check, Dtype, Run, compare, picture, sizes
from esrjax.bridge.onnx import model as onnx_model
from esrjax.bridge.onnx import runtime
from esrjax.errors import UserError
from esrjax.model import Model
from esrjax.network import ops, words
from esrjax.network.archive import UnwritableCheckpoint
from esrjax.network.weights import cast

Format = Literal["onnx", "stablehlo"]

NEEDS = {"onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}  # libraries
PLATFORMS = ("cpu", "cuda")  # that a StableHLO artefact runs on


class FixedSize(UserError):
    """A network whose code needs to know the sides of its pictures."""


class WrongExport(UserError):
    """An exported network that does not do what JAX does."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an exported file says of itself.

    checks: by dtype; those but `dtype` say how the same network fares in other precisions.
    reach: how far a pixel reaches, LR pixels; None where it reaches all.
    """

    method: str
    format: Format
    dtype: Dtype
    scale: int
    data_range: float
    min_side: int
    reach: int | None
    sizes: Mapping[str, Any]
    license: str
    weights_sha256: str
    layout: str = "NCHW float32, batch 1, RGB"
    checks: Mapping[str, Check] = field(default_factory=dict[str, Check])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def require(kind: Format) -> None:
    """Raise `MissingExtra` unless files of this kind can be written here."""
    for library in NEEDS[kind]:
        runtime.require(library)


def export(model: Model, target: Path, kind: Format, dtype: Dtype = "float32") -> Card:
    """Write the network to `target`, unless it does not do there what JAX does.

    A StableHLO artefact has no room for a card: it lies beside, as `NAME.json`.
    """
    _require_any_size(model)
    pictures = [picture(size, model.method.data_range) for size in sizes(model.method.min_side)]
    truth = [_upscaled(model, lr) for lr in pictures]
    artefact, checks = _checked(model, kind, dtype, pictures, truth)
    card = _card(model, kind, dtype, checks)
    if kind == "onnx":
        onnx_model.describe(artefact, _facts(card))
        _write({target: artefact.SerializeToString()})
    else:
        beside = target.with_name(target.name + ".json")
        _write({target: artefact, beside: json.dumps(asdict(card), indent=2).encode()})
    return card


# --- artefacts ---------------------------------------------------------------------------------


def portable(net: nnx.Module, dtype: Dtype = "float32") -> Callable[[Array], Array]:
    """`(1, 3, h, w) -> (1, 3, s·h, s·w)`, float32 outside and `dtype` inside."""
    kind = jnp.dtype(dtype)
    graph, state = nnx.split(cast(net, kind))

    def forward(lr: Array) -> Array:
        sr = nnx.merge(graph, state)(lr.transpose(0, 2, 3, 1).astype(kind))  # pyright: ignore[reportCallIssue] # networks are callable
        return sr.transpose(0, 3, 1, 2).astype(jnp.float32)

    return forward


def any_size(least: int) -> jax.ShapeDtypeStruct:
    """An LR picture whose sides are known when the artefact runs, and not below `least`."""
    h, w = jax_export.symbolic_shape("h, w", constraints=[f"h >= {least}", f"w >= {least}"])
    return jax.ShapeDtypeStruct((1, 3, h, w), jnp.float32)


def _require_any_size(model: Model) -> None:
    try:
        jax.eval_shape(portable(model.net), any_size(model.method.min_side))
    except Exception as error:  # tracing a network raises almost anything
        raise FixedSize(
            f"{model.name} cannot be traced for pictures of any size: "
            + str(error).strip().split("\n")[0],
            rule="sides are symbols while a network is exported: no `if` on them, no numpy of them",
            place=_place(error),
            remedy="write its shape arithmetic with esrjax.network.extent; see docs/export.md",
        ) from error


def _place(error: BaseException) -> str:
    """The last line outside of JAX that was run."""
    steps = traceback.extract_tb(error.__traceback__)
    last = [step for step in steps if f"{os.sep}jax{os.sep}" not in step.filename][-1]
    return f"{last.filename}, line {last.lineno}: {last.line}"


def onnx(name: str, net: nnx.Module, least: int, dtype: Dtype = "float32") -> Any:
    """The network as an ONNX model, not yet checked nor described."""
    with words.plain(True), ops.body("reference"):
        return onnx_model.to_onnx(portable(net, dtype), any_size(least), name)


def stablehlo(net: nnx.Module, least: int, dtype: Dtype = "float32") -> bytes:
    """The network as an artefact of `jax.export`, not yet checked."""
    with ops.body("reference"):
        program = jax.jit(portable(net, dtype))
        made = jax_export.export(program, platforms=PLATFORMS)(any_size(least))
    return bytes(made.serialize())


def unchecked(model: Model) -> bytes:
    """The network as a described .onnx file, to be run here at once."""
    made = onnx(model.name, model.net, model.method.min_side)
    onnx_model.describe(made, _facts(_card(model, "onnx", "float32", {})))
    return made.SerializeToString()


def _checked(
    model: Model, kind: Format, dtype: Dtype, pictures: list[Any], truth: list[Any]
) -> tuple[Any, dict[str, Check]]:
    """The artefact, and its checks by dtype; in ONNX half precision is measured too."""
    least, white = model.method.min_side, model.method.data_range
    if kind == "stablehlo":
        artefact = stablehlo(model.net, least, dtype)
        check = compare(_runs_stablehlo(artefact), pictures, truth, white)
    else:
        artefact = onnx(model.name, model.net, least, dtype)
        check = compare(_runs_onnx(artefact), pictures, truth, white)
    if not check.keeps(dtype):
        raise _wrong(model.name, kind, dtype, check)
    checks = {dtype: check}
    if kind == "onnx" and dtype == "float32":
        half = _runs_onnx(onnx(model.name, model.net, least, "float16"))
        checks["float16"] = compare(half, pictures, truth, white)
    return artefact, checks


def _runs_onnx(model: Any) -> Run:
    made = runtime.session(model.SerializeToString())
    return lambda lr: made.run(None, {onnx_model.INPUT: lr})[0]


def _runs_stablehlo(artefact: bytes) -> Run:
    call = jax_export.deserialize(bytearray(artefact)).call
    return lambda lr: np.asarray(call(lr))


def _upscaled(model: Model, lr: NDArray[np.float32]) -> NDArray[np.float32]:
    sr = model.forward(jnp.asarray(lr.transpose(0, 2, 3, 1)))
    return np.asarray(sr).transpose(0, 3, 1, 2)


def _wrong(name: str, kind: Format, dtype: Dtype, check: Check) -> WrongExport:
    bound = f"{EXACT:g} of white" if dtype == "float32" else f"{CLOSE:g} dB"
    found = f"differs from JAX in float32 by {check.max_abs:.2g} of white, {check.psnr or 0:.1f} dB"
    return WrongExport(
        f"{name} as {kind} in {dtype} {found if check.finite else 'is not finite'}",
        rule=f"every number is finite and the difference within {bound}; nothing was written",
        place=", ".join(f"{h}x{w}" for h, w in check.sizes),
        remedy="run it in JAX" if dtype == "float32" else "export it in float32",
    )


def _card(model: Model, kind: Format, dtype: Dtype, checks: Mapping[str, Check]) -> Card:
    method, manifest = model.method, model.checkpoint.manifest
    names = ("esrjax", "jax", *(("onnx", "onnxruntime") if kind == "onnx" else ()))
    return Card(
        method=model.name,
        format=kind,
        dtype=dtype,
        scale=method.scale,
        data_range=method.data_range,
        min_side=method.min_side,
        reach=None if method.whole_picture else model.reach,
        sizes=dict(model.sizes),
        license=method.license,
        weights_sha256=(manifest.source_sha256 if manifest else "") or model.checkpoint.sha256,
        checks=checks,
        versions={"python": platform.python_version()} | {n: metadata.version(n) for n in names},
    )


def _facts(card: Card) -> dict[str, str]:
    """Every field in JSON, so that programs and people can read it; words without quotes."""
    fields = asdict(card)
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}


def _write(files: Mapping[Path, bytes]) -> None:
    """All of them, each beside its place first."""
    beside = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in files}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside[path].write_bytes(data)
        for path in files:
            os.replace(beside[path], path)
    except OSError as error:
        raise UnwritableCheckpoint(
            f"cannot write the exported network: {error.strerror or error}",
            rule="the folder must exist or be creatable, be writable and have room",
            place=", ".join(map(str, files)),
            remedy="choose another output with -o",
        ) from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
