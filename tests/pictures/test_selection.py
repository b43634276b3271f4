"""The pictures that are most like others, as a set of links."""

import numpy as np
import pytest

from esrjax.bridge import clip
from esrjax.pictures import selection
from esrjax.pictures.files import read, write
from esrjax.pictures.pairs import Pair
from esrjax.pictures.sets import pairs

COLOURS = {
    "red": (200, 20, 20),
    "rose": (230, 90, 110),
    "blue": (20, 20, 200),
    "sky": (90, 110, 230),
}


@pytest.fixture
def colours(tmp_path):
    """A set of four colours, and one of a fifth, nearest to red."""
    for name, colour in COLOURS.items():
        write(tmp_path / f"Colours/HR/{name}.png", np.full((16, 20, 3), colour, np.uint8))
        write(
            tmp_path / f"Colours/LR_bicubic_X4/{name}x4.png", np.full((4, 5, 3), colour, np.uint8)
        )
    write(tmp_path / "Warm/brick.png", np.full((12, 12, 3), (180, 40, 30), np.uint8))
    return tmp_path


def test_the_nearest_come_first_whatever_the_order_they_are_seen_in(colours):
    every, like = pairs(colours / "Colours"), pairs(colours / "Warm")
    for order in (every, every[::-1]):
        chosen = selection.select(order, like, 2, selection.thumbnail)
        assert [choice.pair.name for choice in chosen] == ["red", "rose"]
        assert 1 > chosen[0].similarity > 0.95 > chosen[1].similarity


def test_the_nearest_of_several_counts_and_length_does_not(colours):
    every = pairs(colours / "Colours")
    vectors = dict(
        zip(("blue", "red", "rose", "sky"), np.eye(4) * [[1], [50], [1], [1]], strict=True)
    )
    seen = {COLOURS[name]: vector for name, vector in vectors.items()}
    chosen = selection.select(every, every[:2], 2, lambda lr: seen[tuple(lr[0, 0])])
    assert [(c.pair.name, c.similarity) for c in chosen] == [("blue", 1.0), ("red", 1.0)]


def test_what_is_chosen_is_a_set(esrjax, colours):
    words = ["--like", colours / "Warm", "--count", 2, "-o", colours / "Chosen"]
    said = esrjax("data", "select", colours / "Colours", *words, "--json")
    assert said.code == 0 and [row["name"] for row in said.json] == ["red", "rose"]
    found = pairs(colours / "Chosen")
    assert [pair.name for pair in found] == ["red", "rose"] and found[0].lr is not None
    np.testing.assert_array_equal(
        found[0].load()[0], read(colours / "Colours/HR/red.png").pixels[:4, :5]
    )
    assert all(path.is_symlink() for path in (colours / "Chosen/HR").iterdir())
    assert not list(colours.glob(".esrjax*"))


def test_names_of_several_sets_stay_apart(colours):
    one = Pair(name="a", hr=colours / "a.png")
    found = selection.named([("X", [one]), ("Y", [one, Pair(name="b", hr=colours / "b.png")])])
    assert [pair.name for pair in found] == ["X_a", "Y_a", "b"]


def test_pictures_of_two_parts_lie_in_the_folder_by_the_names_of_their_sets(esrjax, colours):
    for name in "AB":
        write(colours / f"{name}/HR/red.png", np.full((16, 20, 3), COLOURS["red"], np.uint8))
    parts = [colours / "A[:1]", colours / "B[:1]"]
    words = ["--like", colours / "Warm", "--count", 2, "-o", colours / "Chosen"]
    assert esrjax("data", "select", *parts, *words).code == 0
    found = [pair.name for pair in pairs(colours / "Chosen")]
    assert found == ["A[:1]_red", "B[:1]_red"]


def test_sets_of_one_name_are_told_before_anything_is_looked_at(colours):
    twins = [("A", pairs(colours / "Colours")), ("A", pairs(colours / "Colours"))]
    with pytest.raises(selection.Unselectable, match="would be called 'A_blue'"):
        selection.require_links(selection.named(twins), colours / "Chosen")


def test_clip_sees_the_middle_of_a_picture_normalised():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    found = clip.prepared(picture, 50)
    assert (found.shape, found.dtype) == ((1, 3, 50, 50), np.float32)
    white = (1 - np.array(clip.MEAN)) / np.array(clip.DEVIATION)
    np.testing.assert_allclose(found[0, :, 25, 5:45].T - white, 0, atol=1e-5)
    assert clip.prepared(np.zeros((7, 5, 3), np.uint8), 224).shape == (1, 3, 224, 224)


@pytest.mark.export
def test_an_encoder_is_an_onnx_file(esrjax, colours):
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `clip` is not installed")
    from onnx import TensorProto, helper

    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("pixel_values", ["n", 3, 32, 32]), ("image_embeds", ["n", 3]))
    ]
    nodes = [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["image_embeds"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "mean", sides[:1], sides[1:], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, colours / "mean.onnx")
    words = ["--like", colours / "Warm", "--count", 1, "-o", colours / "Chosen", "--json"]
    said = esrjax(
        "data", "select", colours / "Colours", *words, "--features", f"clip:{colours}/mean.onnx"
    )
    assert said.code == 0 and said.json[0]["name"] == "red"
