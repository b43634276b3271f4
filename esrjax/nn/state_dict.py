"""Mapping of PyTorch's state-dict keys to Flax paths and back, by templates.

Submodules have the names of the official PyTorch code, so that most keys are equal to their paths.
Where they are not, a template pairs the torch key with the Flax path:

    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}"

`{i}`, `{j}`, `{k}`, `{n}` match numbers, any other name in braces one component between dots. The
first template that matches is used.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import WeightsMismatch
from esrjax.nn.checkpoint_io import StateDict

_FIELD = re.compile(r"\{(\w+)\}")
_INDEX_FIELDS = frozenset("ijkn")  # match numbers only
_LEAF_SUFFIX = re.compile(r"\.\{leaf\}$")


@dataclass(frozen=True)
class KeyMap:
    """State-dict keys of one method; `to_torch` and `to_flax` are inverse to each other.

    Attributes:
        templates: Torch key -> Flax path, for those that differ.
    """

    templates: Mapping[str, str]

    def to_flax(self, key: str) -> str:
        """Return the Flax path of a tensor or module with the torch key `key`."""
        return _translate(key, list(self.templates.items()))

    def to_torch(self, path: str) -> str:
        """Return the torch key of the parameter or module at a Flax path."""
        return _translate(path, [(flax, torch) for torch, flax in self.templates.items()])


def _translate(name: str, templates: list[tuple[str, str]]) -> str:
    for source, target in templates:
        for suffix in ("", _LEAF_SUFFIX):  # as a tensor's key, then as that of its module
            fields = re.fullmatch(_template_regex(_without_leaf(source, suffix)), name)
            if fields:
                return _without_leaf(target, suffix).format(**fields.groupdict())
    return name


def _without_leaf(template: str, suffix: str | re.Pattern[str]) -> str:
    """Return the template of the module that a leaf belongs to; unchanged without a suffix."""
    return _LEAF_SUFFIX.sub("", template) if suffix else template


def _template_regex(template: str) -> str:
    # Text and names of fields alternate: fields are at odd indices.
    segments = _FIELD.split(template)
    return "".join(
        (rf"(?P<{segment}>\d+)" if segment in _INDEX_FIELDS else rf"(?P<{segment}>[^.]+)")
        if index % 2
        else re.escape(segment)
        for index, segment in enumerate(segments)
    )


# --------------------------------------------------------------------------------------------------
# State dicts of networks: export, strict loading, and functions over all weights.
# --------------------------------------------------------------------------------------------------


Net = TypeVar("Net", bound=nnx.Module)
WEIGHT_TYPES = (nnx.Param, nnx.BatchStat)  # what a PyTorch state dict contains
MAX_LISTED = 10  # keys of each sort in an error


def to_state_dict(net: nnx.Module, key_map: KeyMap) -> StateDict:
    """Return the weights of `net` under PyTorch's names and in PyTorch's layout.

    Args:
        net: A network with values.
        key_map: The state-dict keys of its method.
    """
    return {key_map.to_torch(path): _to_torch(variable) for path, variable in named_parameters(net)}


def load_state_dict(
    net: Net,
    state_dict: Mapping[str, np.ndarray[Any, Any]],
    key_map: KeyMap,
    unused_keys: Mapping[str, str] | None = None,
    location: str | None = None,
) -> Net:
    """Return a copy of `net` with the weights of a state dict; strict, all or nothing.

    Args:
        net: A network; an abstract one will do. Its dtypes are kept.
        state_dict: Tensors by PyTorch's names, in PyTorch's layout.
        key_map: The state-dict keys of the network's method.
        unused_keys: Glob patterns of keys that are ignored, each with its reason.
        location: The file, for the error.

    Raises:
        WeightsMismatch: A tensor or a parameter is left over, shapes differ, or two keys map to one
            parameter.
    """
    loaded = nnx.clone(net)
    used_keys = [key for key in state_dict if not _matches(key, unused_keys or {})]
    key_of_path = {key_map.to_flax(key): key for key in used_keys}
    variables = dict(named_parameters(loaded))
    problems = _problems(variables, key_of_path, state_dict, key_map)
    for key in used_keys:
        if key_of_path[key_map.to_flax(key)] != key:
            problems.append(f"duplicate key: {key} and {key_of_path[key_map.to_flax(key)]}")
    if problems:
        raise _mismatch(problems, len(set(variables) | set(key_of_path)), location)
    for path, variable in variables.items():
        variable.set_value(_from_torch(variable, state_dict[key_of_path[path]]))
    return loaded


def named_parameters(net: nnx.Module) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Yield every weight of `net` with its path, `block_1.c1.weight`.

    As in a PyTorch state dict, these are the parameters and the statistics of BatchNorm.
    """
    for path, variable in nnx.iter_graph(net):
        if isinstance(variable, WEIGHT_TYPES):
            yield ".".join(map(str, path)), variable


def cast(net: Net, dtype: Any) -> Net:
    """Return a copy of `net` with its weights in `dtype`."""
    copy = nnx.clone(net)
    for _, variable in named_parameters(copy):
        variable.set_value(variable.get_value().astype(dtype))
    return copy


def perturb_weights(net: Net, stddev: float = 0.05, *, seed: int = 1) -> Net:
    """Return a copy of `net` with noise added to every weight, for tests.

    Biases of 0 and scales of 1, as networks are initialised, would hide mistakes.

    Args:
        net: A network with values.
        stddev: Standard deviation of the noise.
        seed: Of the noise.
    """
    copy = nnx.clone(net)
    rng = np.random.default_rng(seed)
    for _, variable in named_parameters(copy):
        value = np.asarray(variable.get_value())  # NumPy: JAX would compile for every shape
        noisy_value = value + stddev * rng.standard_normal(value.shape)
        variable.set_value(jnp.asarray(noisy_value.astype(value.dtype)))
    return copy


def _to_torch(variable: nnx.Variable[Any]) -> np.ndarray[Any, Any]:
    """Return the value in PyTorch's layout, by the `torch_axes` that `layers.param` stored."""
    axes = variable.get_metadata().get("torch_axes")
    value = np.asarray(variable.get_value())
    return value if axes is None else value.transpose(axes)


def _from_torch(variable: nnx.Variable[Any], value: np.ndarray[Any, Any]) -> Any:
    """Undo `_to_torch` (argsort inverts a permutation), in the variable's dtype."""
    axes = variable.get_metadata().get("torch_axes")
    flax_value = value if axes is None else value.transpose(np.argsort(axes))
    return jnp.asarray(flax_value, variable.get_value().dtype)


def _torch_shape(variable: nnx.Variable[Any]) -> tuple[int, ...]:
    axes, shape = variable.get_metadata().get("torch_axes"), variable.get_value().shape
    return tuple(shape) if axes is None else tuple(shape[axis] for axis in axes)


def _problems(
    variables: Mapping[str, nnx.Variable[Any]],
    key_of_path: Mapping[str, str],
    state_dict: Mapping[str, np.ndarray[Any, Any]],
    key_map: KeyMap,
) -> list[str]:
    """Return one line for each missing key, unexpected key and shape mismatch."""
    unknown_keys = [key for path, key in key_of_path.items() if path not in variables]
    lines: list[str] = []
    for path, variable in variables.items():
        key = key_map.to_torch(path)
        if path not in key_of_path:
            close = difflib.get_close_matches(key, unknown_keys, n=1, cutoff=0.85)
            hint = f" (did you mean {close[0]}?)" if close else ""
            lines.append(f"missing key: {key} {_torch_shape(variable)}{hint}")
        elif state_dict[key_of_path[path]].shape != _torch_shape(variable):
            shape = state_dict[key_of_path[path]].shape
            lines.append(
                f"shape mismatch: {key} is {shape}, the network has {_torch_shape(variable)}"
            )
    return lines + [f"unexpected key: {key} {state_dict[key].shape}" for key in unknown_keys]


def _mismatch(problems: list[str], num_tensors: int, location: str | None) -> WeightsMismatch:
    listed = [
        line
        for prefix in ("missing", "shape", "unexpected", "duplicate")
        for line in [line for line in problems if line.startswith(prefix)][:MAX_LISTED]
    ]
    rest = f"\n    and {len(problems) - len(listed)} more" if len(problems) > len(listed) else ""
    error = WeightsMismatch(
        f"{len(problems)} of {num_tensors} tensors do not match:\n    "
        + "\n    ".join(listed)
        + rest,
        rule="the checkpoint has one tensor for each parameter, of the same name and shape",
        location=location,
        remedy="check the method and its hyperparameters (--hparam KEY=VALUE); nothing was loaded",
    )
    error.num_mismatches = len(problems)
    return error


def _matches(key: str, patterns: Mapping[str, str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
