"""Selection of the images that are most similar to others, as a dataset of links."""

import numpy as np
import pytest

from esrjax.data.datasets import Pair, list_folder_pairs
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import InvalidArgument
from esrjax.interop import similar

COLORS = {
    "red": (200, 20, 20),
    "rose": (230, 90, 110),
    "blue": (20, 20, 200),
    "sky": (90, 110, 230),
}


@pytest.fixture
def datasets(tmp_path):
    """A dataset of four colors, `Colors`, and `Warm` with a fifth that is closest to red."""
    for name, color in COLORS.items():
        write_image(tmp_path / f"Colors/HR/{name}.png", np.full((16, 20, 3), color, np.uint8))
        write_image(
            tmp_path / f"Colors/LR_bicubic_X4/{name}x4.png", np.full((4, 5, 3), color, np.uint8)
        )
    write_image(tmp_path / "Warm/brick.png", np.full((12, 12, 3), (180, 40, 30), np.uint8))
    return tmp_path


def test_most_similar_images_come_first_in_any_order_of_candidates(datasets):
    candidates = list_folder_pairs(datasets / "Colors")
    references = list_folder_pairs(datasets / "Warm")
    for pairs in (candidates, candidates[::-1]):
        images = similar.select_similar(pairs, references, 2, similar.thumbnail)
        assert [image.pair.name for image in images] == ["red", "rose"]
        assert 1 > images[0].similarity > 0.95 > images[1].similarity


def test_similarity_is_the_maximum_over_references_and_ignores_the_norm(datasets):
    candidates = list_folder_pairs(datasets / "Colors")
    vectors = dict(
        zip(("blue", "red", "rose", "sky"), np.eye(4) * [[1], [50], [1], [1]], strict=True)
    )
    vector_of = {COLORS[name]: vector for name, vector in vectors.items()}
    images = similar.select_similar(
        candidates, candidates[:2], 2, lambda hr: vector_of[tuple(hr[0, 0])]
    )
    assert [(image.pair.name, image.similarity) for image in images] == [
        ("blue", 1.0),
        ("red", 1.0),
    ]


def test_selected_images_are_a_dataset_of_links(esrjax, datasets):
    args = ["--like", datasets / "Warm", "--num-images", 2, "-o", datasets / "Selected"]
    result = esrjax("data", "select", datasets / "Colors", *args, "--json")
    assert result.code == 0 and [row["name"] for row in result.json["images"]] == ["red", "rose"]
    pairs = list_folder_pairs(datasets / "Selected")
    assert [pair.name for pair in pairs] == ["red", "rose"] and pairs[0].lr is not None
    np.testing.assert_array_equal(
        pairs[0].load()[0], read_image(datasets / "Colors/HR/red.png").pixels[:4, :5]
    )
    assert all(path.is_symlink() for path in (datasets / "Selected/HR").iterdir())
    assert not list(datasets.glob("*.partial"))


def test_colliding_names_are_prefixed_with_their_dataset(datasets):
    a, b = (Pair(name=name, hr=datasets / f"{name}.png") for name in "ab")
    pairs = similar.with_unique_names([("X", [a]), ("Y", [a, b])])
    assert [pair.name for pair in pairs] == ["X_a", "Y_a", "b"]


def test_colliding_names_of_subsets_are_prefixed_with_their_subset(esrjax, datasets):
    for name in "AB":
        red = np.full((16, 20, 3), COLORS["red"], np.uint8)
        write_image(datasets / f"{name}/HR/red.png", red)
    subsets = [datasets / "A[:1]", datasets / "B[:1]"]
    args = ["--like", datasets / "Warm", "--num-images", 2, "-o", datasets / "Selected"]
    assert esrjax("data", "select", *subsets, *args).code == 0
    names = [pair.name for pair in list_folder_pairs(datasets / "Selected")]
    assert names == ["A[:1]_red", "B[:1]_red"]


def test_names_that_still_collide_are_reported_before_images_are_read(datasets):
    pairs = list_folder_pairs(datasets / "Colors")
    named_pairs = similar.with_unique_names([("A", pairs), ("A", pairs)])
    with pytest.raises(InvalidArgument, match="'A_blue'"):
        similar.check_linkable(named_pairs, datasets / "Selected")


def test_an_image_in_two_datasets_is_reported(datasets):
    pairs = list_folder_pairs(datasets / "Colors")
    (datasets / "Link").symlink_to(datasets / "Colors")
    named_pairs = similar.with_unique_names(
        [("A", pairs), ("B", list_folder_pairs(datasets / "Link")[:1])]
    )
    with pytest.raises(InvalidArgument, match=r"1 images.*blue\.png"):
        similar.check_linkable(named_pairs, datasets / "Selected")


def test_clip_preprocessing_crops_the_center_and_normalizes():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    preprocessed = similar.preprocess(image, 50)
    assert (preprocessed.shape, preprocessed.dtype) == ((1, 3, 50, 50), np.float32)
    white = (1 - np.array(similar.CLIP_MEAN)) / np.array(similar.CLIP_STD)
    np.testing.assert_allclose(preprocessed[0, :, 25, 5:45].T - white, 0, atol=1e-5)
    assert similar.preprocess(np.zeros((7, 5, 3), np.uint8), 224).shape == (1, 3, 224, 224)


def test_onnx_encoder_extracts_the_features(esrjax, datasets):
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `clip` is not installed")
    from onnx import TensorProto, helper

    inputs_and_outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("pixel_values", ["n", 3, 32, 32]), ("image_embeds", ["n", 3]))
    ]
    nodes = [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["image_embeds"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "mean", inputs_and_outputs[:1], inputs_and_outputs[1:], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, datasets / "mean.onnx")
    args = ["--like", datasets / "Warm", "--num-images", 1, "-o", datasets / "Selected", "--json"]
    result = esrjax(
        "data", "select", datasets / "Colors", *args, "--features", f"clip:{datasets}/mean.onnx"
    )
    assert result.code == 0 and result.json["images"][0]["name"] == "red"
