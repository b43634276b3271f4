"""Published checkpoints of methods: lookup, download and local files."""

from __future__ import annotations

import os
from pathlib import Path

from esrjax import cache
from esrjax.errors import UserError
from esrjax.method import Method, Weights
from esrjax.transfer import ProgressCallback, download_file, file_sha256


class NotPublished(UserError):
    """Raised when a method has no published weights of the given name."""


class NoDownloadUrl(UserError):
    """Raised when published weights have no download URL."""


class FileConflict(UserError):
    """Raised when a file that is not the published one is in the way of a download."""


def weights_dir() -> Path:
    """Return the folder of downloaded weights: `$ESRJAX_DATA/weights`, else the user's cache."""
    if data := os.environ.get("ESRJAX_DATA"):
        return Path(data) / "weights"
    return cache.cache_dir("weights")


def find_weights(method_name: str, method: Method, key: str | None = None) -> Weights:
    """Return published weights of a method.

    Args:
        method_name: Registered name of the method, for the error.
        method: The method.
        key: Name of the weights; by default the first that have a download URL.

    Raises:
        NotPublished: There are none.
    """
    entries = {key: method.weights.get(key)} if key else method.weights
    candidates = [weights for weights in entries.values() if weights and (key or weights.url)]
    if candidates:
        return candidates[0]
    raise NotPublished(
        f"{method_name} has no published weights {key!r}"
        if key
        else f"{method_name} has no weights to download",
        rule="its published weights: "
        f"{', '.join(map(_describe_entry, method.weights.items())) or 'none'}",
        remedy="use one of these as --key"
        if key and method.weights
        else "ask the authors for a checkpoint; commands read it by --checkpoint FILE",
    )


def local_path(weights: Weights, folder: Path | None = None) -> Path:
    """Return the path to which the weights are downloaded: the last component of their URL.

    Args:
        weights: Published weights with a URL.
        folder: By default `weights_dir()`.
    """
    assert weights.url is not None  # callers check it
    return (folder or weights_dir()) / weights.url.rsplit("/", 1)[-1]


def find_local(weights: Weights) -> Path | None:
    """Return the file of published weights if it was downloaded and is intact, else None."""
    file = local_path(weights) if weights.url else None
    return file if file and file.is_file() and file_sha256(file) == weights.sha256 else None


def download(
    method_name: str,
    weights: Weights,
    folder: Path | None = None,
    on_progress: ProgressCallback = lambda *_: None,
) -> Path:
    """Return the file of published weights; download it unless it is already there.

    Args:
        method_name: Registered name of the method, for the error.
        weights: Published weights.
        folder: By default `weights_dir()`.
        on_progress: Called as `on_progress(bytes_so_far, total_bytes)`.

    Raises:
        NoDownloadUrl: The weights have no URL.
        FileConflict: `folder` contains another file of that name.
        Unreachable: The download fails.
        WrongFile: The downloaded file has another SHA-256.
    """
    if weights.url is None:
        raise NoDownloadUrl(
            f"The published weights of {method_name} have no download URL",
            rule=f"the file has the SHA-256 {weights.sha256}",
            remedy="ask the authors for it, and pass the file with --checkpoint",
        )
    target = local_path(weights, folder)
    if target.is_file() and file_sha256(target) == weights.sha256:
        return target
    if folder is not None and target.exists():
        raise FileConflict(
            f"'{target}' exists and is not the published file",
            rule=f"the published file has the SHA-256 {weights.sha256}",
            remedy="move it away, or choose another folder with -o",
        )
    return download_file(weights.url, target, weights.sha256, on_progress)


def _describe_entry(item: tuple[str, Weights]) -> str:
    key, weights = item
    return key if weights.url else f"{key} (no download URL)"
