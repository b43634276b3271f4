"""`ParityRequest` and `run`: does a JAX network compute what its PyTorch original computes?

A request is plain data, so that a parity report can store it and `verify` can run it again.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as std_dataclass
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from pydantic.dataclasses import dataclass

from esrjax import registry
from esrjax.bridge import fingerprints, golden
from esrjax.bridge.case import Implementation
from esrjax.bridge.rule import OptimizerPair
from esrjax.data import datasets
from esrjax.data.datasets import Pair
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.naming import KeyMap
from esrjax.network.reparam import deploy
from esrjax.network.weights import perturb_weights, to_state_dict
from esrjax.recognition import load_network
from esrjax.schema import STRICT

IMPORT_PREFIX = (
    "torch import: "  # of hash keys: files that the PyTorch file imports, relative to it
)


class BadParityRequest(UserError):
    """Raised when a request names no PyTorch side, or two, or options that do not go together."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        BadParityRequest: If none or both of `golden` and `torch` are given, or options of a live
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


@std_dataclass(frozen=True, kw_only=True)
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
    hashes = {key: fingerprints.hash_file(Path(file)) for key, file in files.items() if file}
    if request.checkpoint is not None:
        hashes["weights"] = fingerprints.hash_tensors(
            archive.read_checkpoint(request.checkpoint).state_dict
        )
    for pair in _image_pairs(request):
        hashes[f"{pair.name} HR"] = fingerprints.hash_file(pair.hr)
        if pair.lr is not None:
            hashes[f"{pair.name} LR"] = fingerprints.hash_file(pair.lr)
    return hashes


def _compare_golden(request: ParityRequest) -> ParityResult:
    assert request.golden is not None
    model = open_method(request.method, request.checkpoint, request.hparams)
    comparison = golden.compare(
        request.method, model.method, model.net, request.golden, request.implementation
    )
    weights_sha256 = fingerprints.hash_tensors(model.checkpoint.state_dict)
    return ParityResult(
        comparison=comparison,
        form="deploy",
        hashes={"weights": weights_sha256, **hash_inputs(request)},
    )


def _compare_live(request: ParityRequest, optimizers: Sequence[OptimizerPair]) -> ParityResult:
    archive.import_torch("Comparison with a PyTorch network")
    from esrjax.bridge import live, peer

    assert request.torch is not None
    method, image_pairs = registry.get_method(request.method), _image_pairs(request)
    torch_model = peer.build(peer.parse_source(request.torch, request.torch_args), request.seed)
    pair = (_random_pair if request.checkpoint is None else _load_pair)(
        request, method, torch_model
    )
    x = live.draw_inputs(method, request.seed)
    hashes = {
        "weights": fingerprints.hash_tensors(to_state_dict(pair.jax_net, pair.key_map)),
        **{
            name: fingerprints.hash_array(image)
            for name, image in zip(live.INPUT_NAMES, x, strict=True)
        },
        **{
            IMPORT_PREFIX
            + os.path.relpath(
                file, torch_model.source.file.resolve().parent
            ): fingerprints.hash_file(file)
            for file in torch_model.local_imports
        },
    }
    comparison = live.compare(pair, x, optimizers, image_pairs, request.implementation)
    return ParityResult(
        comparison=comparison, form=pair.form, hashes={**hashes, **hash_inputs(request)}
    )


def _load_pair(request: ParityRequest, method: Method, torch_model: Any) -> Any:
    """Load the checkpoint into both networks; it determines the JAX network's form."""
    from esrjax.bridge import live, peer

    assert request.checkpoint is not None
    loaded = load_network(
        request.method, method, archive.read_checkpoint(request.checkpoint), request.hparams
    )
    peer.load_state_dict(
        torch_model,
        loaded.checkpoint.state_dict,
        method.unused_torch_keys,
        str(loaded.checkpoint.path),
    )
    return live.ModelPair(
        name=request.method,
        method=method,
        jax_net=loaded.net,
        form=loaded.form,
        torch_model=torch_model,
    )


def _random_pair(request: ParityRequest, method: Method, torch_model: Any) -> Any:
    """Give both networks random weights; the JAX network has the form that fits PyTorch's keys."""
    from esrjax.bridge import live, peer

    net = perturb_weights(method.build(seed=request.seed, **request.hparams), seed=request.seed)
    net.eval()
    key_map = KeyMap(method.torch_names)
    forms: dict[Form, Any] = {"deploy": deploy(net), "train": net}
    mismatches = {
        f: peer.state_dict_mismatches(
            torch_model, to_state_dict(n, key_map), method.unused_torch_keys
        )
        for f, n in forms.items()
    }
    form = min(forms, key=lambda form: len(mismatches[form]))
    location = f"random weights of {request.method} in {form} form"
    peer.load_state_dict(
        torch_model, to_state_dict(forms[form], key_map), method.unused_torch_keys, location
    )
    return live.ModelPair(
        name=request.method, method=method, jax_net=forms[form], form=form, torch_model=torch_model
    )


def _image_pairs(request: ParityRequest) -> Sequence[Pair]:
    """Return the images of the dataset; none, if the request names no dataset."""
    if request.data is None:
        return ()
    return datasets.list_pairs(request.data, registry.get_method(request.method).scale)


def _bad_request(problem: str) -> BadParityRequest:
    return BadParityRequest(
        f"Cannot compare with PyTorch: {problem}",
        rule="a network is compared with stored PyTorch outputs or with a live PyTorch network",
        remedy="give either --golden FILE.npz or --torch FILE.py:Class",
    )
