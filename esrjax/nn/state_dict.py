"""State dicts of networks: mapping of keys, export, strict loading, casts and noise of all weights.

Submodules have the names of the official PyTorch code, so that most keys are equal to their paths.
Where they are not, a template pairs the torch key with the Flax path:

    "layers.0.blocks.{i}": "blocks.{i}"
    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}"

`{i}`, `{j}`, `{k}`, `{n}` match numbers, any other name in braces one component between dots. A
template maps a tensor, or a module with all that it contains; one that ends in `.{leaf}` maps a
module and its own tensors, not its submodules. The first template that matches is used.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import InvalidWeights, WeightsMismatch, list_some, log_note
from esrjax.io import matches_any
from esrjax.nn.checkpoint_io import STATE_DICT_KEYS, StateDict

Net = TypeVar("Net", bound=nnx.Module)
WEIGHT_TYPES = (nnx.Param, nnx.BatchStat)  # what a PyTorch state dict contains
MAX_LISTED = 10  # keys of each sort in an error
_LEAF = ".{leaf}"

FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")  # that weights may have in a file
INTEGER_DTYPES = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# Of DataParallel, torch.compile, Lightning and GAN trainers, and of nested state dicts that a file
# stores flat.
SHARED_PREFIXES = tuple(f"{name}." for name in ("module", "_orig_mod", "netG", *STATE_DICT_KEYS))


@dataclass(frozen=True)
class KeyMap:
    """State-dict keys of one method; `to_torch` and `to_flax` are inverse to each other.

    Attributes:
        templates: Torch key -> Flax path, for those that differ.
    """

    templates: Mapping[str, str]

    def to_flax(self, key: str) -> str:
        """Return the Flax path of a tensor or module with the torch key `key`."""
        return _translate(key, self.templates.items())

    def to_torch(self, path: str) -> str:
        """Return the torch key of the parameter or module at a Flax path."""
        return _translate(path, ((flax, torch) for torch, flax in self.templates.items()))


def _translate(name: str, templates: Iterable[tuple[str, str]]) -> str:
    for source, target in templates:
        rest = r"(?P<rest>(\..+)?)"
        if source.endswith(_LEAF) and target.endswith(_LEAF):
            source, target = source.removesuffix(_LEAF), target.removesuffix(_LEAF)
            rest = r"(?P<rest>(\.[^.]+)?)"
        if match := re.fullmatch(_template_regex(source) + rest, name):
            return (target + "{rest}").format(**match.groupdict())
    return name


def _template_regex(template: str) -> str:
    """Return the regular expression of a template, with a named group for each of its fields."""

    def group(field: re.Match[str]) -> str:
        return f"(?P<{field[1]}>" + (r"\d+)" if field[1] in set("ijkn") else "[^.]+)")

    return re.sub(r"\\{(\w+)\\}", group, re.escape(template))  # braces are escaped


# --- export and loading --------------------------------------------------------------------------


def to_state_dict(net: nnx.Module, key_map: KeyMap) -> StateDict:
    """Return the weights of `net` under PyTorch's names and in PyTorch's layout.

    Args:
        net: A network with values.
        key_map: The state-dict keys of its method.
    """
    return {
        key_map.to_torch(path): np.asarray(variable.get_value()).transpose(_torch_axes(variable))
        for path, variable in named_parameters(net)
    }


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
        InvalidWeights: A tensor has another type than its parameter, such as int8, or contains a
            NaN, an infinity or a value beyond the range of the parameter.
    """
    loaded = nnx.clone(net)
    used_keys = [key for key in state_dict if not matches_any(key, unused_keys or ())]
    key_of_path = {key_map.to_flax(key): key for key in used_keys}
    variables = dict(named_parameters(loaded))
    problems = _problems(variables, key_of_path, state_dict, key_map)
    problems["duplicate key"] = [
        f"{key} and {last}"
        for key in used_keys
        if (last := key_of_path[key_map.to_flax(key)]) != key
    ]
    if any(problems.values()):
        raise _mismatch(problems, len(variables.keys() | key_of_path.keys()), location)
    values = {
        path: _Cast.of(key_of_path[path], state_dict[key_of_path[path]], variable.get_value().dtype)
        for path, variable in variables.items()
    }
    _check_casts(list(values.values()), location)
    for path, variable in variables.items():
        # The inverse permutation of that in `to_state_dict`.
        flax_axes = np.argsort(_torch_axes(variable))
        variable.set_value(jnp.asarray(values[path].value.transpose(flax_axes)))
    return loaded


def named_parameters(net: nnx.Module) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Yield every weight of `net` with its path, `block_1.c1.weight`.

    As in a PyTorch state dict, these are the parameters and the statistics of BatchNorm.
    """
    for path, variable in nnx.iter_graph(net):
        if isinstance(variable, WEIGHT_TYPES):
            yield ".".join(map(str, path)), variable


def torch_shapes(net: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape in PyTorch's layout of every weight of `net`, by its path."""
    return {path: _torch_shape(variable) for path, variable in named_parameters(net)}


def cast(net: Net, dtype: Any) -> Net:
    """Return a copy of `net` with its weights in `dtype`."""
    copy = nnx.clone(net)
    for _, variable in named_parameters(copy):
        value = np.asarray(variable.get_value())  # NumPy: JAX would compile for every shape
        variable.set_value(jnp.asarray(value.astype(dtype), dtype))
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
        variable.set_value(jnp.asarray(noisy_value.astype(value.dtype), value.dtype))
    return copy


def _torch_axes(variable: nnx.Variable[Any]) -> tuple[int, ...]:
    """Return the axes by which the value is transposed to PyTorch's layout (`layers.param`)."""
    axes = variable.get_metadata().get("torch_axes")
    return tuple(range(variable.get_value().ndim)) if axes is None else axes


def _torch_shape(variable: nnx.Variable[Any]) -> tuple[int, ...]:
    return tuple(variable.get_value().shape[axis] for axis in _torch_axes(variable))


def _problems(
    variables: Mapping[str, nnx.Variable[Any]],
    key_of_path: Mapping[str, str],
    state_dict: Mapping[str, np.ndarray[Any, Any]],
    key_map: KeyMap,
) -> dict[str, list[str]]:
    """Return one line for each missing key, shape mismatch and unexpected key."""
    unknown_keys = [key for path, key in key_of_path.items() if path not in variables]
    missing: list[str] = []
    misshapen: list[str] = []
    for path, variable in variables.items():
        key, torch_shape = key_map.to_torch(path), _torch_shape(variable)
        if path not in key_of_path:
            # Only very similar names: most weights of a network have names that are somewhat so.
            close = difflib.get_close_matches(key, unknown_keys, n=1, cutoff=0.85)
            hint = f" (did you mean {close[0]}?)" if close else ""
            missing.append(f"{key} {torch_shape}{hint}")
        elif (shape := state_dict[key_of_path[path]].shape) != torch_shape:
            misshapen.append(f"{key} is {shape}, the network has {torch_shape}")
    unexpected = [f"{key} {state_dict[key].shape}" for key in unknown_keys]
    return {"missing key": missing, "shape mismatch": misshapen, "unexpected key": unexpected}


@dataclass(frozen=True)
class _Cast:
    """A tensor in the dtype of its parameter.

    Attributes:
        key: Its key.
        value: Its value in that dtype.
        problem: Why it is no weight; empty if it is.
        loss: The dtype from which it was rounded; empty if it was not.
    """

    key: str
    value: np.ndarray[Any, Any]
    problem: str = ""
    loss: str = ""

    @classmethod
    def of(cls, key: str, tensor: np.ndarray[Any, Any], dtype: Any) -> "_Cast":
        is_float = jnp.issubdtype(dtype, jnp.floating)
        if tensor.dtype.name not in (*FLOAT_DTYPES, *(() if is_float else INTEGER_DTYPES)):
            return cls(key, tensor, f"is {tensor.dtype.name}, its parameter {np.dtype(dtype).name}")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            value = tensor.astype(dtype)
        if is_float and not np.isfinite(tensor.astype(np.float64)).all():
            return cls(key, value, _non_finite(tensor))
        is_equal = value.astype(tensor.dtype) == tensor
        if not (is_equal | np.isfinite(value) if is_float else is_equal).all():
            return cls(key, value, f"has values beyond the range of {np.dtype(dtype).name}")
        return cls(key, value, loss="" if is_equal.all() else tensor.dtype.name)


def _non_finite(tensor: np.ndarray[Any, Any]) -> str:
    positions = np.argwhere(~np.isfinite(tensor.astype(np.float64)))
    first = tuple(positions[0].tolist())
    text = f"has {float(tensor[first])} at {list(first)}"
    return text + (f", {len(positions)} such values of {tensor.size}" if len(positions) > 1 else "")


def _check_casts(casts: list[_Cast], location: str | None) -> None:
    """Raise `InvalidWeights` if a tensor cannot be cast, and log what is rounded."""
    if problems := [f"{cast.key} {cast.problem}" for cast in casts if cast.problem]:
        raise InvalidWeights(
            f"{len(problems)} of {len(casts)} tensors are no weights: "
            + list_some(problems, MAX_LISTED, "\n    "),
            rule=f"weights are finite numbers of type {', '.join(FLOAT_DTYPES)}",
            location=location,
            remedy="use a checkpoint from before the training diverged, or before quantization; "
            "nothing was loaded",
        )
    for dtype in dict.fromkeys(cast.loss for cast in casts if cast.loss):
        keys = [cast.key for cast in casts if cast.loss == dtype]
        log_note(f"{location or 'the weights'}: rounded from {dtype}: {list_some(keys, 3)}")


def shared_prefix(keys: Iterable[str], is_known: Callable[[str], bool]) -> str:
    """Return what wrappers put in front of all keys, such as `module.`; empty if there is nothing.

    Args:
        keys: The keys of a state dict.
        is_known: Whether the network has a parameter of that key; then nothing is a prefix.
    """
    prefix, rest = "", list(keys)
    while rest and not any(map(is_known, rest)):
        first = next((p for p in SHARED_PREFIXES if all(k.startswith(p) for k in rest)), None)
        if first is None:
            return ""
        prefix, rest = prefix + first, [key.removeprefix(first) for key in rest]
    return prefix


def _mismatch(
    problems: Mapping[str, list[str]], num_tensors: int, location: str | None
) -> WeightsMismatch:
    """Return the error; of each sort of problem it lists the first."""
    listed = [f"{sort}: {line}" for sort in problems for line in problems[sort][:MAX_LISTED]]
    num_problems = sum(map(len, problems.values()))
    if num_problems > len(listed):
        listed.append(f"and {num_problems - len(listed)} more")
    error = WeightsMismatch(
        "\n    ".join([f"{num_problems} of {num_tensors} tensors do not match:", *listed]),
        rule="the checkpoint has one tensor for each parameter, of the same name and shape",
        location=location,
        remedy="check the method and its hyperparameters (--hparam KEY=VALUE); nothing was loaded",
    )
    error.num_mismatches = num_problems
    return error
