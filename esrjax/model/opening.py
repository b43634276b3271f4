"""From a name and files to what users call on pictures."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from esrjax import published, registry
from esrjax.errors import UserError
from esrjax.method import Ensemble, Method
from esrjax.model.fusion import Fusion
from esrjax.model.model import Model
from esrjax.network import archive
from esrjax.network.reparam import deploy
from esrjax.recognition import Sizes, recognise

Files = Mapping[str, str | Path]  # name of a method -> its checkpoint


class NoWeights(UserError):
    """A method without shipped weights, and no checkpoint was given."""


class BadEnsemble(UserError):
    """An ensemble whose members cannot be run together, or not as asked."""


def open_model(
    name: str, checkpoint: str | Path | Files | None = None, sizes: Sizes | None = None
) -> Model | Fusion:
    """The method or ensemble `name` with the weights of `checkpoint`, or those it ships.

    The members of an ensemble have a checkpoint each: `{"span": "span.pth"}`; a size of one of them
    is `{"span.channels": 48}`.
    """
    method = registry.method(name)
    files = checkpoint if isinstance(checkpoint, Mapping) else {name: checkpoint}
    if isinstance(method, Method):
        return open_method(name, files.get(name), sizes)
    require_ensemble(name, method, files, sizes)
    members = {
        member: open_method(member, files.get(member), sizes_of(member, sizes))
        for member in method.members
    }
    return Fusion(name=name, ensemble=method, members=members)


def open_method(
    name: str, checkpoint: str | Path | None = None, sizes: Sizes | None = None
) -> Model:
    """The one method `name` with the weights of `checkpoint`, or those it ships.

    A method that ships none has those that `esrjax weights get` has brought. checkpoint: a file, or
    the key of published weights (`Method.weights`) that were brought so.
    """
    method = registry.plain(name)
    path = _default(name, method) if checkpoint is None else _meant(method, checkpoint)
    found = recognise(name, method, archive.read(path), sizes)
    return Model(
        name=name,
        method=method,
        net=deploy(found.net),
        sizes=found.sizes,
        checkpoint=found.checkpoint,
    )


def sizes_of(member: str, sizes: Sizes | None) -> Sizes:
    """`{"span.channels": 48}` -> `{"channels": 48}` for the member `span`."""
    said = f"{member}."
    return {k.removeprefix(said): v for k, v in (sizes or {}).items() if k.startswith(said)}


def require_ensemble(
    name: str, ensemble: Ensemble, files: Mapping[str, Any], sizes: Sizes | None
) -> None:
    """Members that exist and share the scale, with weights and sizes of their own."""
    members = ", ".join(ensemble.members) or "none"
    scales = {registry.plain(member).scale for member in ensemble.members} | {ensemble.scale}
    if len(scales) > 1 or not ensemble.members:
        raise BadEnsemble(
            f"the members of {name!r} cannot be fused: {members}",
            rule=f"there is at least one, and all make pictures {ensemble.scale} times larger",
            remedy="correct the ensemble's members or its scale",
        )
    theirs = {member: sizes_of(member, sizes) for member in ensemble.members}
    if files.get(name) is not None or sum(map(len, theirs.values())) < len(sizes or {}):
        first = next(iter(ensemble.members))
        raise BadEnsemble(
            f"{name!r} is an ensemble and has no weights or sizes of its own",
            rule=f"checkpoints and sizes belong to its members: {members}",
            remedy=f"give a file as {first}=FILE, a size as {first}.SIZE=VALUE",
        )


def _default(name: str, method: Method) -> Path:
    """The shipped weights, else the first published ones that lie here."""
    if method.pretrained is not None:
        package, _, file = method.pretrained.partition(":")
        with resources.as_file(resources.files(package) / file) as path:
            return path
    here = [path for weights in method.weights.values() if (path := published.held(weights))]
    if not here:
        raise _no_weights(name, method)
    return here[0]


def _meant(method: Method, checkpoint: str | Path) -> str | Path:
    """The file, or the one that was brought for the published weights of that name."""
    weights = method.weights.get(str(checkpoint))
    if weights is None or Path(checkpoint).exists():
        return checkpoint
    return published.held(weights) or checkpoint


def _no_weights(name: str, method: Method) -> NoWeights:
    said = [
        f"{key} ({weights.url or 'no address'}, sha256 {weights.sha256[:12]}…)"
        for key, weights in method.weights.items()
    ]
    to_have = any(weights.url for weights in method.weights.values())
    return NoWeights(
        f"{name} ships no weights",
        rule=f"published for it: {', '.join(said) or 'none'}",
        remedy=f"get them with `esrjax weights get {name}`, or give a file with --checkpoint"
        if to_have
        else "give a file with --checkpoint",
    )
