"""Download of files over HTTP: resumed after a broken connection, verified by SHA-256."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from esrjax import runtime
from esrjax.errors import DownloadError, NotFound, UnwritableFile
from esrjax.method import Method, Weights

MAX_IDLE_TRIES = 5  # in a row without a single byte
FIRST_PAUSE_S = 0.5  # before the second try; doubled each time
TIMEOUT_S = 30.0  # without a byte
CHUNK_BYTES = 1 << 16

ProgressCallback = Callable[[int, int | None], None]  # bytes so far, and the total if it is known


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
        DownloadError: The server cannot be reached or refuses, or the path cannot be written to.
        DownloadError: The file has another SHA-256; it is removed.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, partial, on_progress)
        _check_sha256(partial, sha256, url)
        os.replace(partial, target)
    except OSError as error:
        raise _unreachable(url, partial, _reason_text(error)) from error
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download_rest(url: str, partial: Path, on_progress: ProgressCallback) -> None:
    """Request the rest until it is complete; give up after several tries without a byte."""
    idle_tries = 0
    while True:
        size_before = _num_bytes(partial)
        try:
            _append_rest(url, partial, on_progress)
            return
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # the client's fault: no retry
                raise
            reason = error
        except (OSError, HTTPException) as error:
            reason = error
        idle_tries = idle_tries + 1 if _num_bytes(partial) == size_before else 0
        if idle_tries >= MAX_IDLE_TRIES:
            raise OSError(_reason_text(reason)) from reason
        time.sleep(FIRST_PAUSE_S * 2**idle_tries)


def _reason_text(reason: Exception) -> str:
    """Return the text of the innermost reason: `Name or service not known`."""
    if isinstance(reason, HTTPError):
        return f"the server answers {reason.code}, {reason.reason}"
    cause = reason.reason if isinstance(reason, URLError) else reason
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _append_rest(url: str, partial: Path, on_progress: ProgressCallback) -> None:
    """Request the missing bytes once and append them."""
    with _request(url, _num_bytes(partial)) as response:
        if response is None:
            return
        # 206 is partial content; a server that ignores the range sends 200 and the whole file.
        num_bytes = _num_bytes(partial) if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total_bytes = num_bytes + int(length) if length else None
        with partial.open("ab" if num_bytes else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                num_bytes += len(chunk)
                on_progress(num_bytes, total_bytes)
    if total_bytes is not None and num_bytes < total_bytes:
        raise ConnectionError(f"the connection broke off after {num_bytes} of {total_bytes} bytes")


@contextmanager
def _request(url: str, start: int) -> Generator[HTTPResponse | None]:
    """Yield the response to a request from byte `start` on; None if nothing is left to send."""
    headers = {"User-Agent": "esrjax", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT_S) as response:
            yield response
    except HTTPError as error:
        if error.code != 416 or not start:  # range not satisfiable: the file was complete
            raise
        yield None


def _num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_sha256(partial: Path, sha256: str, url: str) -> None:
    actual = file_sha256(partial)
    if actual == sha256:
        return
    partial.unlink()
    raise DownloadError(
        f"The downloaded file has the SHA-256 {actual}",
        rule=f"the published file has {sha256}",
        location=url,
        remedy="try again; if it happens again, the file at this URL was changed and is not used",
    )


def _unreachable(url: str, partial: Path, reason: str) -> DownloadError:
    num_bytes = _num_bytes(partial)
    resume_hint = (
        f"; {num_bytes} bytes are kept and the same command resumes from there" if num_bytes else ""
    )
    return DownloadError(
        f"The download failed: {reason}",
        rule="the URL must be reachable and the folder writable",
        location=f"{url} -> {partial.parent}",
        remedy=f"check the connection and the free disk space{resume_hint}",
    )


# --------------------------------------------------------------------------------------------------
# Published checkpoints of methods: lookup, download and local files.
# --------------------------------------------------------------------------------------------------


def weights_dir() -> Path:
    """Return the folder of downloaded weights: `$ESRJAX_DATA/weights`, else the user's cache."""
    if data := os.environ.get("ESRJAX_DATA"):
        return Path(data) / "weights"
    return runtime.cache_dir("weights")


def find_weights(method_name: str, method: Method, key: str | None = None) -> Weights:
    """Return published weights of a method.

    Args:
        method_name: Registered name of the method, for the error.
        method: The method.
        key: Name of the weights; by default the first that have a download URL.

    Raises:
        NotFound: There are none.
    """
    entries = {key: method.weights.get(key)} if key else method.weights
    candidates = [weights for weights in entries.values() if weights and (key or weights.url)]
    if candidates:
        return candidates[0]
    raise NotFound(
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
        DownloadError: The weights have no URL.
        UnwritableFile: `folder` contains another file of that name.
        DownloadError: The download fails.
        DownloadError: The downloaded file has another SHA-256.
    """
    if weights.url is None:
        raise DownloadError(
            f"The published weights of {method_name} have no download URL",
            rule=f"the file has the SHA-256 {weights.sha256}",
            remedy="ask the authors for it, and pass the file with --checkpoint",
        )
    target = local_path(weights, folder)
    if target.is_file() and file_sha256(target) == weights.sha256:
        return target
    if folder is not None and target.exists():
        raise UnwritableFile(
            f"'{target}' exists and is not the published file",
            rule=f"the published file has the SHA-256 {weights.sha256}",
            remedy="move it away, or choose another folder with -o",
        )
    return download_file(weights.url, target, weights.sha256, on_progress)


def _describe_entry(item: tuple[str, Weights]) -> str:
    key, weights = item
    return key if weights.url else f"{key} (no download URL)"
