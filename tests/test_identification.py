"""The method and the origin of a checkpoint: by metadata, by SHA-256, by its tensors."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from esrjax import load, registry
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import InvalidArgument, NotFound, WeightsMismatch
from esrjax.interop import convert
from esrjax.loading import identify_method, weights_origin
from esrjax.method import Weights
from esrjax.nn.checkpoint_io import hash_tensors, read_checkpoint, write_safetensors
from esrjax.nn.state_dict import KeyMap, to_state_dict

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


@pytest.fixture(autouse=True)
def crumb_file(crumbs, monkeypatch):
    """The weights that `crumb` ships; few methods are searched."""
    monkeypatch.setenv("ESRJAX_PLUGINS", "crumb,loaf,crumbs,spanv2,span")
    return crumbs / "crumbs/crumb.safetensors"


@pytest.fixture
def strip(crumb_file, tmp_path):
    """Writes the shipped tensors of `crumb` without metadata, changed: `strip(change) -> path`."""

    def write(change=dict):
        path = tmp_path / "net.safetensors"
        save_file(change(load_file(crumb_file)), path)
        return path

    return write


# --- method ------------------------------------------------------------------------------------


def test_metadata_name_the_method(crumb_file):
    assert identify_method(crumb_file) == "crumb"


def test_unregistered_method_in_the_metadata_is_reported(crumb_file, tmp_path):
    checkpoint = read_checkpoint(crumb_file)
    metadata = replace(checkpoint.metadata, method="crumbs2")
    write_safetensors(tmp_path / "net.safetensors", checkpoint.state_dict, metadata)
    with pytest.raises(NotFound, match="crumbs2"):
        identify_method(tmp_path / "net.safetensors")


def test_tensors_of_one_method_identify_it(strip):
    assert identify_method(strip()) == "crumb"


def test_published_file_is_identified_by_its_sha256(strip, monkeypatch):
    path = strip(lambda tensors: {"unlike": np.zeros(3)})
    published = Weights(sha256=read_checkpoint(path).sha256)
    monkeypatch.setitem(registry.get_method("crumb").weights, "paper", published)
    assert identify_method(path) == "crumb"


def test_tensors_of_no_method_are_refused_with_the_candidates(strip):
    with pytest.raises(WeightsMismatch) as caught:
        identify_method(strip(lambda tensors: tensors | {"more": np.zeros(2)}))
    assert "3 tensors" in caught.value.problem and "crumb, loaf, span, spanv2" in caught.value.rule


def test_tensors_of_two_methods_are_refused_with_both(strip, monkeypatch):
    crumb = registry.get_method("crumb")
    get_entry = registry.get_entry
    monkeypatch.setattr(registry, "get_entry", lambda n: crumb if n == "loaf" else get_entry(n))
    with pytest.raises(InvalidArgument, match="2 methods: crumb, loaf"):
        identify_method(strip())


def test_hparams_restrict_the_search(strip):
    with pytest.raises(WeightsMismatch):
        identify_method(strip(), {"kernel_size": 5})
    assert identify_method(strip(), {"kernel_size": 3}) == "crumb"


def test_larger_network_is_identified_with_its_hparams(tmp_path):
    span = registry.get_method("span")
    net = span.build(channels=4)
    save_file(to_state_dict(net, KeyMap(span.torch_names)), tmp_path / "net.safetensors")
    assert identify_method(tmp_path / "net.safetensors", {"channels": 4}) == "span"


def test_hparams_of_published_weights_are_known(tmp_path, monkeypatch):
    spanv2 = registry.get_method("spanv2")
    monkeypatch.setitem(spanv2.weights, "tiny", Weights(sha256="0" * 64, hparams={"channels": 4}))
    state_dict = to_state_dict(spanv2.build(channels=4), KeyMap(spanv2.torch_names))
    save_file(state_dict, tmp_path / "net.safetensors")
    assert load(tmp_path / "net.safetensors").hparams == {"channels": 4}


def test_upscale_needs_no_method(esrjax, crumb_file, strip, tmp_path):
    write_image(tmp_path / "lr.png", NOISE)
    images, strip_file = [], strip()
    for file in (crumb_file, strip_file, f"crumb={crumb_file}"):
        result = esrjax(
            "upscale", tmp_path / "lr.png", "-o", tmp_path / "sr.png", "--checkpoint", file
        )
        assert result.code == 0, result.err
        assert ("note: " in result.err) == (file == strip_file)
        images.append(read_image(tmp_path / "sr.png").pixels)
    for image in images:
        np.testing.assert_array_equal(image, load("crumb")(NOISE))


def test_key_of_weights_without_a_method_is_the_default_methods(esrjax, tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))  # where nothing is downloaded
    write_image(tmp_path / "lr.png", NOISE)
    args = ("-o", tmp_path / "sr.png", "--checkpoint", "ntire2026")
    result = esrjax("upscale", tmp_path / "lr.png", *args)
    assert result.code == 2 and "'ntire2026' of 'spanv2' are not downloaded" in result.err


def test_python_loads_a_checkpoint_alone(crumb_file, strip):
    for net in (load(crumb_file), load(str(strip())), load(checkpoint=strip())):
        assert net.name == "crumb"
        np.testing.assert_array_equal(net(NOISE), load("crumb")(NOISE))
    with pytest.raises(InvalidArgument):
        load()


# --- origin ------------------------------------------------------------------------------------


@pytest.fixture
def published(strip, monkeypatch):
    """A published file of `crumb`."""
    path = strip()
    checkpoint = read_checkpoint(path)
    tensors_sha256 = hash_tensors(checkpoint.state_dict)
    weights = Weights(sha256=checkpoint.sha256, tensors_sha256=tensors_sha256)
    monkeypatch.setitem(registry.get_method("crumb").weights, "paper", weights)
    return path


def origin(path):
    return weights_origin(registry.get_method("crumb"), read_checkpoint(path))


def test_shipped_and_other_files_are_told_apart(crumb_file, strip, tmp_path):
    shutil.copy(crumb_file, tmp_path / "copy.safetensors")
    assert origin(tmp_path / "copy.safetensors") == "shipped"
    assert origin(strip()) == "own"
    assert load("crumb").origin == "shipped"


def test_published_file_and_its_conversion_are_official(published, tmp_path):
    converted, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert.convert("crumb", published, converted)
    convert.convert("crumb", converted, again)
    assert [origin(path) for path in (published, converted, again)] == ["official"] * 3
    pytest.importorskip("torch", reason="torch is not installed")
    convert.convert("crumb", published, tmp_path / "a.pth", to="torch")
    assert origin(tmp_path / "a.pth") == "official"


def test_metadata_alone_makes_no_weights_official(published, tmp_path, monkeypatch, caplog):
    converted, forged = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert.convert("crumb", published, converted)
    checkpoint = read_checkpoint(converted)
    tensors = {key: value + np.float32(0.5) for key, value in checkpoint.state_dict.items()}
    metadata = replace(checkpoint.metadata, tensors_sha256=hash_tensors(tensors))
    write_safetensors(forged, tensors, metadata)
    assert origin(forged) == "own"
    assert f"{forged}: own weights; converted from official ones by the metadata" in caplog.text
    weights = registry.get_method("crumb").weights
    monkeypatch.setitem(weights, "paper", replace(weights["paper"], tensors_sha256=""))
    assert origin(converted) == "own" and str(converted) in caplog.text


def test_changed_tensors_under_an_official_header_are_own(published, tmp_path):
    converted, changed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert.convert("crumb", published, converted)
    checkpoint = read_checkpoint(converted)
    tensors = {key: value + np.float32(0.5) for key, value in checkpoint.state_dict.items()}
    write_safetensors(changed, tensors, checkpoint.metadata)
    assert origin(changed) == "own"
    convert.convert("crumb", changed, converted)  # a second conversion does not whitewash it
    assert origin(converted) == "own"
