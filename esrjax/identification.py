"""What a checkpoint is: the method whose network its tensors fit, and whose weights they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx

from esrjax import hub, registry
from esrjax.errors import InvalidArgument, UserError, WeightsMismatch, list_some, log_note
from esrjax.io import matches_any, sha256_file
from esrjax.loading import HParams
from esrjax.method import Form, Method
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import Checkpoint, StateDict
from esrjax.nn.layers import shapes_only
from esrjax.nn.reparam import Reparam, deploy
from esrjax.nn.state_dict import KeyMap, shared_prefix, torch_shapes

Origin = Literal["official", "shipped", "own"]
Shapes = Mapping[str, tuple[int, ...]]  # Flax path -> shape in PyTorch's layout

# A file with fewer values than this fraction of the reported parameters is not of that network: the
# official count misses parameters of some networks, but counts few that a file lacks.
_MIN_FRACTION = 0.8
_shapes_cache: dict[tuple[Any, str], dict[Form, Shapes]] = {}  # of this process


def weights_origin(method: Method, checkpoint: Checkpoint) -> Origin:
    """Return whose weights a checkpoint has.

    "official": a published file (`Method.weights`, by SHA-256) or one that `weights convert` made
    of it; "shipped": the file that the plugin ships (`Method.pretrained`); "own": anything else.

    A converted file is official only while the hash of its tensors in the metadata is right, so
    weights that were trained on and saved with the old header are "own". Metadata is not signed:
    this guards against mistakes; proof is the published file itself, converted again.

    Args:
        method: The method that the checkpoint belongs to.
        checkpoint: As `read_checkpoint` returns.
    """
    if checkpoint_io.source_sha256(checkpoint) in {w.sha256 for w in method.weights.values()}:
        return "official"
    shipped = hub.shipped_path(method)
    return "shipped" if shipped and sha256_file(shipped) == checkpoint.sha256 else "own"


def identify_method(checkpoint: Checkpoint | str | Path, hparams: HParams | None = None) -> str:
    """Return the registered name of the method that a checkpoint belongs to.

    It is the method in the metadata; else the one that publishes the file (by SHA-256); else the
    only one whose network, in either form, has parameters of exactly these names and shapes. Its
    hyperparameters are the defaults, those of its published weights or its `test_hparams`.

    Args:
        checkpoint: As `read_checkpoint` returns, or the path to read.
        hparams: Arguments of `Method.network`, in place of those hyperparameters.

    Raises:
        WeightsMismatch: The tensors fit no registered method.
        InvalidArgument: They fit several.
        NotFound: The method in the metadata is not registered.
        UnreadableFile: The file cannot be read.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint_io.read_checkpoint(checkpoint)
    if checkpoint.metadata is not None:
        registry.get_method(checkpoint.metadata.method)
        return checkpoint.metadata.method
    methods = dict(_registered_methods())
    if not (names := [name for name, m in methods.items() if _publishes(m, checkpoint)]):
        names = [name for name, m in methods.items() if _fits(m, checkpoint, hparams)]
        if len(names) == 1:
            log_note(f"{checkpoint.path}: no metadata; its tensors are of the method {names[0]!r}")
    match names:
        case [name]:
            return name
        case []:
            raise _no_method(checkpoint, hparams)
        case _:
            raise _several_methods(checkpoint, names)


def _registered_methods() -> Iterator[tuple[str, Method]]:
    for name in registry.names():
        try:
            entry = registry.get_entry(name)
        except UserError:  # a broken plugin does not hide the other methods
            continue
        if isinstance(entry, Method):
            yield name, entry


def _publishes(method: Method, checkpoint: Checkpoint) -> bool:
    return any(weights.sha256 == checkpoint.sha256 for weights in method.weights.values())


def _fits(method: Method, checkpoint: Checkpoint, hparams: HParams | None) -> bool:
    """Return whether the tensors are the parameters of one of the method's networks."""
    num_values = sum(tensor.size for tensor in checkpoint.state_dict.values())
    candidates = [hparams] if hparams else method.known_hparams()
    return any(
        _has_shapes(checkpoint.state_dict, method, shapes)
        for candidate in candidates
        if candidate or num_values >= _MIN_FRACTION * method.reported.get("params", 0)
        for shapes in _form_shapes(method, candidate).values()
    )


def _has_shapes(state_dict: StateDict, method: Method, shapes: Shapes) -> bool:
    if len(state_dict) < len(shapes):
        return False
    key_map = KeyMap(method.torch_names)
    prefix = shared_prefix(state_dict, lambda key: key_map.to_flax(key) in shapes)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return shapes == {
        key_map.to_flax(key): tensor.shape
        for key, tensor in tensors.items()
        if not matches_any(key, method.unused_torch_keys)
    }


def _form_shapes(method: Method, hparams: HParams) -> dict[Form, Shapes]:
    """Return the shapes of the parameters in each form; none if the network cannot be built."""
    key = (method.network, repr(sorted(hparams.items())))
    if key not in _shapes_cache:
        shapes: dict[Form, Shapes] = {}

        def build() -> None:
            net = method.build(**hparams)
            shapes["train"] = torch_shapes(net)
            if any(isinstance(module, Reparam) for _, module in nnx.iter_modules(net)):
                shapes["deploy"] = torch_shapes(deploy(net))

        try:
            with shapes_only():
                jax.eval_shape(build)
        except Exception:  # no such hyperparameter, or a broken network, which fits nothing
            shapes.clear()
        _shapes_cache[key] = shapes
    return _shapes_cache[key]


def _no_method(checkpoint: Checkpoint, hparams: HParams | None) -> WeightsMismatch:
    methods = [name for name, _ in _registered_methods()]
    return WeightsMismatch(
        f"No method is known whose network has these {len(checkpoint.state_dict)} tensors: "
        + list_some(checkpoint.state_dict, 3),
        rule="without metadata, a checkpoint is identified by the names and shapes of its tensors; "
        f"methods: {', '.join(methods)}",
        location=str(checkpoint.path),
        remedy="name the method with --method NAME, and hyperparameters that are not the defaults "
        "with --hparam KEY=VALUE",
    )


def _several_methods(checkpoint: Checkpoint, names: list[str]) -> InvalidArgument:
    return InvalidArgument(
        f"The tensors fit {len(names)} methods: {', '.join(names)}",
        rule="a checkpoint without metadata that fits several methods needs the name of its own",
        location=str(checkpoint.path),
        remedy=f"name the method, for example --method {names[0]}",
    )
