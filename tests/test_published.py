"""Published weights arrive whole, or not at all, whatever the line does."""

import hashlib
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from esrjax import published, registry, transfer
from esrjax.method import Weights
from esrjax.model import NoWeights, open_method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.weights import tensors

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Line:
    """A server that gives `content` as `faults`, one for each request, let it; then without any."""

    def __init__(self, content=CONTENT, faults=(), ranges=True, name="net.pth"):
        self.content, self.faults, self.ranges = content, list(faults), ranges
        self.asked = []
        line = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                line.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{name}"

    def answer(self, request):
        said = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(said[1]) if said and self.ranges else 0
        self.asked.append(start)
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
            request.end_headers()
            end = len(self.content) if fault is None else start + fault
            request.wfile.write(self.content[start:end])


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    lines = []

    def of(**how):
        lines.append(Line(**how))
        return lines[-1]

    yield of
    for each in lines:
        each.server.shutdown()
        each.server.server_close()


def test_a_broken_download_goes_on_where_it_broke(line, tmp_path):
    there, told = line(faults=[100_000, "busy", 0, 50_000]), []
    target = transfer.fetch(there.url, tmp_path / "net.pth", SHA256, lambda *a: told.append(a))
    assert target.read_bytes() == CONTENT
    assert there.asked == [0, 100_000, 100_000, 100_000, 150_000]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_a_later_call_goes_on_too_and_asks_nothing_when_all_is_there(line, tmp_path):
    faults = [120_000] + [0] * transfer.TRIES
    there, target = line(faults=faults), tmp_path / "net.pth"
    with pytest.raises(transfer.Unreachable, match="broke off after 120000 of 300000") as error:
        transfer.fetch(there.url, target, SHA256)
    assert "120000 bytes are kept" in str(error.value) and not target.exists()
    transfer.fetch(there.url, target, SHA256)
    assert target.read_bytes() == CONTENT and there.asked[-1] == 120_000
    (tmp_path / ".again.pth.partial").write_bytes(CONTENT)
    assert transfer.fetch(there.url, tmp_path / "again.pth", SHA256).read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_all_again(line, tmp_path):
    there = line(faults=[100_000], ranges=False)
    target = transfer.fetch(there.url, tmp_path / "net.pth", SHA256)
    assert target.read_bytes() == CONTENT and there.asked == [0, 0]


def test_another_file_is_not_kept(line, tmp_path):
    there = line(content=CONTENT[::-1])
    with pytest.raises(transfer.WrongFile, match="sha256") as error:
        transfer.fetch(there.url, tmp_path / "net.pth", SHA256)
    assert SHA256 in str(error.value) and not [*tmp_path.iterdir()]


def test_what_is_gone_is_said_at_once(line, tmp_path):
    there = line(faults=["gone"])
    with pytest.raises(transfer.Unreachable, match="404"):
        transfer.fetch(there.url, tmp_path / "net.pth", SHA256)
    assert len(there.asked) == 1 and not [*tmp_path.iterdir()]


@pytest.fixture
def crumb(crumbs, line, tmp_path, monkeypatch):
    """The method `crumb` with published weights on a server, and none on this machine."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "data"))
    method = registry.plain("crumb")
    file = tmp_path / "crumb.safetensors"
    held = tensors(method.build(seed=3), Naming(method.torch_names))
    archive.write_safetensors(file, held, archive.describe("crumb", method, "train", {}))
    content = file.read_bytes()
    there = line(content=content, name="crumb.safetensors")
    weights = Weights(sha256=hashlib.sha256(content).hexdigest(), url=there.url, form="train")
    published_one = replace(method, weights={"mine": weights}, pretrained=None)
    monkeypatch.setattr(registry, "method", lambda _: published_one)
    monkeypatch.setattr(registry, "plain", lambda _: published_one)
    return published_one


def test_what_was_brought_is_what_a_method_runs_with(esrjax, crumb, tmp_path):
    with pytest.raises(NoWeights, match="esrjax weights get crumb"):
        open_method("crumb")
    said = esrjax("weights", "get", "crumb")
    file = tmp_path / "data" / "weights" / "crumb.safetensors"
    assert said.code == 0 and str(file) in said.out and file.is_file()
    rows = json.loads(esrjax("weights", "list", "--json").out)
    assert {row["file"] for row in rows} == {str(file)}
    for checkpoint in (None, "mine"):
        assert open_method("crumb", checkpoint).checkpoint.path == file
    file.write_bytes(b"changed")
    with pytest.raises(NoWeights):
        open_method("crumb")


def test_a_key_and_an_address_that_are_not_there(crumb):
    with pytest.raises(published.NotPublished, match="'theirs'") as error:
        published.weights_of("crumb", crumb, "theirs")
    assert "mine" in str(error.value)
    with pytest.raises(published.NoAddress, match="have no address"):
        published.get("crumb", replace(crumb.weights["mine"], url=None))


def test_another_file_under_its_name_is_not_replaced(crumb, tmp_path):
    (tmp_path / "crumb.safetensors").write_bytes(b"mine")
    with pytest.raises(published.Occupied, match="is another file"):
        published.get("crumb", crumb.weights["mine"], tmp_path)
    assert (tmp_path / "crumb.safetensors").read_bytes() == b"mine"
