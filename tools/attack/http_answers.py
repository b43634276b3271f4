"""Answers of a server to a download: it ends whole, or in words and within its limits."""

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from attack.case import Case, find_refusal_fault
from esrjax import hub
from esrjax.method import Weights

CONTENT = np.random.default_rng(0).bytes(50_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
LIMITS = hub.Limits(
    max_bytes=100_000,
    max_seconds=1.5,
    idle_seconds=0.3,
    min_bytes_per_s=20_000,
    idle_tries=3,
    first_pause_s=0.001,
)
SECONDS = 4.0  # of a case, on a busy machine
Answer = Callable[[BaseHTTPRequestHandler, int], None]  # request, bytes that it has already


def _raw(head: str | bytes, body: bytes = b"") -> Answer:
    """Send bytes as they are."""
    lines = head.encode() if isinstance(head, str) else head
    return lambda request, start: (request.wfile.write(lines + body), None)[1]


def _headers(status: int, body: bytes = b"", **fields: object) -> Answer:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return _raw("\r\n".join([f"HTTP/1.1 {status} Odd", *lines, "", ""]), body)


def _whole(request: BaseHTTPRequestHandler, start: int) -> None:
    """Answer as a sound server does."""
    rest = CONTENT[start:]
    if start and not rest:
        return request.send_error(416)
    request.send_response(206 if start else 200)
    request.send_header("Content-Length", str(len(rest)))
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
    request.end_headers()
    request.wfile.write(rest)


def _cut(num_bytes: int) -> Answer:
    """Break off after so many bytes of the rest."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        rest = CONTENT[start:]
        _headers(
            206 if start else 200,
            rest[:num_bytes],
            Content_Length=len(rest),
            Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}",
        )(request, start)

    return answer


def _drip(head: bytes, body: bytes, pause: float) -> Answer:
    """Send the body byte by byte."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        request.wfile.write(head)
        for index in range(len(body)):
            request.wfile.write(body[index : index + 1])
            time.sleep(pause)

    return answer


def slow(pause: float) -> Answer:
    """Return a sound server that sends the file in ten parts, with a pause after each."""

    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        rest = CONTENT[start:]
        content_range = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        fields = {"Content_Length": len(rest), "Content_Range": content_range}
        _headers(206 if start else 200, **fields)(request, start)
        for index in range(0, len(rest), len(CONTENT) // 10):
            request.wfile.write(rest[index : index + len(CONTENT) // 10])
            time.sleep(pause)

    return answer


def _endless(head: bytes, chunk: bytes) -> Answer:
    def answer(request: BaseHTTPRequestHandler, start: int) -> None:
        request.wfile.write(head)
        while True:  # until the client closes the connection
            request.wfile.write(chunk)

    return answer


def _wait(head: bytes) -> Answer:
    return lambda request, start: (request.wfile.write(head), time.sleep(1.0))[1]


def _redirect(url: str, status: int = 302) -> Answer:
    return lambda request, start: _headers(status, Location=url)(request, start)


def _once(first: Answer, then: Answer = _whole) -> Answer:
    """Answer the first request differently from all others."""
    answers = [first]
    return lambda request, start: (answers.pop() if answers else then)(request, start)


def _chunked(body: bytes) -> Answer:
    return _headers(200, body, Transfer_Encoding="chunked")


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = OK + b"Content-Length: 50000\r\n\r\n"
PAGE = b"<!DOCTYPE html><html>quota exceeded</html>"
CHUNK = b"c350\r\n" + CONTENT + b"\r\n"
REFUSED: dict[str, Callable[[], Answer]] = {
    **{
        f"status {status}": functools.partial(_headers, status, Content_Length=0)
        for status in (201, 202, 204, 206, 226, 300, 301, 304, 305, 400, 401, 402, 403, 404, 405)
    },
    **{
        f"status {status}": functools.partial(_headers, status, Content_Length=0)
        for status in (407, 408, 410, 416, 429, 451, 500, 502, 503, 504, 599, 999)
    },
    "status 100 without end": lambda: _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "no answer": lambda: _raw(b""),
    "no answer for a second": lambda: _wait(b""),
    "headers without end": lambda: _endless(OK, b"X: y\r\n"),
    "one header without end": lambda: _endless(OK + b"X: ", b"y" * 1000),
    "a status line without end": lambda: _endless(b"HTTP/1.1 200 ", b"y" * 1000),
    "headers byte by byte": lambda: _drip(OK, b"X: y\r\n" * 999, 0.02),
    "headers that stop": lambda: _wait(OK),
    "another protocol": lambda: _raw(b"SSH-2.0-OpenSSH\r\n"),
    "null characters": lambda: _raw(bytes(1000)),
    "a status that is text": lambda: _raw(b"HTTP/1.1 fine OK\r\n\r\n"),
    "escapes in the reason": lambda: _raw(b"HTTP/1.1 404 \x1b[2J\x07\r\n\r\n"),
    "a reason of 60,000 characters": lambda: _raw(b"HTTP/1.1 404 " + b"x" * 60_000 + b"\r\n\r\n"),
    "too many bytes announced": lambda: _headers(200, Content_Length=10**12),
    "too many bytes without a length": lambda: _endless(OK + b"\r\n", bytes(9999)),
    "chunks without end": lambda: _endless(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + bytes(1000) + b"\r\n"
    ),
    "always cut after 0 bytes": lambda: _cut(0),
    "always the first half, without ranges": lambda: _headers(
        200, CONTENT[:HALF], Content_Length=len(CONTENT)
    ),
    "the first half as the whole": lambda: _headers(200, CONTENT[:HALF], Content_Length=HALF),
    "half, without a length": lambda: _headers(200, CONTENT[:HALF]),
    "byte by byte": lambda: _drip(LENGTH, CONTENT, 0.005),
    "stops in the middle": lambda: _wait(LENGTH + CONTENT[:HALF]),
    "chunks of garbage": lambda: _chunked(b"zz\r\n" + CONTENT),
    "a negative chunk": lambda: _chunked(b"-5\r\n" + CONTENT),
    "a chunk of 2**60 bytes": lambda: _chunked(b"1" + b"0" * 15 + b"\r\n" + CONTENT),
    "a chunk size without end": lambda: _endless(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 1000
    ),
    "chunks that break off": lambda: _chunked(CHUNK),
    "gzip": lambda: _headers(200, CONTENT, Content_Encoding="gzip", Content_Length=len(CONTENT)),
    "an unknown encoding": lambda: _headers(200, CONTENT, Content_Encoding="\x1b[2J"),
    "a page instead of the file": lambda: _headers(
        200, PAGE, Content_Type="text/html", Content_Length=len(PAGE)
    ),
    "an empty file": lambda: _headers(200, Content_Length=0),
    "another file": lambda: _headers(200, CONTENT[::-1], Content_Length=len(CONTENT)),
    "one byte more": lambda: _headers(200, CONTENT + b"x"),
    "redirection to a file": lambda: _redirect("file:///etc/passwd"),
    "redirection to FTP": lambda: _redirect("ftp://127.0.0.1/a.pth"),
    "redirection to data": lambda: _redirect("data:text/plain,abc"),
    "redirection to itself": lambda: _redirect("/net.pth"),
    "redirection to nowhere": lambda: _headers(302),
    "redirection to no address": lambda: _redirect("http://[bad"),
    "redirection to a closed port": lambda: _redirect("http://127.0.0.1:1/x"),
    "redirection with escapes": lambda: _redirect("gopher://\x1b[2J"),
}
ENDS_WHOLE: dict[str, Callable[[], Answer]] = {
    "a sound server": lambda: _whole,
    "no length": lambda: _headers(200, CONTENT),
    "a length that is text": lambda: _headers(200, CONTENT, Content_Length="many"),
    "a negative length": lambda: _headers(200, CONTENT, Content_Length=-5),
    "chunks": lambda: _chunked(CHUNK + b"0\r\n\r\n"),
    "a page's type": lambda: _headers(200, CONTENT, Content_Type="text/html"),
    "cut once": lambda: _once(_cut(HALF)),
    "cut after 1,000 bytes each time": lambda: _cut(20_000),
    "busy once": lambda: _once(_headers(503, Content_Length=0)),
    "no answer once": lambda: _once(_raw(b"")),
    "another part than asked for": lambda: _once(
        _cut(HALF), _once(_headers(206, CONTENT[:9], Content_Range="bytes 3-11/50000"))
    ),
    "a part without its place": lambda: _once(_cut(HALF), _once(_headers(206, CONTENT[HALF:]))),
    "no ranges": lambda: _once(_cut(HALF), _headers(200, CONTENT, Content_Length=len(CONTENT))),
    "a complete file that cannot be continued": lambda: _once(
        _headers(200, CONTENT, Content_Length=len(CONTENT) + 1), _whole
    ),
    "redirection": lambda: _once(_redirect("/elsewhere?x=1#y")),
    "redirection, permanent": lambda: _once(_redirect("/elsewhere", 308)),
    "1,000 bytes too many, cut off by their length": lambda: _headers(
        200, CONTENT + bytes(1000), Content_Length=len(CONTENT)
    ),
}
URLS = (  # refused without a request
    *("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://", "http://[bad/x", "net.pth"),
    *("http://127.0.0.1:99999/x", "http://127.0.0.1:port/x", "http://a b/x", "http://a\n/x"),
    *("http://" + "a" * 300 + ".invalid/x", "http://\x1b[2J/x", "HTTPS", "", "//x/y"),
)
NAMES = {  # URL -> name of the file; None: of the SHA-256
    "http://h/good/": None,
    "http://h": None,
    "http://h/good/..": None,
    "http://h/.": None,
    "http://h/n.safetensors?download=true": "n.safetensors",
    "http://h/n.pth#x": "n.pth",
    "http://h/a%20b.pth": "a b.pth",
    "http://h/%2e%2e%2fx.pth": "x.pth",
    "http://h/..\\..\\x.pth": "x.pth",
    "http://h/%00.pth": "_.pth",
    "http://h/a%0ab.pth": "a_b.pth",
    "http://h/%1b[2J.pth": "__2J.pth",
    "http://h/" + "a" * 300 + ".pth": "a" * 80 + ".pth",
    "http://h/.hidden": "hidden",
    "http://h/x." + "y" * 300: "x." + "y" * 15,
}  # fmt: skip


@contextmanager
def serve(answer: Answer) -> Generator[str]:
    """Yield the URL of a server on this machine that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            range_header = self.headers.get("Range", "")
            start = int(range_header.removeprefix("bytes=").rstrip("-") or 0)
            with suppress(OSError):  # the client closed the connection
                answer(self, start)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/net.pth"
    finally:
        server.shutdown()
        server.server_close()


def _attack(folder: Path, *, answer: Callable[[], Answer], ends_whole: bool) -> str | None:
    target, start = folder / "net.pth", time.monotonic()
    with serve(answer()) as url:
        download = functools.partial(hub.download_file, url, target, SHA256, limits=LIMITS)
        if not ends_whole:
            fault = find_refusal_fault(download)
        else:
            fault = None if download().read_bytes() == CONTENT else "another content"
    if fault is None and time.monotonic() - start > SECONDS:
        fault = f"longer than {SECONDS:g} s"
    names = sorted(path.name for path in folder.iterdir())
    allowed = [["net.pth"]] if ends_whole else [[], [".net.pth.partial"]]
    return fault or (None if names in allowed else f"it left {names}")


def _attack_url(folder: Path, *, url: str) -> str | None:
    download = functools.partial(hub.download_file, url, folder / "net.pth", SHA256, limits=LIMITS)
    names = sorted(path.name for path in folder.iterdir())
    return find_refusal_fault(download) or (f"it left {names}" if names else None)


def _attack_name(folder: Path, *, url: str, name: str | None) -> str | None:
    path = hub.local_path(Weights(sha256=SHA256, url=url), folder)
    expected = name or f"weights_{SHA256[:16]}"
    return None if path == folder / expected else f"the file is called {path.name!r}"


def cases() -> list[Case]:
    """Return a case for every answer, every odd URL and every name."""
    attacks: dict[str, Callable[[Path], str | None]] = {}
    for what, answer in REFUSED.items():
        attacks[what] = functools.partial(_attack, answer=answer, ends_whole=False)
    for what, answer in ENDS_WHOLE.items():
        attacks[what] = functools.partial(_attack, answer=answer, ends_whole=True)
    for url in URLS:
        attacks[f"URL {url!r:.40}"] = functools.partial(_attack_url, url=url)
    for url, name in NAMES.items():
        attacks[f"name of {url!r:.40}"] = functools.partial(_attack_name, url=url, name=name)
    return [Case(name=name, attack=attack, is_fast=True) for name, attack in attacks.items()]
