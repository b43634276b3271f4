"""Published checkpoints of methods: lookup, local files, and resumed, verified downloads."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from importlib import resources
from io import BufferedRandom
from pathlib import Path, PurePath
from socket import SHUT_RDWR
from threading import Timer
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import (
    AbstractHTTPHandler,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from esrjax.errors import DownloadError, NotFound, PluginError, UnwritableFile, error_summary
from esrjax.io import download_dirs, file_format, sha256_file, weights_dir
from esrjax.method import Method, Weights

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server may take of time and space; a download that exceeds one fails.

    Attributes:
        max_bytes: Size of the file.
        max_seconds: Time of a download, all tries together.
        idle_seconds: Time without a byte, and time for an answer to begin.
        min_bytes_per_s: Mean rate of a try, from `idle_seconds` on.
        idle_tries: Tries in a row without a single byte.
        first_pause_s: Pause before the second try; doubled each time.
    """

    max_bytes: int = 8 << 30
    max_seconds: float = 6 * 3600
    idle_seconds: float = 30
    min_bytes_per_s: float = 1024
    idle_tries: int = 5
    first_pause_s: float = 0.5


LIMITS = Limits()
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
    try:
        with resources.as_file(resources.files(package) / file) as path:
            return path
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise PluginError(
            f"The shipped weights {method.pretrained!r} are missing: {error_summary(error)}",
            rule="Method.pretrained is PACKAGE:FILE, a file in that package",
            remedy="repair or uninstall the package that registers the method",
        ) from error


def local_path(weights: Weights, folder: Path | None = None) -> Path:
    """Return the path to which the weights are downloaded: the last component of their URL.

    What names of files should not have is replaced by `_`; without a name it is of the SHA-256.

    Args:
        weights: Published weights with a URL.
        folder: By default `esrjax.io.weights_dir()`.
    """
    assert weights.url is not None  # callers check it
    name = re.split(r"[/\\]", unquote(urlsplit(weights.url).path))[-1]
    name = re.sub(r"[^\w.+() -]", "_", name, flags=re.ASCII).strip(". ")
    suffix = PurePath(name).suffix
    stem = name.removesuffix(suffix)[:80] or f"weights_{weights.sha256[:16]}"
    return (folder or weights_dir()) / f"{stem}{suffix[:16]}"


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
    url: str,
    target: Path,
    sha256: str,
    on_progress: ProgressCallback = lambda *_: None,
    limits: Limits | None = None,
) -> Path:
    """Download a file; `target` exists only once its SHA-256 is right.

    The bytes that arrived before a connection broke are kept in `.NAME.partial`, next to `target`,
    and the download resumes from there, also in a later call. A second download of the file at the
    same time has a partial file of its own.

    Args:
        url: HTTP(S) URL.
        target: Path to write to; missing folders are created.
        sha256: Expected SHA-256, in hex.
        on_progress: Called after every chunk.
        limits: By default `LIMITS`.

    Returns:
        `target`.

    Raises:
        DownloadError: The server cannot be reached, refuses or exceeds a limit, the path cannot be
            written to, or the file has another SHA-256; then it is removed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _open_partial(target) as (file, path):
            download = _Download(url, file, on_progress, limits or LIMITS)
            is_resumed = download.num_bytes > 0
            download.run()
            if is_resumed and sha256_file(path) != sha256:  # it began with another file
                file.truncate(0)
                download.run()
            actual_sha256, name = sha256_file(path), file_format(path)
            if actual_sha256 == sha256:
                os.replace(path, target)
                return target
            file.truncate(0)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: of an odd URL
        partial = _partial_path(target)
        num_bytes = partial.stat().st_size if partial.is_file() else 0
        resume_hint = f"; {num_bytes} bytes are kept and the same command resumes from there"
        raise DownloadError(
            f"The download failed: {_reason_text(error)}",
            rule="the URL must be reachable and the folder writable",
            location=f"{url} -> {target.parent}",
            remedy=f"check the connection and the free disk space{resume_hint * bool(num_bytes)}",
        ) from error
    raise DownloadError(
        f"The downloaded file has the SHA-256 {actual_sha256}; it is {name}",
        rule=f"the published file has {sha256}",
        location=url,
        remedy="try again; if it happens again, the file at this URL was changed and is not used",
    )


def _partial_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _open_partial(target: Path) -> Generator[tuple[BufferedRandom, Path]]:
    """Yield the file for what arrives and its path; after an error it is kept unless it is empty.

    If another download has it open, or it is no regular file, it is a new one, which is not kept.
    """
    path, is_kept = _partial_path(target), True
    file = _open_locked(path)
    if file is None:
        path, is_kept = target.with_name(f".{secrets.token_hex(8)}.partial"), False
        file = path.open("xb+")
    with file:
        try:
            yield file, path
        finally:
            if not (is_kept and file.seek(0, os.SEEK_END)):
                path.unlink(missing_ok=True)


def _open_locked(path: Path) -> BufferedRandom | None:
    """Open a file for reading and writing if it is a regular one and no other process has it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, folder, socket
            return None
        raise
    with suppress(OSError):
        status = os.fstat(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another download may have renamed it since it was opened.
        if stat.S_ISREG(status.st_mode) and status.st_ino == path.stat().st_ino:
            return os.fdopen(descriptor, "rb+")
    os.close(descriptor)
    return None


# --- one download --------------------------------------------------------------------------------


class _Refused(OSError):
    """Raised when trying again would not help."""


@dataclass(frozen=True)
class _Download:
    url: str
    file: BufferedRandom
    on_progress: ProgressCallback
    limits: Limits
    start: float = field(default_factory=time.monotonic)

    @property
    def num_bytes(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def run(self) -> None:
        """Request the rest until it is complete; give up after several tries without a byte."""
        idle_tries = 0
        while True:
            size_before = self.num_bytes
            try:
                self._append_rest()
                return self.file.flush()
            except (OSError, HTTPException) as error:
                idle_tries = idle_tries + 1 if self.num_bytes == size_before else 0
                if isinstance(error, _Refused) or idle_tries >= self.limits.idle_tries:
                    raise
            pause = self.limits.first_pause_s * 2**idle_tries
            self._check_time(pause)
            time.sleep(pause)

    def _append_rest(self) -> None:
        """Request the missing bytes once and append them."""
        num_bytes = self.num_bytes
        headers = {"User-Agent": "esrjax"} | ({"Range": f"bytes={num_bytes}-"} if num_bytes else {})
        try:
            response = _open_url(Request(self.url, headers=headers), self.limits.idle_seconds)
        except HTTPError as error:
            error.close()
            if error.code == 416 and num_bytes:  # range not satisfiable: the file is complete
                return
            if error.code < 500 and error.code not in (408, 429):  # the client's fault
                raise _Refused(_reason_text(error)) from error
            raise
        with response:
            if not self._is_continued(response, num_bytes):
                self.file.truncate(0)
                num_bytes = 0
            total_bytes = None if response.length is None else num_bytes + response.length
            if (total_bytes or 0) > self.limits.max_bytes:
                raise _Refused(f"the file has {total_bytes:,} bytes, {self._size_rule}")
            num_bytes = self._copy(response, total_bytes)
        if total_bytes is not None and num_bytes < total_bytes:
            text = f"the connection broke off after {num_bytes} of {total_bytes} bytes"
            raise ConnectionError(text)

    def _is_continued(self, response: Any, num_bytes: int) -> bool:
        """Return whether an answer goes on where the file ends, rather than from its beginning."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise _Refused(f"the server sends the file with Content-Encoding {encoding}")
        if response.status == 206 and num_bytes:
            content_range = response.headers.get("Content-Range", "")
            if content_range.startswith(f"bytes {num_bytes}-"):
                return True
            self.file.truncate(0)  # the next try asks for all of it
            raise ConnectionError(f"the server sends another part: {content_range}")
        if response.status != 200:
            raise _Refused(f"the server answers {response.status}, {response.reason}")
        return False

    def _copy(self, response: Any, total_bytes: int | None) -> int:
        """Append what arrives and return the size of the file."""
        start, first, num_bytes = time.monotonic(), self.num_bytes, self.num_bytes
        while chunk := response.read1(CHUNK_BYTES):
            self.file.write(chunk)
            num_bytes += len(chunk)
            if num_bytes > self.limits.max_bytes:
                self.file.truncate(0)
                raise _Refused(
                    f"more than {num_bytes - len(chunk):,} bytes arrive, {self._size_rule}"
                )
            self.on_progress(num_bytes, total_bytes)
            seconds = time.monotonic() - start
            rate = (num_bytes - first) / max(seconds, 1e-9)
            if seconds > self.limits.idle_seconds and rate < self.limits.min_bytes_per_s:
                raise _Refused(f"{rate:.0f} bytes arrive per second, which is too slow")
            self._check_time()
        return num_bytes

    @property
    def _size_rule(self) -> str:
        return f"at most {self.limits.max_bytes:,} are accepted"

    def _check_time(self, pause: float = 0.0) -> None:
        if time.monotonic() + pause - self.start > self.limits.max_seconds:
            raise _Refused(f"it takes longer than {self.limits.max_seconds:,g} s")


class _Redirects(HTTPRedirectHandler):
    """Follows redirections to HTTP and HTTPS only."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.port == 0:  # ValueError: no number
        raise _Refused(f"{url!r:.200} is no address of HTTP or HTTPS")


def _open_url(request: Request, seconds: float) -> Any:
    """Return an answer; raise if it does not begin within `seconds`, redirections included."""
    _check_scheme(request.full_url)
    connections: list[HTTPConnection] = []

    def recorded(handler: type[AbstractHTTPHandler]) -> type[AbstractHTTPHandler]:
        class Recorded(handler):
            def do_open(self, http_class: Any, req: Request, **http_conn_args: Any) -> Any:
                def connect(*args: Any, **kwargs: Any) -> HTTPConnection:
                    connections.append(http_class(*args, **kwargs))
                    return connections[-1]

                return super().do_open(connect, req, **http_conn_args)

        return Recorded

    def break_off() -> None:  # the timeout of a socket starts anew with every byte
        for connection in connections:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(SHUT_RDWR)

    timer = Timer(seconds, break_off)
    timer.start()
    try:
        opener = build_opener(_Redirects, recorded(HTTPHandler), recorded(HTTPSHandler))
        return opener.open(request, timeout=seconds)
    finally:
        timer.cancel()


def _reason_text(reason: Exception) -> str:
    """Return the text of the innermost reason: `Name or service not known`."""
    if isinstance(reason, HTTPError):
        return f"the server answers {reason.code}, {reason.reason}"
    cause = reason.reason if isinstance(reason, URLError) else reason
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
