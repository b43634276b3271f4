"""The weights that the package ships: size, metadata and score."""

import pytest

import esrjax
from esrjax import registry
from esrjax.inference import open_method
from esrjax.method import Method
from esrjax.nn.state_dict import named_parameters

MAX_BYTES = 1_000_000  # bytes of a file
SHIPPED = [
    name
    for name in registry.names()
    if isinstance(method := registry.get_entry(name), Method) and method.pretrained
]
SET5_Y = {
    "pds": 31.46,
    "span": 30.99,
    "spanv2": 31.43,
}  # dB, `esrjax eval NAME --data Set5 --spec y`; docs/weights.md


def test_every_shipped_method_has_a_score():
    assert set(SHIPPED) == set(SET5_Y)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_file_is_small_and_names_its_origin(name):
    model = open_method(name)
    checkpoint = model.checkpoint
    assert checkpoint.path.stat().st_size < MAX_BYTES
    assert {str(leaf.get_value().dtype) for _, leaf in named_parameters(model.net)} == {"float32"}
    metadata = checkpoint.metadata
    assert (metadata.method, metadata.form) == (name, "deploy")
    assert "T91" in metadata.note and "BSD200" in metadata.note and "research use" in metadata.note


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_reach_their_published_score(reference, name):
    scores = esrjax.evaluate(esrjax.load(name), reference / "data/Set5", spec="y")
    assert scores.mean.psnr > SET5_Y[name]
