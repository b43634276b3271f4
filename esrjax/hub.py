"""Published checkpoints of methods: lookup, local files, and resumed, verified downloads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from esrjax.errors import DownloadError, NotFound, UnwritableFile
from esrjax.io import download_dirs, sha256_file, weights_dir
from esrjax.method import Method, Weights

MAX_IDLE_TRIES = 5  # in a row without a single byte
FIRST_PAUSE_S = 0.5  # before the second try; doubled each time
TIMEOUT_S = 30.0  # without a byte
CHUNK_BYTES = 1 << 16

ProgressCallback = Callable[[int, int | None], None]  # bytes so far, and the total if it is known


def find_weights(method_name: str, method: Method, key: str | None = None) -> Weights:
    """Return published weights of a method.

    Args:
        method_name: Registered name of the method, for the error.
        method: The method.
        key: Name of the weights; by default the first that have a download URL.

    Raises:
        NotFound: There are none.
    """
    for name, weights in method.weights.items():
        if name == key or (not key and weights.url):
            return weights
    published = [f"{k}{'' if w.url else ' (no download URL)'}" for k, w in method.weights.items()]
    raise NotFound(
        f"{method_name} has no published weights {key!r}"
        if key
        else f"{method_name} has no weights to download",
        rule=f"its published weights: {', '.join(published) or 'none'}",
        remedy="use one of these as --key"
        if key and method.weights
        else "ask the authors for a checkpoint; commands read it by --checkpoint FILE",
    )


def shipped_path(method: Method) -> Path | None:
    """Return the file of the weights that the method's plugin ships (`pretrained`), if any."""
    if method.pretrained is None:
        return None
    package, _, file = method.pretrained.partition(":")
    with resources.as_file(resources.files(package) / file) as path:
        return path


def local_path(weights: Weights, folder: Path | None = None) -> Path:
    """Return the path to which the weights are downloaded: the last component of their URL.

    Args:
        weights: Published weights with a URL.
        folder: By default `esrjax.io.weights_dir()`.
    """
    assert weights.url is not None  # callers check it
    return (folder or weights_dir()) / weights.url.rsplit("/", 1)[-1]


def find_local(weights: Weights, folder: Path | None = None) -> Path | None:
    """Return the file of published weights if it was downloaded and is intact, else None.

    Args:
        weights: Published weights.
        folder: By default `esrjax.io.download_dirs()`.
    """
    if weights.url is None:
        return None
    files = (local_path(weights, each) for each in ([folder] if folder else download_dirs()))
    is_intact = (file for file in files if file.is_file() and sha256_file(file) == weights.sha256)
    return next(is_intact, None)


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
        folder: By default `esrjax.io.weights_dir()`.
        on_progress: Called as `on_progress(bytes_so_far, total_bytes)`.

    Raises:
        DownloadError: The weights have no URL, the download fails, or the downloaded file has
            another SHA-256.
        UnwritableFile: `folder` contains another file of that name.
    """
    if weights.url is None:
        raise DownloadError(
            f"The published weights of {method_name} have no download URL",
            rule=f"the file has the SHA-256 {weights.sha256}",
            remedy="ask the authors for it, and pass the file with --checkpoint",
        )
    if file := find_local(weights, folder):
        return file
    target = local_path(weights, folder)
    if folder is not None and target.exists():
        raise UnwritableFile(
            f"'{target}' exists and is not the published file",
            rule=f"the published file has the SHA-256 {weights.sha256}",
            remedy="move it away, or choose another folder with -o",
        )
    return download_file(weights.url, target, weights.sha256, on_progress)


def download_file(
    url: str, target: Path, sha256: str, on_progress: ProgressCallback = lambda *_: None
) -> Path:
    """Download a file; `target` exists only once its SHA-256 is right.

    The bytes that arrived before a connection broke are kept in `.NAME.partial`, next to `target`,
    and the download resumes from there, also in a later call.

    Args:
        url: HTTP(S) URL.
        target: Path to write to; missing folders are created.
        sha256: Expected SHA-256, in hex.
        on_progress: Called after every chunk.

    Returns:
        `target`.

    Raises:
        DownloadError: The server cannot be reached or refuses, the path cannot be written to, or
            the file has another SHA-256; then it is removed.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, partial, on_progress)
        actual_sha256 = sha256_file(partial)
        if actual_sha256 == sha256:
            os.replace(partial, target)
            return target
        partial.unlink()
    except OSError as error:
        num_bytes = _num_bytes(partial)
        resume_hint = f"; {num_bytes} bytes are kept and the same command resumes from there"
        raise DownloadError(
            f"The download failed: {_reason_text(error)}",
            rule="the URL must be reachable and the folder writable",
            location=f"{url} -> {partial.parent}",
            remedy=f"check the connection and the free disk space{resume_hint * bool(num_bytes)}",
        ) from error
    raise DownloadError(
        f"The downloaded file has the SHA-256 {actual_sha256}",
        rule=f"the published file has {sha256}",
        location=url,
        remedy="try again; if it happens again, the file at this URL was changed and is not used",
    )


def _download_rest(url: str, partial: Path, on_progress: ProgressCallback) -> None:
    """Request the rest until it is complete; give up after several tries without a byte."""
    idle_tries = 0
    while True:
        size_before = _num_bytes(partial)
        try:
            return _append_rest(url, partial, on_progress)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 429):
                raise  # the client's fault: no retry
            idle_tries = idle_tries + 1 if _num_bytes(partial) == size_before else 0
            if idle_tries >= MAX_IDLE_TRIES:
                raise OSError(_reason_text(error)) from error
        time.sleep(FIRST_PAUSE_S * 2**idle_tries)


def _reason_text(reason: Exception) -> str:
    """Return the text of the innermost reason: `Name or service not known`."""
    if isinstance(reason, HTTPError):
        return f"the server answers {reason.code}, {reason.reason}"
    cause = reason.reason if isinstance(reason, URLError) else reason
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _append_rest(url: str, partial: Path, on_progress: ProgressCallback) -> None:
    """Request the missing bytes once and append them."""
    num_bytes = _num_bytes(partial)
    headers = {"User-Agent": "esrjax", **({"Range": f"bytes={num_bytes}-"} if num_bytes else {})}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416 and num_bytes:  # range not satisfiable: the file is complete
            return
        raise
    with response:
        # 206 is partial content; a server that ignores the range sends 200 and the whole file.
        num_bytes = num_bytes if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total_bytes = num_bytes + int(length) if length else None
        with partial.open("ab" if num_bytes else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                num_bytes += len(chunk)
                on_progress(num_bytes, total_bytes)
    if total_bytes is not None and num_bytes < total_bytes:
        raise ConnectionError(f"the connection broke off after {num_bytes} of {total_bytes} bytes")


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
