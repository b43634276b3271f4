"""The weights that the package ships: small, said to be ours, and as good as is written of them."""

import pytest

import esrjax
from esrjax import registry
from esrjax.method import Method
from esrjax.model import open_method
from esrjax.network.weights import leaves

LARGEST = 1_000_000  # bytes of a file
SHIPPED = [
    name
    for name in registry.names()
    if isinstance(method := registry.method(name), Method) and method.pretrained
]
SET5_Y = {
    "pds": 31.46,
    "span": 30.99,
    "spanv2": 31.43,
}  # dB, `esrjax eval NAME --data Set5 --spec y`; docs/weights.md


def test_what_is_shipped_has_a_score():
    assert set(SHIPPED) == set(SET5_Y)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_small_and_says_where_it_is_from(name):
    model = open_method(name)
    held = model.checkpoint
    assert held.path.stat().st_size < LARGEST
    assert {str(leaf.get_value().dtype) for _, leaf in leaves(model.net)} == {"float32"}
    said = held.manifest
    assert (said.method, said.form) == (name, "deploy")
    assert "T91" in said.note and "BSD200" in said.note and "research use" in said.note


@pytest.mark.parametrize("name", SHIPPED)
def test_it_scores_what_is_written_of_it(reference, name):
    scores = esrjax.evaluate(esrjax.load(name), reference / "data/Set5", spec="y")
    assert scores.mean.psnr > SET5_Y[name]
