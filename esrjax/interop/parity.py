"""Comparison of a JAX network with PyTorch: golden files, repeatable requests, SHA-256 of inputs.

A golden file holds outputs and activations that PyTorch computed. A `ParityRequest` names a golden
file or a live PyTorch network; it is plain data, so that a parity report can store it and `verify`
can run it again. `jax_*` names arrays that the nnx network computes, `torch_*` those of PyTorch.
"""

import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from pydantic.dataclasses import dataclass as pydantic_dataclass

from esrjax import registry
from esrjax.data import datasets
from esrjax.data.datasets import Pair
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import InvalidArgument, UnreadableFile, error_summary, list_some
from esrjax.inference import open_method
from esrjax.interop import array_diff
from esrjax.interop.array_diff import Array, ArrayDiff, Comparison, Implementation, OptimizerPair
from esrjax.io import open_regular, sha256_file
from esrjax.loading import stored_hparams
from esrjax.method import Form, Method
from esrjax.nn import checkpoint_io
from esrjax.nn.compilation import jit
from esrjax.nn.hooks import heads, taps
from esrjax.nn.state_dict import KeyMap, cast
from esrjax.schema import STRICT

LEARNING_RATE = 1e-3  # of the optimizer steps that are compared
# Of hash keys: files that the PyTorch file imports, relative to it.
IMPORT_PREFIX = "torch import: "

_INPUT = re.compile(r"x(\d+)")
_ACTIVATION = re.compile(r"act_(?P<path>.+?)(?:__out(?P<output>\d+))?")

_MAX_GOLDEN_BYTES = 4 << 30

# --- golden files ---


@dataclass(frozen=True, kw_only=True, eq=False)
class GoldenFile:
    """An .npz of arrays that PyTorch computed.

    Attributes:
        path: The file.
        arrays: Its arrays by key, with at least one input and its output.
    """

    path: str | Path
    arrays: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class GoldenComparison(Comparison):
    """Results of comparing a network, or an ensemble, with a golden file.

    Attributes:
        unchecked_keys: Keys of the file that were not compared.
    """

    unchecked_keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, golden: GoldenFile, diffs: Sequence[ArrayDiff]) -> "GoldenComparison":
        """Return the results of comparing a golden file.

        Args:
            name: Name of the method or ensemble.
            golden: The golden file.
            diffs: Differences, with keys of the file as names.
        """
        unused_keys = golden.arrays.keys() - {diff.name for diff in diffs}
        unchecked_keys = sorted(key for key in unused_keys if not _INPUT.fullmatch(key))
        return cls(method=name, diffs=tuple(diffs), unchecked_keys=tuple(unchecked_keys))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `passed` and the largest difference in plain types, for JSON."""
        max_abs_diff = float(np.max([diff.max_abs_diff for diff in self.diffs]))
        return {**super().as_dict(), "max_abs_diff": max_abs_diff}


def compare(
    name: str,
    method: Method,
    net: nnx.Module,
    golden: str | Path,
    implementation: Implementation = "auto",
) -> GoldenComparison:
    """Compare a network with the arrays of a golden file.

    The file has float32 arrays in NCHW: inputs `xK` with their outputs `yK`, in the method's data
    range; activations `act_PATH`, the output of the PyTorch module PATH for `x0` (`__` for dots,
    `__outN` for its N-th output); and outputs `y0_NAME` of further heads.

    The network runs in float32. If an array fails, everything is repeated in float64 with the same
    tolerance: some networks amplify the rounding of white noise without bound. In float64 almost no
    rounding is left, so that an error of the architecture still shows.

    Args:
        name: Name of the method.
        method: The method.
        net: Its network in deploy form, in eval mode.
        golden: The .npz file.
        implementation: Implementation of operations in float32; float64 uses the reference.

    Raises:
        UnreadableFile: If the file cannot be read or does not fit the network.
    """
    file = read_golden(golden)
    with array_diff.full_precision(implementation):
        diffs = _diffs(file, method, net, np.float32)
    if not all(diff.passed for diff in diffs):
        with array_diff.float64_reference():
            float64_diffs = _diffs(file, method, cast(net, np.float64), np.float64)
        diffs = [
            diff.prefer_passed(retry, precision="float64", float32_max_abs_diff=diff.max_abs_diff)
            for diff, retry in zip(diffs, float64_diffs, strict=True)
        ]
    return GoldenComparison.of(name, file, diffs)


def read_golden(path: str | Path) -> GoldenFile:
    """Read a golden file.

    Args:
        path: The .npz file.

    Raises:
        UnreadableFile: If it cannot be read, is larger than `_MAX_GOLDEN_BYTES`, also when
            decompressed, or has no input with its output; or an array is not of real numbers, an
            input or output no image, or an input not finite.
    """
    try:
        with open_regular(Path(path)) as file, zipfile.ZipFile(file) as archive:
            num_bytes = sum(entry.file_size for entry in archive.infolist())
            if num_bytes > _MAX_GOLDEN_BYTES:
                raise ValueError(f"it has {num_bytes:,} bytes when decompressed")
            arrays = {
                name.removesuffix(".npy"): _read_npy(archive.read(name))
                for name in archive.namelist()
            }
    except Exception as error:  # of a damaged archive almost any
        reason = getattr(error, "strerror", None) or error_summary(error)
        raise _bad_golden(path, f"cannot be read as .npz: {reason}") from error
    if not _input_keys(arrays):
        raise _bad_golden(path, "has no x0 with its y0")
    for key, array in arrays.items():
        is_compared = re.match(r"x\d+$|y\d|act_", key)
        if is_compared and (problem := _array_problem(key, array)):
            raise _bad_golden(path, f"has {key} {problem}")
    return GoldenFile(path=path, arrays=arrays)


def _read_npy(content: bytes) -> Array:
    """Return an array; NumPy would allocate whatever size the header names."""
    file = io.BytesIO(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of shape {shape} does not have {len(content):,} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _array_problem(key: str, array: Array) -> str | None:
    if array.dtype.kind not in "fiu":
        return f"of type {array.dtype}, not of real numbers"
    if re.fullmatch(r"[xy]\d+", key) and (array.ndim != 4 or array.shape[1] != 3 or not array.size):
        return f"of shape {array.shape}, not (N, 3, h, w)"
    is_finite = not _INPUT.fullmatch(key) or np.isfinite(array).all()
    return None if is_finite else "with values that are not finite"


def _input_keys(arrays: Mapping[str, Array]) -> list[str]:
    """Return the keys of inputs that have a stored output."""
    return sorted(key for key in arrays if _INPUT.fullmatch(key) and f"y{key[1:]}" in arrays)


def _diffs(golden: GoldenFile, method: Method, net: nnx.Module, dtype: Any) -> list[ArrayDiff]:
    """Compare every stored output and activation with that of the network in `dtype`."""
    arrays, key_map = golden.arrays, KeyMap(method.torch_names)
    graphdef, state = nnx.split(net)
    run = jit(lambda state, x: taps(nnx.merge(graphdef, state), x))
    jax_arrays: dict[str, Array] = {}
    activations: dict[str, Any] = {}  # for the first input
    for key in _input_keys(arrays):
        y, module_outputs = run(state, arrays[key].transpose(0, 2, 3, 1).astype(dtype))
        jax_arrays[f"y{key[1:]}"] = np.asarray(y)
        activations = activations or module_outputs
    head_outputs = {f"y0_{name}": np.asarray(y) for name, y in sorted(heads(activations).items())}
    jax_arrays |= {key: y for key, y in head_outputs.items() if key in arrays}
    for key in sorted(key for key in arrays if key.startswith("act_")):
        jax_arrays[key] = _activation(golden, key, activations, key_map)
    return [_array_diff(golden, key, y, method.data_range) for key, y in jax_arrays.items()]


def _activation(
    golden: GoldenFile, key: str, activations: Mapping[str, Any], key_map: KeyMap
) -> Array:
    """Return the output of the nnx module that corresponds to the PyTorch module of the key."""
    fields = _ACTIVATION.fullmatch(key)
    assert fields is not None
    path = key_map.to_flax(fields["path"].replace("__", "."))
    if path not in activations:
        problem = f"has {key!r}, but the network runs no module {path!r}"
        raise _bad_golden(golden.path, f"{problem}; it runs {list_some(activations, 12)}")
    output = activations[path]
    return np.asarray(output[int(fields["output"] or 0)] if isinstance(output, tuple) else output)


def _array_diff(golden: GoldenFile, key: str, jax_array: Array, data_range: float) -> ArrayDiff:
    """Compare one array, `(N, h, w, C)` in JAX; activations may have any layout."""
    torch_array, nchw = golden.arrays[key], array_diff.to_channels_first(jax_array)
    shape, is_image = torch_array.shape, not key.startswith("act_")
    layouts = [nchw] if is_image else array_diff.candidate_layouts(jax_array, shape)
    if not layouts or layouts[0].shape != shape:
        raise _bad_golden(golden.path, f"has {key} of shape {shape}, JAX {nchw.shape}")
    arrays = layouts[0], torch_array
    tolerance = array_diff.FLOAT32_RTOL * max(data_range, float(np.ptp(torch_array)))
    num_changed_u8 = array_diff.count_changed_u8(*arrays, data_range) if is_image else None
    return ArrayDiff.of(key, *arrays, tolerance, num_changed_u8=num_changed_u8)


def _bad_golden(path: str | Path, problem: str) -> UnreadableFile:
    return UnreadableFile(
        f"The golden file {problem}",
        rule="a golden file has inputs x0, x1, ... and their outputs y0, y1, ... (float32, NCHW), "
        "and may have act_PATH, the output of the module PATH for x0",
        location=str(path),
        remedy="check the path, and that the file belongs to the method",
    )


# --- requests ---


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class ParityRequest:
    """A comparison of a method with stored PyTorch outputs or with a live PyTorch network.

    Exactly one of `golden` and `torch` is given.

    Attributes:
        method: Name of the method.
        hparams: Hyperparameters of the JAX network; defaults for those not named.
        checkpoint: Weights of both networks. Without one, a golden file is compared with the
            method's published weights. A live network is also compared with random weights.
        golden: An .npz of inputs and outputs that PyTorch computed, see `compare`.
        torch: The PyTorch network, FILE.py:Class.
        torch_args: Keyword arguments of its constructor.
        data: Dataset, a name or a folder, on which both networks' PSNR is compared.
        seed: Seed of random weights and images; another seed draws others.
        implementation: Implementation of operations in float32.

    Raises:
        InvalidArgument: If none or both of `golden` and `torch` are given, or options of a live
            network with `golden`.
    """

    method: str
    hparams: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checkpoint: str | None = None
    golden: str | None = None
    torch: str | None = None
    torch_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: str | None = None
    seed: int = 0
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        if self.golden is not None and self.torch is not None:
            raise _bad_request("--golden and --torch exclude each other")
        if self.golden is None and self.torch is None:
            raise _bad_request("no PyTorch side is given")
        if self.golden is not None and (self.data or self.torch_args):
            raise _bad_request("--data and --torch-args need --torch, not --golden")

    @property
    def torch_file(self) -> Path | None:
        """The FILE.py of `torch`."""
        return None if self.torch is None else Path(self.torch.rpartition(":")[0])


def _bad_request(problem: str) -> InvalidArgument:
    return InvalidArgument(
        f"Cannot compare with PyTorch: {problem}",
        rule="a network is compared with stored PyTorch outputs or with a live PyTorch network",
        remedy="give either --golden FILE.npz or --torch FILE.py:Class",
    )


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """The result of a request.

    Attributes:
        comparison: Differences and checks.
        form: Form of the JAX network, "train" or "deploy".
        hashes: SHA-256 of everything that was compared: weights, inputs, files.
    """

    comparison: Comparison
    form: Form
    hashes: Mapping[str, str]


def run(request: ParityRequest, optimizers: Sequence[OptimizerPair] = ()) -> ParityResult:
    """Compare the two networks.

    Args:
        request: What to compare.
        optimizers: Optimizers of which steps are compared, for a live PyTorch network.

    Raises:
        UserError: If a file, class, checkpoint or dataset cannot be read, or does not fit.
    """
    if request.torch is not None:
        return _compare_live(request, request.torch, optimizers)
    assert request.golden is not None
    model = open_method(request.method, request.checkpoint, request.hparams)
    comparison = compare(
        request.method, model.method, model.net, request.golden, request.implementation
    )
    hashes = {
        "weights": checkpoint_io.hash_tensors(model.checkpoint.state_dict),
        **hash_inputs(request),
    }
    return ParityResult(comparison=comparison, form="deploy", hashes=hashes)


def optimizer_pairs() -> tuple[OptimizerPair, ...]:
    """Return Adam, AdamW and Muon of PyTorch, each with its counterpart in optax.

    Both have their defaults, except for the epsilon of Muon, which the two sides apply
    differently. Muon is compared for one step: from the second step on, optax corrects the bias of
    the momentum and PyTorch does not. Weights are `(out, in)`, as in PyTorch.
    """
    import jax
    import optax
    from optax import contrib

    lr, eps = LEARNING_RATE, 1e-30
    adamw, adamw_kwargs = optax.adamw(lr, weight_decay=0.01), {"lr": lr, "weight_decay": 0.01}
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    muon = contrib.muon(
        lr,
        eps=eps,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: axes, params),
    )
    muon_kwargs = {"lr": lr, "weight_decay": 0.0, "eps": eps}
    two_steps = partial(OptimizerPair, grad_scales=(1.0, -0.5))
    return (
        two_steps(torch_name="Adam", torch_kwargs={"lr": lr}, optax_tx=optax.adam(lr)),
        two_steps(torch_name="AdamW", torch_kwargs=adamw_kwargs, optax_tx=adamw),
        OptimizerPair(torch_name="Muon", torch_kwargs=muon_kwargs, optax_tx=muon, only_2d=True),
    )


def _compare_live(
    request: ParityRequest, source: str, optimizers: Sequence[OptimizerPair]
) -> ParityResult:
    checkpoint_io.import_torch("Comparison with a PyTorch network")
    from esrjax.interop import draws, torch_compare, torch_model

    pairs = image_pairs(request)
    model = torch_model.build(torch_model.parse_source(source, request.torch_args), request.seed)
    file = request.checkpoint
    checkpoint = None if file is None else checkpoint_io.read_checkpoint(file)
    pair = draws.make_pair(request.method, model, request.hparams, checkpoint, request.seed)
    hashes: dict[str, str] = {}
    for draw in pair.draws:
        hashes[f"weights, {draw.name}"] = checkpoint_io.hash_tensors(draw.state_dict)
        for size in draws.image_sizes(pair.method):
            images = draws.draw_images(pair.method, draw.seed, size)
            name = f"images, {draw.name}, {size[0]}x{size[1]}"
            hashes[name] = checkpoint_io.hash_tensors({"": images})
    for file in model.local_imports:
        relative_path = os.path.relpath(file, model.source.file.resolve().parent)
        hashes[IMPORT_PREFIX + relative_path] = hash_file(file)
    hashes |= hash_inputs(request)
    comparison = torch_compare.compare(pair, optimizers, pairs, request.implementation)
    return ParityResult(comparison=comparison, form=pair.form, hashes=hashes)


def image_pairs(request: ParityRequest) -> Sequence[Pair]:
    """Return the images of the dataset; none, if the request names no dataset."""
    if request.data is None:
        return ()
    method, hparams = registry.get_method(request.method), request.hparams
    if request.checkpoint is not None:
        checkpoint = checkpoint_io.read_checkpoint(request.checkpoint)
        hparams = {**stored_hparams(method, checkpoint), **hparams}
    method.check_hparams(hparams)
    return datasets.list_pairs(request.data, method.scale_of(hparams))


# --- hashes of what is compared ---


def hash_inputs(request: ParityRequest) -> dict[str, str]:
    """Return the SHA-256 of all files that a request names.

    Args:
        request: The request.

    Returns:
        Hashes by name: "golden", "torch" (the Python file), "weights" (the checkpoint's tensors,
        independent of their file), "NAME HR" and "NAME LR" of the dataset's images.

    Raises:
        UnreadableFile: If a file cannot be read.
    """
    golden = None if request.golden is None else Path(request.golden)
    files: dict[str, Path | TfdsImage | None] = {"golden": golden, "torch": request.torch_file}
    for pair in image_pairs(request):
        files |= {f"{pair.name} HR": pair.hr, f"{pair.name} LR": pair.lr}
    hashes = {name: hash_file(file) for name, file in files.items() if file is not None}
    if request.checkpoint is not None:
        state_dict = checkpoint_io.read_checkpoint(request.checkpoint).state_dict
        hashes["weights"] = checkpoint_io.hash_tensors(state_dict)
    return hashes


def hash_file(path: Path | TfdsImage) -> str:
    """Return the SHA-256 of a file's bytes, or of an image's bytes as a TFDS dataset stores them.

    Args:
        path: A file, or an image in a TFDS dataset.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnreadableFile: If the file cannot be read.
    """
    try:
        if isinstance(path, Path):
            return sha256_file(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnreadableFile(
            f"Cannot read {path}: {error.strerror or error}",
            rule="weights, code and images are hashed before they are compared",
            remedy="check the path; files of a parity report may also be in the report's folder",
        ) from error
