"""Any upscaler over any pairs: the numbers, the means, and what is refused."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esrjax.pictures.files import Pixels, write
from esrjax.pictures.metrics import Incomparable, psnr, ssim
from esrjax.pictures.resize import upscale
from esrjax.pictures.score import Quality, Unscorable, WrongOutput, score, score_each
from esrjax.pictures.sets import Pair, pairs
from esrjax.pictures.specs import NTIRE, SPECS, Y


@pytest.fixture
def small(tmp_path: Path) -> tuple[Pair, ...]:
    random = np.random.default_rng(0)
    for name, side in (("a", 32), ("b", 37), ("c", 24)):
        write(tmp_path / f"{name}.png", random.integers(0, 256, (side, 28, 3), np.uint8))
    return pairs(tmp_path)


def bicubic(lr: Pixels) -> Pixels:
    return upscale(lr)


def test_every_picture_gets_its_metrics_and_the_mean_is_of_decibels(
    small: tuple[Pair, ...],
) -> None:
    scores = score(bicubic, small, NTIRE)
    for pair in small:
        lr, hr = pair.load()
        expected = Quality(psnr=psnr(upscale(lr), hr, NTIRE), ssim=ssim(upscale(lr), hr, NTIRE))
        assert scores.images[pair.name] == expected
    decibels = [quality.psnr for quality in scores.images.values()]
    assert len(set(decibels)) == 3
    assert scores.mean.psnr == pytest.approx(sum(decibels) / 3, abs=1e-12)
    similarities = [quality.ssim for quality in scores.images.values()]
    assert scores.mean.ssim == pytest.approx(sum(similarities) / 3, abs=1e-12)


def test_several_specs_cost_one_run(small: tuple[Pair, ...]) -> None:
    calls: list[tuple[int, ...]] = []

    def counted(lr: Pixels) -> Pixels:
        calls.append(lr.shape)
        return upscale(lr)

    ours = score_each(counted, small, [NTIRE, Y])
    assert calls == [(8, 7, 3), (9, 7, 3), (6, 7, 3)]
    assert ours == (score(bicubic, small, NTIRE), score(bicubic, small, Y))
    assert ours[0] != ours[1]


def test_progress_sees_every_pair(small: tuple[Pair, ...]) -> None:
    seen: list[str] = []

    def watch(pairs: Sequence[Pair]) -> Iterator[Pair]:
        assert len(pairs) == 3
        for pair in pairs:
            yield pair
            seen.append(pair.name)

    assert score(bicubic, small, Y, watch) == score(bicubic, small, Y)
    assert seen == ["a", "b", "c"]


def test_scores_become_plain_types(small: tuple[Pair, ...]) -> None:
    scores = score(bicubic, small, NTIRE)
    plain = scores.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["spec", "mean", "images"]
    assert plain["spec"] == "ntire"
    assert plain["mean"] == {"psnr": scores.mean.psnr, "ssim": scores.mean.ssim}
    assert plain["images"]["b"]["psnr"] == scores.images["b"].psnr
    assert list(plain["images"]) == ["a", "b", "c"]


def test_a_perfect_upscaler_scores_infinity(small: tuple[Pair, ...]) -> None:
    truth = {lr.tobytes(): hr for lr, hr in (pair.load() for pair in small)}
    scores = score(lambda lr: truth[lr.tobytes()], small, NTIRE)
    assert scores.mean.psnr == math.inf
    assert scores.mean.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda lr: lr, "uint8 (8, 7, 3)"),
        (lambda lr: upscale(lr, 2), "uint8 (16, 14, 3)"),
        (lambda lr: upscale(lr) / 255, "float64 (32, 28, 3)"),
    ],
)
def test_an_output_of_the_wrong_kind_is_refused(
    small: tuple[Pair, ...], wrong: Any, said: str
) -> None:
    with pytest.raises(WrongOutput) as caught:
        score(wrong, small, NTIRE)
    assert str(caught.value) == (
        f"the output is {said} for an LR picture of (8, 7, 3)\n"
        "  place:  a\n"
        "  rule:   it is uint8 (32, 28, 3): 4 x the LR sides\n"
        "  remedy: check the scale of the method, and that its output is turned into bytes"
    )


def test_what_is_not_rounded_is_scored_as_floats(small: tuple[Pair, ...]) -> None:
    asked = [NTIRE, SPECS["rgb_unrounded"], SPECS["rgb_truncated"]]

    def floats(lr: Pixels) -> Any:
        return (upscale(lr) - 0.25) / 255

    rounded, unrounded, truncated = (
        scores.mean.psnr for scores in score_each(floats, small, asked)
    )
    assert rounded == score(bicubic, small, NTIRE).mean.psnr
    darker = score(lambda lr: np.maximum(upscale(lr), 1) - np.uint8(1), small, NTIRE)
    assert truncated == darker.mean.psnr
    assert len({rounded, unrounded, truncated}) == 3
    with pytest.raises(WrongOutput) as caught:
        score(bicubic, small, SPECS["rgb_truncated"])
    assert caught.value.rule == "it is floats, white at 1, of shape (32, 28, 3): 4 x the LR sides"
    assert caught.value.remedy.endswith("its output is not rounded, as this metric asks")


def test_a_picture_that_is_too_small_is_named(tmp_path: Path) -> None:
    write(tmp_path / "tiny.png", np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(Incomparable, match=r"16x16 is too small for .*\n  place:  tiny\n"):
        score(bicubic, pairs(tmp_path), NTIRE)


def test_nothing_and_names_that_clash_have_no_mean(small: tuple[Pair, ...]) -> None:
    with pytest.raises(Unscorable) as caught:
        score(bicubic, [], NTIRE)
    assert str(caught.value) == (
        "there are no pairs\n"
        "  rule:   scores are kept by name, over at least one pair\n"
        "  remedy: score sets one by one"
    )
    with pytest.raises(Unscorable, match="these names occur twice: a, c"):
        score(bicubic, [*small, small[2], small[0]], NTIRE)


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_means_are_the_known_ones(reference: Path, name: str) -> None:
    known = json.loads((reference / "protocol/bicubic_psnr.json").read_text())
    expected = known["sets"][name]["average"]
    ours, luma = score_each(bicubic, pairs(reference / "data" / name), [NTIRE, Y])
    assert ours.mean.psnr == pytest.approx(expected["psnr_rgb"], abs=1e-6)
    assert ours.mean.ssim == pytest.approx(expected["ssim_rgb"], abs=1e-6)
    assert luma.mean.psnr == pytest.approx(expected["psnr_y"], abs=1e-4)
    assert luma.mean.ssim == pytest.approx(expected["ssim_y"], abs=1e-5)
