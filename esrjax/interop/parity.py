"""Comparison of a JAX network with outputs and activations stored from PyTorch (golden files).

`jax_*` names arrays that the nnx network computes, `torch_*` those of the file.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from pydantic.dataclasses import dataclass as pydantic_dataclass

from esrjax import registry
from esrjax.data import datasets
from esrjax.data.datasets import Pair
from esrjax.data.tfds_records import TfdsImage
from esrjax.errors import InvalidArgument, UnreadableFile
from esrjax.inference import open_method
from esrjax.interop.array_diff import (
    FLOAT32_RTOL,
    Array,
    ArrayDiff,
    Implementation,
    OptimizerPair,
    candidate_layouts,
    count_changed_u8,
    to_channels_first,
)
from esrjax.loading import load_network
from esrjax.method import Form, Method
from esrjax.nn import checkpoint_io, ops
from esrjax.nn.checkpoint_io import StateDict
from esrjax.nn.compilation import jit
from esrjax.nn.hooks import heads, taps
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, cast, perturb_weights, to_state_dict
from esrjax.schema import STRICT

Outputs = tuple[dict[str, Array], dict[str, Any]]  # outputs by number; activations by nnx path

_INPUT = re.compile(r"x(\d+)")
_ACTIVATION = re.compile(r"act_(?P<path>.+?)(?:__out(?P<output>\d+))?")


@dataclass(frozen=True, kw_only=True)
class GoldenComparison:
    """Results of comparing a network with a golden file.

    Attributes:
        method: Name of the method.
        diffs: One per compared array of the file.
        unchecked_keys: Keys of the file that were not compared.
    """

    method: str
    diffs: tuple[ArrayDiff, ...]
    unchecked_keys: tuple[str, ...] = ()

    @property
    def checks(self) -> dict[str, bool]:
        """Key of every compared array, and whether it passed."""
        return {diff.name: diff.passed for diff in self.diffs}

    @property
    def passed(self) -> bool:
        """Whether there are arrays and all passed."""
        return bool(self.diffs) and all(diff.passed for diff in self.diffs)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, `passed` and the largest difference in plain types, for JSON."""
        return {
            "method": self.method,
            "passed": self.passed,
            "max_abs_diff": float(np.max([diff.max_abs_diff for diff in self.diffs])),
            "diffs": [diff.as_dict() for diff in self.diffs],
            "unchecked_keys": list(self.unchecked_keys),
        }


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
    tolerance.

    Args:
        name: Name of the method.
        method: The method.
        net: Its network in deploy form, in eval mode.
        golden: The .npz file.
        implementation: Implementation of operations in float32; float64 uses the reference.

    Raises:
        UnreadableFile: If the file cannot be read or does not fit the network.
    """
    arrays, key_map, location = read_arrays(golden), KeyMap(method.torch_names), str(golden)
    diffs = _diffs(_run(net, arrays, implementation), arrays, key_map, method.data_range, location)
    if not all(diff.passed for diff in diffs):
        float64_diffs = _diffs(
            _run_float64(net, arrays), arrays, key_map, method.data_range, location
        )
        diffs = [_prefer_passed(*pair) for pair in zip(diffs, float64_diffs, strict=True)]
    used_keys = {diff.name for diff in diffs} | {key for key in arrays if _INPUT.fullmatch(key)}
    return GoldenComparison(
        method=name, diffs=tuple(diffs), unchecked_keys=tuple(sorted(set(arrays) - used_keys))
    )


def _diffs(
    jax_outputs: Outputs,
    arrays: Mapping[str, Array],
    key_map: KeyMap,
    data_range: float,
    location: str,
) -> list[ArrayDiff]:
    """Compare every stored output and activation."""
    outputs, activations = jax_outputs
    return [
        *(_array_diff(f"y{k}", y, arrays[f"y{k}"], data_range) for k, y in sorted(outputs.items())),
        *(
            _array_diff(f"y0_{name}", np.asarray(y), arrays[f"y0_{name}"], data_range)
            for name, y in sorted(heads(activations).items())
            if f"y0_{name}" in arrays
        ),
        *(
            _array_diff(
                key,
                _activation(key, activations, key_map, location),
                arrays[key],
                data_range,
                is_activation=True,
            )
            for key in sorted(key for key in arrays if key.startswith("act_"))
        ),
    ]


def _prefer_passed(float32_diff: ArrayDiff, float64_diff: ArrayDiff) -> ArrayDiff:
    """Return the float64 difference where only that passes, else the float32 difference.

    Some networks amplify the rounding of white noise without bound. In float64 almost no rounding
    is left, so that an error of the architecture still shows.
    """
    if float32_diff.passed or not float64_diff.passed:
        return float32_diff
    return replace(
        float64_diff, precision="float64", float32_max_abs_diff=float32_diff.max_abs_diff
    )


def read_arrays(golden: str | Path) -> dict[str, Array]:
    """Read a golden file.

    Args:
        golden: The .npz file.

    Returns:
        Its arrays by key, with at least one input and its output.

    Raises:
        UnreadableFile: If it cannot be read, or has no input with its output.
    """
    try:
        with np.load(golden, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _bad_golden(golden, f"cannot be read as .npz: {reason}") from error
    if not any(_INPUT.fullmatch(key) and f"y{key[1:]}" in arrays for key in arrays):
        raise _bad_golden(golden, "has no x0 with its y0")
    return arrays


def _run(
    net: nnx.Module, arrays: Mapping[str, Array], implementation: Implementation = "reference"
) -> Outputs:
    """Return the outputs for every input that has a stored one, and the activations for `x0`."""
    graphdef, state = nnx.split(net)
    run = jit(lambda state, x: taps(nnx.merge(graphdef, state), x))
    outputs: dict[str, Array] = {}
    first_activations: dict[str, Any] = {}
    with ops.implementation(implementation), jax.default_matmul_precision("highest"):
        for key in sorted(k for k in arrays if _INPUT.fullmatch(k) and f"y{k[1:]}" in arrays):
            y, activations = run(state, arrays[key].transpose(0, 2, 3, 1))
            outputs[key[1:]] = np.asarray(y)
            first_activations = first_activations or activations
    return outputs, first_activations


def _run_float64(net: nnx.Module, arrays: Mapping[str, Array]) -> Outputs:
    """Return the same in float64, with reference implementations."""
    with jax.enable_x64(True):
        return _run(cast(net, np.float64), {k: v.astype(np.float64) for k, v in arrays.items()})


def _activation(key: str, activations: Mapping[str, Any], key_map: KeyMap, location: str) -> Array:
    """Return the output of the nnx module that corresponds to the PyTorch module of the key."""
    fields = _ACTIVATION.fullmatch(key)
    assert fields is not None
    path = key_map.to_flax(fields["path"].replace("__", "."))
    if path not in activations:
        raise _bad_golden(
            location, f"has {key!r}, but the network runs no module {path!r}", activations
        )
    output = activations[path]
    return np.asarray(output[int(fields["output"] or 0)] if isinstance(output, tuple) else output)


def _array_diff(
    key: str,
    jax_array: Array,
    torch_array: Array,
    data_range: float,
    *,
    is_activation: bool = False,
) -> ArrayDiff:
    """Compare one array, `(N, h, w, C)` in JAX; activations may have any layout."""
    if is_activation:
        layouts = candidate_layouts(jax_array, torch_array.shape)
    else:
        layouts = (
            [to_channels_first(jax_array)]
            if to_channels_first(jax_array).shape == torch_array.shape
            else []
        )
    if not layouts:
        raise _bad_golden(
            key, f"has shape {torch_array.shape}, JAX {to_channels_first(jax_array).shape}"
        )
    jax_array, value_range = layouts[0], float(np.ptp(torch_array))
    return ArrayDiff(
        name=key,
        shape=tuple(torch_array.shape),
        max_abs_diff=float(np.max(np.abs(jax_array.astype(np.float64) - torch_array))),
        tolerance=FLOAT32_RTOL * max(data_range, value_range),
        num_changed_u8=None
        if is_activation
        else count_changed_u8(jax_array, torch_array, data_range),
    )


def _bad_golden(
    location: str | Path, problem: str, activations: Mapping[str, Any] | None = None
) -> UnreadableFile:
    paths = "" if activations is None else "; it runs " + ", ".join(list(activations)[:12])
    return UnreadableFile(
        f"The golden file {problem}{paths}",
        rule="a golden file has inputs x0, x1, ... and their outputs y0, y1, ... (float32, NCHW), "
        "and may have act_PATH, the output of the module PATH for x0",
        location=str(location),
        remedy="check the path, and that the file belongs to the method",
    )


# --------------------------------------------------------------------------------------------------
# `ParityRequest` and `run`: does a JAX network compute what its PyTorch original computes?.
#
# A request is plain data, so that a parity report can store it and `verify` can run it again.
# --------------------------------------------------------------------------------------------------


IMPORT_PREFIX = (
    "torch import: "  # of hash keys: files that the PyTorch file imports, relative to it
)


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class ParityRequest:
    """A comparison of a method with stored PyTorch outputs or with a live PyTorch network.

    Exactly one of `golden` and `torch` is given.

    Attributes:
        method: Name of the method.
        hparams: Hyperparameters of the JAX network; defaults for those not named.
        checkpoint: Weights of both networks. Without one, a golden file is compared with the
            method's published weights, and a live network with random weights.
        golden: An .npz of inputs and outputs that PyTorch computed, see `golden.compare`.
        torch: The PyTorch network, FILE.py:Class.
        torch_args: Keyword arguments of its constructor.
        data: Dataset, a name or a folder, on which both networks' PSNR is compared.
        seed: Seed of random weights and inputs.
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
        live_only = {"data": self.data, "torch_args": self.torch_args}
        if (self.golden is None) == (self.torch is None):
            raise _bad_request(
                "--golden and --torch exclude each other"
                if self.golden
                else "no PyTorch side is given"
            )
        if self.golden is not None and any(live_only.values()):
            raise _bad_request("--data and --torch-args need --torch, not --golden")


class Comparison(Protocol):
    """Interface of `golden.GoldenComparison` and `live.LiveComparison`.

    A protocol, because importing `live` imports PyTorch.

    Attributes:
        checks: Name of every check, and whether it passed.
        passed: Whether every check passed.
    """

    @property
    def checks(self) -> dict[str, bool]: ...
    @property
    def passed(self) -> bool: ...
    def as_dict(self) -> dict[str, Any]: ...


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
    return (
        _compare_golden(request)
        if request.golden is not None
        else _compare_live(request, optimizers)
    )


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
    files = {"golden": request.golden, "torch": request.torch and request.torch.rpartition(":")[0]}
    hashes = {key: hash_file(Path(file)) for key, file in files.items() if file}
    if request.checkpoint is not None:
        hashes["weights"] = hash_tensors(
            checkpoint_io.read_checkpoint(request.checkpoint).state_dict
        )
    for pair in _image_pairs(request):
        hashes[f"{pair.name} HR"] = hash_file(pair.hr)
        if pair.lr is not None:
            hashes[f"{pair.name} LR"] = hash_file(pair.lr)
    return hashes


def _compare_golden(request: ParityRequest) -> ParityResult:
    assert request.golden is not None
    model = open_method(request.method, request.checkpoint, request.hparams)
    comparison = compare(
        request.method, model.method, model.net, request.golden, request.implementation
    )
    weights_sha256 = hash_tensors(model.checkpoint.state_dict)
    return ParityResult(
        comparison=comparison,
        form="deploy",
        hashes={"weights": weights_sha256, **hash_inputs(request)},
    )


def _compare_live(request: ParityRequest, optimizers: Sequence[OptimizerPair]) -> ParityResult:
    checkpoint_io.import_torch("Comparison with a PyTorch network")
    from esrjax.interop import torch_compare, torch_model

    assert request.torch is not None
    method, image_pairs = registry.get_method(request.method), _image_pairs(request)
    torch_model = torch_model.build(
        torch_model.parse_source(request.torch, request.torch_args), request.seed
    )
    pair = (_random_pair if request.checkpoint is None else _load_pair)(
        request, method, torch_model
    )
    x = torch_compare.draw_inputs(method, request.seed)
    hashes = {
        "weights": hash_tensors(to_state_dict(pair.jax_net, pair.key_map)),
        **{
            name: hash_array(image)
            for name, image in zip(torch_compare.INPUT_NAMES, x, strict=True)
        },
        **{
            IMPORT_PREFIX
            + os.path.relpath(file, torch_model.source.file.resolve().parent): hash_file(file)
            for file in torch_model.local_imports
        },
    }
    comparison = torch_compare.compare(pair, x, optimizers, image_pairs, request.implementation)
    return ParityResult(
        comparison=comparison, form=pair.form, hashes={**hashes, **hash_inputs(request)}
    )


def _load_pair(request: ParityRequest, method: Method, torch_model: Any) -> Any:
    """Load the checkpoint into both networks; it determines the JAX network's form."""
    from esrjax.interop import torch_compare, torch_model

    assert request.checkpoint is not None
    loaded = load_network(
        request.method, method, checkpoint_io.read_checkpoint(request.checkpoint), request.hparams
    )
    torch_model.load_state_dict(
        torch_model,
        loaded.checkpoint.state_dict,
        method.unused_torch_keys,
        str(loaded.checkpoint.path),
    )
    return torch_compare.ModelPair(
        name=request.method,
        method=method,
        jax_net=loaded.net,
        form=loaded.form,
        torch_model=torch_model,
    )


def _random_pair(request: ParityRequest, method: Method, torch_model: Any) -> Any:
    """Give both networks random weights; the JAX network has the form that fits PyTorch's keys."""
    from esrjax.interop import torch_compare, torch_model

    net = perturb_weights(method.build(seed=request.seed, **request.hparams), seed=request.seed)
    net.eval()
    key_map = KeyMap(method.torch_names)
    forms: dict[Form, Any] = {"deploy": deploy(net), "train": net}
    mismatches = {
        f: torch_model.state_dict_mismatches(
            torch_model, to_state_dict(n, key_map), method.unused_torch_keys
        )
        for f, n in forms.items()
    }
    form = min(forms, key=lambda form: len(mismatches[form]))
    location = f"random weights of {request.method} in {form} form"
    torch_model.load_state_dict(
        torch_model, to_state_dict(forms[form], key_map), method.unused_torch_keys, location
    )
    return torch_compare.ModelPair(
        name=request.method, method=method, jax_net=forms[form], form=form, torch_model=torch_model
    )


def _image_pairs(request: ParityRequest) -> Sequence[Pair]:
    """Return the images of the dataset; none, if the request names no dataset."""
    if request.data is None:
        return ()
    return datasets.list_pairs(request.data, registry.get_method(request.method).scale)


def _bad_request(problem: str) -> InvalidArgument:
    return InvalidArgument(
        f"Cannot compare with PyTorch: {problem}",
        rule="a network is compared with stored PyTorch outputs or with a live PyTorch network",
        remedy="give either --golden FILE.npz or --torch FILE.py:Class",
    )


# --- hashes of what was compared -----------------------------------------------------------------


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
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UnreadableFile(
            f"Cannot read {path}: {error.strerror or error}",
            rule="weights, code and images are hashed before they are compared",
            remedy="check the path; files of a parity report may also be in the report's folder",
        ) from error


def hash_tensors(tensors: StateDict) -> str:
    """Return the SHA-256 of a state dict, independent of its file format and key order.

    Args:
        tensors: State dict; names, dtypes, shapes and values are hashed in the order of the names.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def hash_array(array: Array) -> str:
    """Return the SHA-256 of an array's dtype, shape and values."""
    return hash_tensors({"": array})
