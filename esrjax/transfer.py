"""A file over HTTP: resumed where it broke off, and there only when it is whole."""

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

from esrjax.errors import UserError

TRIES = 5  # in a row that bring nothing
PAUSE = 0.5  # seconds before the second try; doubled each time
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16

Tell = Callable[[int, int | None], None]  # bytes so far, and of how many if that is known


class Unreachable(UserError):
    """A file that cannot be had from its address."""


class WrongFile(UserError):
    """The address gives another file than it should."""


def fetch(url: str, target: Path, sha256: str, tell: Tell = lambda *_: None) -> Path:
    """The file at `url`, written to `target` once its sha256 is right.

    What came before a connection broke is kept beside it, for the next call as well.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _complete(url, partial, tell)
        _require(partial, sha256, url)
        os.replace(partial, target)
    except OSError as error:
        raise _failed(url, partial, _words(error)) from error
    return target


def digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(url: str, partial: Path, tell: Tell) -> None:
    """Ask for the rest until nothing is left; give up when several tries in a row bring nothing."""
    idle = 0
    while True:
        before = _size(partial)
        try:
            _append(url, partial, tell)
            return
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise
            reason = error
        except (OSError, HTTPException) as error:
            reason = error
        idle = idle + 1 if _size(partial) == before else 0
        if idle >= TRIES:
            raise OSError(_words(reason)) from reason
        time.sleep(PAUSE * 2**idle)


def _words(reason: Exception) -> str:
    """`Name or service not known`, without the wrapping."""
    if isinstance(reason, HTTPError):
        return f"the server answers {reason.code}, {reason.reason}"
    inner = reason.reason if isinstance(reason, URLError) else reason
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _append(url: str, partial: Path, tell: Tell) -> None:
    """One request for what is missing."""
    with _reply(url, _size(partial)) as reply:
        if reply is None:
            return
        start = _size(partial) if reply.status == 206 else 0
        length = reply.headers.get("Content-Length")
        whole = start + int(length) if length else None
        with partial.open("ab" if start else "wb") as file:
            while piece := reply.read(CHUNK):
                file.write(piece)
                start += len(piece)
                tell(start, whole)
    if whole is not None and start < whole:
        raise ConnectionError(f"the connection broke off after {start} of {whole} bytes")


@contextmanager
def _reply(url: str, start: int) -> Generator[HTTPResponse | None]:
    """The answer to a request from byte `start` on; None where there is nothing left to send."""
    headers = {"User-Agent": "esrjax", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as reply:
            yield reply
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        yield None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require(partial: Path, sha256: str, url: str) -> None:
    found = digest(partial)
    if found == sha256:
        return
    partial.unlink()
    raise WrongFile(
        f"the file has the sha256 {found}",
        rule=f"the published one has {sha256}",
        place=url,
        remedy="try again; if it stays so, the file at this address was changed and is not used",
    )


def _failed(url: str, partial: Path, reason: str) -> Unreachable:
    held = _size(partial)
    kept = f"; {held} bytes are kept and the same command goes on from there" if held else ""
    return Unreachable(
        f"the file did not arrive: {reason}",
        rule="the address can be reached, and the folder written to",
        place=f"{url} -> {partial.parent}",
        remedy=f"check the connection and the room on the disk{kept}",
    )
