"""Comparison of a JAX network with outputs and activations stored from PyTorch (golden files).

`jax_*` names arrays that the nnx network computes, `torch_*` those of the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from esrjax.bridge.case import FLOAT32_RTOL, Array, ArrayDiff, Implementation, count_changed_u8
from esrjax.bridge.layouts import candidate_layouts, to_channels_first
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.network import ops
from esrjax.network.compilation import jit
from esrjax.network.naming import KeyMap
from esrjax.network.taps import heads, taps
from esrjax.network.weights import cast

Outputs = tuple[dict[str, Array], dict[str, Any]]  # outputs by number; activations by nnx path

_INPUT = re.compile(r"x(\d+)")
_ACTIVATION = re.compile(r"act_(?P<path>.+?)(?:__out(?P<output>\d+))?")


class BadGolden(UserError):
    """Raised when a golden file has no input with its output, or does not fit the network."""


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
        BadGolden: If the file cannot be read or does not fit the network.
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
        BadGolden: If it cannot be read, or has no input with its output.
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
) -> BadGolden:
    paths = "" if activations is None else "; it runs " + ", ".join(list(activations)[:12])
    return BadGolden(
        f"The golden file {problem}{paths}",
        rule="a golden file has inputs x0, x1, ... and their outputs y0, y1, ... (float32, NCHW), "
        "and may have act_PATH, the output of the module PATH for x0",
        location=str(location),
        remedy="check the path, and that the file belongs to the method",
    )
