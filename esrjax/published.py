"""Published checkpoints of methods on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from esrjax import cache
from esrjax.errors import UserError
from esrjax.method import Method, Weights
from esrjax.transfer import Tell, digest, fetch


class NotPublished(UserError):
    """A key behind which a method has no published weights."""


class NoAddress(UserError):
    """Published weights whose plugin gives no address."""


class Occupied(UserError):
    """A place where another file lies."""


def folder() -> Path:
    """Where downloaded weights lie: `$ESRJAX_DATA/weights`, else the user's cache."""
    if data := os.environ.get("ESRJAX_DATA"):
        return Path(data) / "weights"
    return cache.folder("weights")


def weights_of(name: str, method: Method, key: str | None = None) -> Weights:
    """The published weights `key` of a method, or the first that have an address."""
    known = {key: method.weights.get(key)} if key else method.weights
    found = [weights for weights in known.values() if weights and (key or weights.url)]
    if found:
        return found[0]
    raise NotPublished(
        f"{name} has no published weights {key!r}" if key else f"{name} has no weights to get",
        rule=f"its published weights: {', '.join(map(_said, method.weights.items())) or 'none'}",
        remedy="name one of these" if key and method.weights else "give a file with --checkpoint",
    )


def path(weights: Weights, where: Path | None = None) -> Path:
    """The file in which they lie, or would, under the name that they have at their address."""
    assert weights.url is not None  # `get` and `held` ask for it
    return (where or folder()) / weights.url.rsplit("/", 1)[-1]


def held(weights: Weights) -> Path | None:
    """The file of published weights that were downloaded, if they were."""
    found = path(weights) if weights.url else None
    return found if found and found.is_file() and digest(found) == weights.sha256 else None


def get(
    name: str, weights: Weights, where: Path | None = None, tell: Tell = lambda *_: None
) -> Path:
    """The file, downloaded where it does not lie there already."""
    if weights.url is None:
        raise NoAddress(
            f"the published weights of {name} have no address",
            rule=f"the file with the sha256 {weights.sha256} is meant",
            remedy="ask its authors, and give the file with --checkpoint",
        )
    target = path(weights, where)
    if target.is_file() and digest(target) == weights.sha256:
        return target
    if where is not None and target.exists():
        raise Occupied(
            f"'{target}' is another file",
            rule=f"the published one has the sha256 {weights.sha256}",
            remedy="move it away, or name another folder with -o",
        )
    return fetch(weights.url, target, weights.sha256, tell)


def _said(item: tuple[str, Weights]) -> str:
    key, weights = item
    return key if weights.url else f"{key} (no address)"
