"""Scores of upscalers over image pairs: values, means, rejected outputs and pairs."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from esrjax.data.datasets import Pair, list_folder_pairs
from esrjax.data.image_io import Pixels, write_image
from esrjax.data.resize import bicubic_upscale
from esrjax.errors import IncomparableImages, InvalidArgument, InvalidOutput
from esrjax.evaluation.metrics import NTIRE, Y, all_specs, psnr, ssim
from esrjax.evaluation.score import ImageMetrics, as_scorable, score, score_with_specs

SPECS = all_specs()


@pytest.fixture
def image_pairs(tmp_path: Path) -> tuple[Pair, ...]:
    rng = np.random.default_rng(0)
    for name, height in (("a", 32), ("b", 37), ("c", 24)):
        write_image(tmp_path / f"{name}.png", rng.integers(0, 256, (height, 28, 3), np.uint8))
    return list_folder_pairs(tmp_path)


def bicubic(lr: Pixels) -> Pixels:
    return bicubic_upscale(lr)


def test_every_image_has_metrics_and_psnr_is_averaged_in_db(
    image_pairs: tuple[Pair, ...],
) -> None:
    scores = score(bicubic, image_pairs, NTIRE)
    for pair in image_pairs:
        lr, hr = pair.load()
        expected = ImageMetrics(
            psnr=psnr(bicubic_upscale(lr), hr, NTIRE), ssim=ssim(bicubic_upscale(lr), hr, NTIRE)
        )
        assert scores.images[pair.name] == expected
    psnrs = [metrics.psnr for metrics in scores.images.values()]
    assert len(set(psnrs)) == 3
    assert scores.mean.psnr == pytest.approx(sum(psnrs) / 3, abs=1e-12)
    ssims = [metrics.ssim for metrics in scores.images.values()]
    assert scores.mean.ssim == pytest.approx(sum(ssims) / 3, abs=1e-12)


def test_several_specs_upscale_every_image_once(image_pairs: tuple[Pair, ...]) -> None:
    shapes: list[tuple[int, ...]] = []

    def upscale(lr: Pixels) -> Pixels:
        shapes.append(lr.shape)
        return bicubic_upscale(lr)

    scores = score_with_specs(upscale, image_pairs, [NTIRE, Y])
    assert shapes == [(8, 7, 3), (9, 7, 3), (6, 7, 3)]
    assert scores == (score(bicubic, image_pairs, NTIRE), score(bicubic, image_pairs, Y))
    assert scores[0] != scores[1]


def test_progress_receives_every_pair(image_pairs: tuple[Pair, ...]) -> None:
    names: list[str] = []

    def progress(pairs: Sequence[Pair]) -> Iterator[Pair]:
        assert len(pairs) == 3
        for pair in pairs:
            yield pair
            names.append(pair.name)

    assert score(bicubic, image_pairs, Y, progress) == score(bicubic, image_pairs, Y)
    assert names == ["a", "b", "c"]


def test_scores_convert_to_json_types(image_pairs: tuple[Pair, ...]) -> None:
    scores = score(bicubic, image_pairs, NTIRE)
    plain = scores.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["lr_source", "images_sha256", "spec", "mean", "images", "notes"]
    assert plain["spec"] == "ntire"
    assert plain["mean"] == {"psnr": scores.mean.psnr, "ssim": scores.mean.ssim}
    assert plain["images"]["b"]["psnr"] == scores.images["b"].psnr
    assert list(plain["images"]) == ["a", "b", "c"]


def test_hash_depends_on_the_names_and_pixels_of_images_alone(image_pairs, tmp_path):
    def digest(pairs: Sequence[Pair]) -> str:
        return score(bicubic, pairs, NTIRE).images_sha256

    first, *others = image_pairs
    hashes = {digest(image_pairs), digest(image_pairs[:2]), digest(image_pairs[::-1])}
    hashes |= {digest([replace(first, name="d"), *others])}
    lr, hr = first.load()
    for name, pixels in (("hr", hr), ("lr", lr)):
        write_image(tmp_path / f"{name}.png", pixels)
    copy = replace(first, hr=tmp_path / "hr.png", lr=tmp_path / "lr.png")
    assert digest([copy, *others]) in hashes
    lr[0, 0, 0] ^= 1
    write_image(tmp_path / "lr.png", lr)
    hashes |= {digest([copy, *others])}
    assert len(hashes) == 5


def test_perfect_upscaler_has_infinite_psnr(image_pairs: tuple[Pair, ...]) -> None:
    hr_of = {lr.tobytes(): hr for lr, hr in (pair.load() for pair in image_pairs)}
    scores = score(lambda lr: hr_of[lr.tobytes()], image_pairs, NTIRE)
    assert scores.mean.psnr == math.inf
    assert scores.mean.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong_upscaler", "dtype_and_shape"),
    [
        (lambda lr: lr, "uint8 (8, 7, 3)"),
        (lambda lr: bicubic_upscale(lr, 2), "uint8 (16, 14, 3)"),
        (lambda lr: bicubic_upscale(lr) / 255, "float64 (32, 28, 3)"),
    ],
)
def test_output_of_wrong_shape_or_dtype_is_rejected(
    image_pairs: tuple[Pair, ...], wrong_upscaler: Any, dtype_and_shape: str
) -> None:
    with pytest.raises(InvalidOutput) as caught:
        score(wrong_upscaler, image_pairs, NTIRE)
    assert dtype_and_shape in caught.value.problem and "(8, 7, 3)" in caught.value.problem
    assert "uint8 (32, 28, 3)" in caught.value.rule
    assert caught.value.location == "a" and caught.value.remedy


def test_specs_that_do_not_round_need_float_output(image_pairs: tuple[Pair, ...]) -> None:
    specs = [NTIRE, SPECS["rgb_unrounded"], SPECS["rgb_truncated"]]

    def floats(lr: Pixels) -> Any:
        return (bicubic_upscale(lr) - 0.25) / 255

    rounded, unrounded, truncated = (
        scores.mean.psnr for scores in score_with_specs(floats, image_pairs, specs)
    )
    assert rounded == score(bicubic, image_pairs, NTIRE).mean.psnr
    darker = score(lambda lr: np.maximum(bicubic_upscale(lr), 1) - np.uint8(1), image_pairs, NTIRE)
    assert truncated == darker.mean.psnr
    assert len({rounded, unrounded, truncated}) == 3
    with pytest.raises(InvalidOutput) as caught:
        score(bicubic, image_pairs, SPECS["rgb_truncated"])
    assert "floats in [0, 1] of shape (32, 28, 3)" in caught.value.rule
    assert "not rounded" in caught.value.remedy


def test_image_that_is_too_small_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "tiny.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(IncomparableImages, match="16x16") as caught:
        score(bicubic, list_folder_pairs(tmp_path), NTIRE)
    assert caught.value.location == "tiny"


def test_empty_lists_and_duplicate_names_are_rejected(image_pairs: tuple[Pair, ...]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        score(bicubic, [], NTIRE)
    assert caught.value.rule and caught.value.remedy
    with pytest.raises(InvalidArgument, match=": a, c"):
        score(bicubic, [*image_pairs, image_pairs[2], image_pairs[0]], NTIRE)


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_means_equal_the_published_ones(reference: Path, name: str) -> None:
    published = json.loads((reference / "protocol/bicubic_psnr.json").read_text())
    expected = published["sets"][name]["average"]
    rgb, luma = score_with_specs(bicubic, list_folder_pairs(reference / "data" / name), [NTIRE, Y])
    assert rgb.mean.psnr == pytest.approx(expected["psnr_rgb"], abs=1e-6)
    assert rgb.mean.ssim == pytest.approx(expected["ssim_rgb"], abs=1e-6)
    assert luma.mean.psnr == pytest.approx(expected["psnr_y"], abs=1e-4)
    assert luma.mean.ssim == pytest.approx(expected["ssim_y"], abs=1e-5)


def test_outputs_in_other_containers_are_scored_or_refused(
    image_pairs: tuple[Pair, ...],
) -> None:
    scores = score(bicubic, image_pairs, NTIRE)
    for convert in (jnp.asarray, Image.fromarray):
        assert score(lambda lr, convert=convert: convert(bicubic(lr)), image_pairs, NTIRE) == scores
    outputs: dict[str, Any] = {
        "list": bicubic(np.zeros((8, 7, 3), np.uint8)).tolist(),
        "mode L": Image.new("L", (28, 32)),
        "float32": np.zeros((32, 28, 3), np.float32),
        "bool": np.zeros((32, 28, 3), bool),
    }
    for value, output in outputs.items():
        with pytest.raises(InvalidOutput) as caught:
            score(lambda lr, output=output: output, image_pairs, NTIRE)
        assert value in caught.value.problem and caught.value.location == "a"


def test_floats_of_0_to_255_are_refused(image_pairs: tuple[Pair, ...]) -> None:
    with pytest.raises(InvalidOutput, match="255"):
        score(lambda lr: bicubic(lr).astype(np.float32), image_pairs, SPECS["rgb_unrounded"])


def test_scores_carry_what_reading_changed(tmp_path: Path) -> None:
    gray, rgb = np.full((32, 32), 99, np.uint8), np.full((32, 32, 3), 99, np.uint8)
    for name, pixels in (("a", gray), ("b", rgb)):
        write_image(tmp_path / f"LR_bicubic_X4/{name}x4.png", rgb[:8, :8])
        (tmp_path / "HR").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"HR/{name}.png")
    Image.fromarray(gray[:8, :8]).save(tmp_path / "LR_bicubic_X4/bx4.png")
    scores = score(bicubic, list_folder_pairs(tmp_path), NTIRE)
    note = "grey repeated in three channels"
    assert scores.notes == {"a": (note,), "b": (f"LR: {note}",)}
    assert scores.as_dict()["notes"] == {"a": [note], "b": [f"LR: {note}"]}


@pytest.mark.parametrize("net", ["span", None, nnx.Linear(3, 3, rngs=nnx.Rngs(0))])
def test_what_is_no_upscaler_is_refused(net):
    with pytest.raises(InvalidArgument, match="cannot be scored"):
        as_scorable(net, NTIRE)
