"""Metadata of exported networks is validated before anything is run; needs no ONNX Runtime."""

import numpy as np
import pytest

from esrjax.errors import InvalidOutput, UnreadableFile
from esrjax.interop import engines as engine
from esrjax.interop.onnx import sessions
from esrjax.interop.onnx.sessions import Network


def random_image(h, w):
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)


def stub_network(metadata):
    """An exported network with chosen metadata: nearest-neighbour upsampling by 4."""
    return Network(
        run=lambda lr: lr.repeat(4, 2).repeat(4, 3),
        description="a stub",
        properties={k: v for k, v in {**METADATA, **metadata}.items() if v is not None},
        input_names=["lr"],
        num_outputs=1,
    )


METADATA = {
    "method": "another",
    "scale": "4",
    "data_range": "1.0",
    "min_side": "6",
    "receptive_field_radius": "null",
}


def open_stub(monkeypatch, tmp_path, **metadata):
    monkeypatch.setattr(sessions, "open_network", lambda *args: stub_network(metadata))
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x06esrjax")
    return engine.open_onnx(tmp_path / "net.onnx")


def test_valid_metadata_are_read(monkeypatch, tmp_path):
    model = open_stub(monkeypatch, tmp_path)
    assert (model.name, model.scale, model.receptive_field_radius) == ("another", 4, None)
    np.testing.assert_array_equal(
        model(random_image(6, 9)), random_image(6, 9).repeat(4, 0).repeat(4, 1)
    )


@pytest.mark.parametrize(
    "field, value",
    [
        ("method", None),
        ("method", ""),
        ("scale", None),
        ("scale", "0"),
        ("scale", "4.5"),
        ("scale", '"4"'),
        ("scale", "[" * 100_000),
        ("data_range", "NaN"),
        ("data_range", "0"),
        ("data_range", "-1.0"),
        ("data_range", "1.0.0"),
        ("min_side", "null"),
        ("min_side", "true"),
        ("receptive_field_radius", "-1"),
        ("receptive_field_radius", "{}"),
    ],
)
def test_invalid_metadata_are_refused_by_field(monkeypatch, tmp_path, field, value):
    with pytest.raises(UnreadableFile) as caught:
        open_stub(monkeypatch, tmp_path, **{field: value})
    assert field in caught.value.problem and "net.onnx" in caught.value.location


def test_data_range_of_another_than_the_method_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UnreadableFile, match="data_range is 255"):
        open_stub(monkeypatch, tmp_path, method="spanv2", data_range="255")


def test_output_of_another_scale_than_the_metadata_is_refused(monkeypatch, tmp_path):
    with pytest.raises(InvalidOutput, match="upscales images by 2"):
        open_stub(monkeypatch, tmp_path, scale="2")(random_image(6, 9))
