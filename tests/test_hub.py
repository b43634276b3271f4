"""Downloads of published weights: complete or not at all, whatever the connection does."""

import hashlib
import json
import os
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from esrjax import hub, registry
from esrjax.errors import DownloadError, NotFound, UnwritableFile
from esrjax.inference import open_method
from esrjax.method import Weights
from esrjax.nn import checkpoint_io
from esrjax.nn.state_dict import KeyMap, to_state_dict

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A server of `content`; `faults` has one fault for each request, later ones have none."""

    def __init__(self, content=CONTENT, faults=(), ranges=True, name="net.pth"):
        self.content, self.faults, self.ranges = content, list(faults), ranges
        self.range_starts = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/{name}"

    def answer(self, request):
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(match[1]) if match and self.ranges else 0
        self.range_starts.append(start)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "gone":
            request.send_error(404)
        elif fault == "busy":
            request.send_error(503)
        elif start >= len(self.content):
            request.send_error(416)
        else:
            request.send_response(206 if start else 200)
            request.send_header("Content-Length", str(len(self.content) - start))
            if start:
                last = len(self.content) - 1
                request.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
            request.end_headers()
            end = len(self.content) if fault is None else start + fault
            request.wfile.write(self.content[start:end])


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(hub, "LIMITS", replace(hub.LIMITS, first_pause_s=0.001))
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def test_broken_download_resumes(serve, tmp_path):
    server, progress = serve(faults=[100_000, "busy", 0, 50_000]), []
    target = hub.download_file(
        server.url, tmp_path / "net.pth", SHA256, lambda *a: progress.append(a)
    )
    assert target.read_bytes() == CONTENT
    assert server.range_starts == [0, 100_000, 100_000, 100_000, 150_000]
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_later_call_resumes_and_complete_file_is_not_requested(serve, tmp_path):
    faults = [120_000] + [0] * hub.LIMITS.idle_tries
    server, target = serve(faults=faults), tmp_path / "net.pth"
    with pytest.raises(DownloadError, match="broke off after 120000 of 300000") as error:
        hub.download_file(server.url, target, SHA256)
    assert "120000 bytes are kept" in str(error.value) and not target.exists()
    hub.download_file(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT and server.range_starts[-1] == 120_000
    (tmp_path / ".again.pth.partial").write_bytes(CONTENT)
    assert hub.download_file(server.url, tmp_path / "again.pth", SHA256).read_bytes() == CONTENT


def test_server_without_ranges_restarts_the_download(serve, tmp_path):
    server = serve(faults=[100_000], ranges=False)
    target = hub.download_file(server.url, tmp_path / "net.pth", SHA256)
    assert target.read_bytes() == CONTENT and server.range_starts == [0, 0]


def test_file_with_another_sha256_is_removed(serve, tmp_path):
    server = serve(content=CONTENT[::-1])
    with pytest.raises(DownloadError, match="SHA-256") as error:
        hub.download_file(server.url, tmp_path / "net.pth", SHA256)
    assert SHA256 in str(error.value) and not [*tmp_path.iterdir()]


def test_missing_file_is_reported_without_retry(serve, tmp_path):
    server = serve(faults=["gone"])
    with pytest.raises(DownloadError, match="404"):
        hub.download_file(server.url, tmp_path / "net.pth", SHA256)
    assert len(server.range_starts) == 1 and not [*tmp_path.iterdir()]


@pytest.fixture
def crumb(crumbs, serve, tmp_path, monkeypatch):
    """The method `crumb` with published weights on a server, and no local ones."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "data"))
    method = registry.get_method("crumb")
    file = tmp_path / "crumb.safetensors"
    state_dict = to_state_dict(method.build(seed=3), KeyMap(method.torch_names))
    checkpoint_io.write_safetensors(
        file, state_dict, checkpoint_io.make_metadata("crumb", method, "train", {})
    )
    content = file.read_bytes()
    server = serve(content=content, name="crumb.safetensors")
    weights = Weights(sha256=hashlib.sha256(content).hexdigest(), url=server.url, form="train")
    published_one = replace(method, weights={"mine": weights}, pretrained=None)
    monkeypatch.setattr(registry, "get_entry", lambda _: published_one)
    monkeypatch.setattr(registry, "get_method", lambda _: published_one)
    return published_one


def test_downloaded_weights_are_loaded_by_default(esrjax, crumb, tmp_path):
    with pytest.raises(NotFound, match="esrjax weights get crumb"):
        open_method("crumb")
    result = esrjax("weights", "get", "crumb")
    file = tmp_path / "data" / "weights" / "crumb.safetensors"
    assert result.code == 0 and str(file) in result.out and file.is_file()
    rows = json.loads(esrjax("weights", "list", "--json").out)
    assert {row["file"] for row in rows} == {str(file)}
    for checkpoint in (None, "mine"):
        assert open_method("crumb", checkpoint).checkpoint.path == file
    file.write_bytes(b"changed")
    with pytest.raises(NotFound):
        open_method("crumb")


def test_unknown_key_and_missing_url_are_reported(crumb):
    with pytest.raises(NotFound, match="'theirs'") as error:
        hub.find_weights("crumb", crumb, "theirs")
    assert "mine" in str(error.value)
    with pytest.raises(DownloadError, match="no download URL"):
        hub.download("crumb", replace(crumb.weights["mine"], url=None))


def test_other_file_of_the_same_name_is_not_replaced(crumb, tmp_path):
    (tmp_path / "crumb.safetensors").write_bytes(b"mine")
    with pytest.raises(UnwritableFile, match="is not the published file"):
        hub.download("crumb", crumb.weights["mine"], tmp_path)
    assert (tmp_path / "crumb.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "url, name",
    [
        ("http://h/n.pth?download=true#x", "n.pth"),
        ("http://h/%2e%2e%2fa%20b.pth", "a b.pth"),
        ("http://h/..", f"weights_{SHA256[:16]}"),
        ("http://h/" + "a" * 300 + ".pth", "a" * 80 + ".pth"),
    ],
)
def test_file_has_an_honest_name_whatever_the_url(tmp_path, url, name):
    assert hub.local_path(Weights(sha256=SHA256, url=url), tmp_path) == tmp_path / name


def test_two_downloads_of_one_file_at_once_both_end_whole(serve, tmp_path):
    server, target = serve(faults=[100_000]), tmp_path / "net.pth"

    def download_again(num_bytes, total_bytes):
        if num_bytes == 100_000:  # the first is in the middle
            assert hub.download_file(server.url, target, SHA256).read_bytes() == CONTENT

    assert hub.download_file(server.url, target, SHA256, download_again).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_odd_partial_file_is_left_alone(serve, tmp_path, make):
    make(tmp_path / ".net.pth.partial")
    assert hub.download_file(serve().url, tmp_path / "net.pth", SHA256).read_bytes() == CONTENT
    assert len([*tmp_path.iterdir()]) == 2


def test_stale_partial_file_is_replaced(serve, tmp_path):
    (tmp_path / ".net.pth.partial").write_bytes(b"an older version")
    assert hub.download_file(serve().url, tmp_path / "net.pth", SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "limits, reason",
    [
        ({"max_bytes": 299_999}, "at most 299,999"),
        ({"max_seconds": -1.0}, "longer than"),
        ({"idle_seconds": 1e-6}, "timed out|too slow"),
    ],
)
def test_answer_beyond_a_limit_is_refused(serve, tmp_path, limits, reason):
    limits = replace(hub.LIMITS, min_bytes_per_s=1e12, **limits)
    with pytest.raises(DownloadError, match=reason):
        hub.download_file(serve().url, tmp_path / "net.pth", SHA256, limits=limits)
    assert not (tmp_path / "net.pth").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/x", "http://h:port/x", "x.pth"])
def test_other_addresses_are_refused(tmp_path, url):
    with pytest.raises(DownloadError):
        hub.download_file(url, tmp_path / "net.pth", SHA256)
    assert not [*tmp_path.iterdir()]
