"""Loading of models: from the name of a method or ensemble, and checkpoints."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from esrjax import published, registry
from esrjax.errors import UserError
from esrjax.method import Ensemble, Method
from esrjax.model.fusion import EnsembleModel
from esrjax.model.model import Model
from esrjax.network import archive
from esrjax.network.reparam import deploy
from esrjax.recognition import HParams, load_network

CheckpointPaths = Mapping[str, str | Path]  # name of a method -> its checkpoint


class NoWeights(UserError):
    """Raised when weights of a method are needed that are not on this machine."""


class BadEnsemble(UserError):
    """Raised when the members of an ensemble, their checkpoints or hparams do not fit together."""


def open_model(
    name: str,
    checkpoint: str | Path | CheckpointPaths | None = None,
    hparams: HParams | None = None,
) -> Model | EnsembleModel:
    """Load a method or an ensemble with its weights.

    Args:
        name: Of a registered method or ensemble.
        checkpoint: As in `open_method`. For an ensemble a mapping from members to checkpoints,
            `{"span": "span.pth"}`; other members use the default weights.
        hparams: As in `open_method`. For an ensemble with the member's name in front,
            `{"span.channels": 48}`.

    Raises:
        NoWeights: If a method has no default weights and no checkpoint is given.
        BadEnsemble: If members do not fit together, or an argument belongs to no member.
    """
    entry = registry.get_entry(name)
    checkpoints = checkpoint if isinstance(checkpoint, Mapping) else {name: checkpoint}
    if isinstance(entry, Method):
        return open_method(name, checkpoints.get(name), hparams)
    check_ensemble(name, entry, checkpoints, hparams)
    members = {
        member: open_method(member, checkpoints.get(member), member_hparams(member, hparams))
        for member in entry.members
    }
    return EnsembleModel(name=name, ensemble=entry, members=members)


def open_method(
    name: str, checkpoint: str | Path | None = None, hparams: HParams | None = None
) -> Model:
    """Load a method with its weights, in deploy form.

    Args:
        name: Of a registered method; ensembles are loaded by `open_model`.
        checkpoint: A file (.pth, .safetensors), a run directory, or the key of published weights
            (`Method.weights`) that are downloaded. None for the weights that the method ships, or
            else the first published ones that are downloaded.
        hparams: The network's hyperparameters; those of the checkpoint's metadata if None.

    Raises:
        NoWeights: If there are no default weights and no checkpoint is given.
    """
    method = registry.get_method(name)
    path = (
        _default_checkpoint(name, method)
        if checkpoint is None
        else _resolve_checkpoint(name, method, checkpoint)
    )
    loaded = load_network(name, method, archive.read_checkpoint(path), hparams)
    return Model(
        name=name,
        method=method,
        net=deploy(loaded.net),
        hparams=loaded.hparams,
        checkpoint=loaded.checkpoint,
    )


def member_hparams(member: str, hparams: HParams | None) -> HParams:
    """Return the hparams of one member: `{"span.channels": 48}` -> `{"channels": 48}`."""
    prefix = f"{member}."
    return {k.removeprefix(prefix): v for k, v in (hparams or {}).items() if k.startswith(prefix)}


def check_ensemble(
    name: str, ensemble: Ensemble, checkpoints: Mapping[str, Any], hparams: HParams | None
) -> None:
    """Raise `BadEnsemble` unless the members share the scale and every argument is a member's.

    Args:
        name: Of the ensemble.
        ensemble: The ensemble.
        checkpoints: By member; a checkpoint for the ensemble itself is an error.
        hparams: With the member's name in front.
    """
    members = ", ".join(ensemble.members) or "none"
    scales = {registry.get_method(member).scale for member in ensemble.members} | {ensemble.scale}
    if len(scales) > 1 or not ensemble.members:
        raise BadEnsemble(
            f"the members of {name!r} cannot be combined: {members}",
            rule=f"an ensemble has at least one member, and all have its scale, {ensemble.scale}",
            remedy="correct the members or the scale of the ensemble",
        )
    hparams_of = {member: member_hparams(member, hparams) for member in ensemble.members}
    if checkpoints.get(name) is not None or sum(map(len, hparams_of.values())) < len(hparams or {}):
        first = next(iter(ensemble.members))
        raise BadEnsemble(
            f"{name!r} is an ensemble and has no weights or hparams of its own",
            rule=f"checkpoints and hparams belong to its members: {members}",
            remedy=f"give a checkpoint as {first}=FILE, an hparam as {first}.NAME=VALUE",
        )


def _default_checkpoint(name: str, method: Method) -> Path:
    """Return the weights that the method ships, else the first published ones on this machine."""
    if method.pretrained is not None:
        package, _, file = method.pretrained.partition(":")
        with resources.as_file(resources.files(package) / file) as path:
            return path
    downloaded = [
        path for weights in method.weights.values() if (path := published.find_local(weights))
    ]
    if not downloaded:
        raise _no_weights(f"No weights for {name!r} on this machine", name, method)
    return downloaded[0]


def _resolve_checkpoint(name: str, method: Method, checkpoint: str | Path) -> str | Path:
    """Return the path itself, or the downloaded file if it is the key of published weights."""
    weights = method.weights.get(str(checkpoint))
    if weights is None or Path(checkpoint).exists():
        return checkpoint
    if (file := published.find_local(weights)) is not None:
        return file
    raise _no_weights(
        f"The published weights {str(checkpoint)!r} of {name!r} are not downloaded", name, method
    )


def _no_weights(problem: str, name: str, method: Method) -> NoWeights:
    published_weights = [
        f"{key} ({weights.url or 'no URL'}, sha256 {weights.sha256[:12]}…)"
        for key, weights in method.weights.items()
    ]
    is_downloadable = any(weights.url for weights in method.weights.values())
    return NoWeights(
        problem,
        rule=f"published weights of {name}: {', '.join(published_weights) or 'none'}",
        remedy=f"download them with `esrjax weights get {name}`, or give a file with --checkpoint"
        if is_downloadable
        else "give a file with --checkpoint",
    )
