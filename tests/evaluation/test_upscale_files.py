"""Jobs that upscale image files: outputs, what is refused before the work, what fails alone."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax.data.image_io import composite_over_white, read_image
from esrjax.errors import InvalidArgument, InvalidOutput, UnwritableFile, UserError
from esrjax.evaluation.upscale import Tiling, checked_upscaler, tiled_upscaler
from esrjax.evaluation.upscale_files import (
    FILL_RADIUS,
    OutputNames,
    UpscaleJob,
    UpscalePlan,
    fill_transparent,
    plan_upscale_jobs,
    upscale_alpha,
    upscale_file,
    upscale_transparent,
)


def noise(h, w, channels=3):
    return np.random.default_rng(100 * h + w).integers(0, 256, (h, w, channels), np.uint8)


def write_noise(path: Path, h: int, w: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(h, w)).save(path, **options)
    return path


def plan(inputs, output, **options) -> UpscalePlan:
    return plan_upscale_jobs(inputs, output, 4, 256, **options)


def targets(plan: UpscalePlan, output: Path) -> list[str]:
    return [job.target.relative_to(output).as_posix() for job in plan.jobs]


def nearest(lr):
    """An upscaler by 4."""
    return np.float32(lr.repeat(4, axis=0).repeat(4, axis=1) / 255)


def refusal(error=UnwritableFile, /, *args, **options) -> UserError:
    with pytest.raises(error) as caught:
        plan(*args, **options)
    assert caught.value.rule and caught.value.remedy
    return caught.value


# --- outputs -----------------------------------------------------------------------------------


def test_single_image_is_written_to_a_file_or_a_folder(tmp_path):
    image = write_noise(tmp_path / "in/a.png", 6, 9)
    (job,) = plan([image], tmp_path / "b.webp").jobs
    assert job == UpscaleJob(source=image, target=tmp_path / "b.webp", scale=4, tile_size=(6, 9))
    (tmp_path / "v1.2").mkdir()
    for output in ("out", "v1.2"):
        assert targets(plan([image], tmp_path / output), tmp_path / output) == ["ax4.png"]
    (job,) = plan_upscale_jobs([tmp_path / "in"], tmp_path / "out", 2, 256).jobs
    assert job.target == tmp_path / "out/ax2.png"


def test_format_and_ending_of_outputs(tmp_path):
    write_noise(tmp_path / "in/a.jpg", 4, 4)
    names = OutputNames(ending="_big", suffix=".webp")
    assert targets(plan([tmp_path / "in"], tmp_path, names=names), tmp_path) == ["a_big.webp"]
    error = refusal(InvalidArgument, [tmp_path / "in/a.jpg"], tmp_path / "b.png", names=names)
    assert "b.png" in error.problem and "--format" in error.remedy
    for ending in ("/x", "x/../y", "a\\b"):
        with pytest.raises(InvalidArgument):
            OutputNames(ending=ending)


def test_recursive_outputs_keep_the_tree(tmp_path):
    for name in ("a.png", "x/a.png", "x/y/a.jpg"):
        write_noise(tmp_path / "in" / name, 4, 4)
    search = plan([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert targets(search, tmp_path / "out") == ["ax4.png", "x/ax4.png", "x/y/ax4.png"]
    single = plan([tmp_path / "in"], tmp_path / "out")
    assert targets(single, tmp_path / "out") == ["ax4.png"]
    assert len(single.notes) == 1 and "1 " in single.notes[0] and "x" in single.notes[0]


def test_existing_outputs_are_skipped(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_noise(tmp_path / "in" / name, 4, 5)
    write_noise(tmp_path / "out/ax4.png", 16, 20)
    write_noise(tmp_path / "out/bx4.png", 16, 16)  # not the size of b, upscaled
    skipping = plan([tmp_path / "in"], tmp_path / "out", skip_existing=True)
    assert targets(skipping, tmp_path / "out") == ["cx4.png"]
    assert [path.name for path in skipping.existing] == ["a.png"]
    (error,) = skipping.failures.values()
    assert "16 x 16" in error.problem and "20 x 16" in error.problem
    assert skipping.num_images == 3
    assert len(plan([tmp_path / "in"], tmp_path / "out").jobs) == 3


def test_existing_output_of_any_size_is_skipped(tmp_path, monkeypatch):
    write_noise(tmp_path / "in/a.png", 4, 5)
    write_noise(tmp_path / "out/ax4.png", 16, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # an error from 41 pixels on
    skipping = plan([tmp_path / "in"], tmp_path / "out", skip_existing=True)
    assert (len(skipping.existing), dict(skipping.failures)) == (1, {})
    assert Image.MAX_IMAGE_PIXELS == 20


def test_tile_sizes_follow_from_the_image_headers(tmp_path):
    write_noise(tmp_path / "in/wide.png", 20, 300)
    write_noise(tmp_path / "in/square.png", 30, 30)
    write_noise(tmp_path / "in/tall.png", 50, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    write_noise(tmp_path / "in/rotated.jpg", 10, 60, exif=exif)
    (tmp_path / "in/damaged.png").write_bytes(b"not an image")
    jobs = plan([tmp_path / "in"], tmp_path)
    assert {job.source.stem: job.tile_size for job in jobs.jobs} == {
        "square": (30, 256),
        "tall": (60, 40),
        "rotated": (60, 40),
        "wide": (30, 256),
    }
    assert [path.name for path in jobs.failures] == ["damaged.png"]
    transposed = plan([tmp_path / "in"], tmp_path, both_orientations=True)
    assert {job.tile_size for job in transposed.jobs} == {(40, 256), (256, 40)}


# --- what is refused before the work -----------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "output", "offender"),
    [
        (["a.png", "b.png"], "c.png", "c.png'"),
        (["a.png", "a.webp"], "out", "ax4.png"),
        (["a.png"], "c.gif", "'.gif'"),
        (["a.png"], "c.heic", "'.heic'"),
        (["a.png"], "c.v2", "'.v2'"),
        (["a.png", "b.png"], "c.heic", "'.heic'"),
        (["a.png", "b.png"], "c.avif", "'.avif'"),
        (["a.png"], "a.png/b.png", "a.png' is not a folder"),
        (["a.png"], "c" * 300, "300 bytes"),
        (["a" * 250 + ".png"], "out", "256 bytes"),
    ],
)
def test_unsuitable_output_path_is_reported(tmp_path, names, output, offender):
    images = [write_noise(tmp_path / name, 4, 4) for name in names]
    assert offender in refusal(UnwritableFile, images, tmp_path / output).problem
    assert not (tmp_path / "out").exists()


def test_several_images_may_go_to_a_folder_with_a_dot(tmp_path):
    images = [write_noise(tmp_path / name, 4, 4) for name in ("a.png", "b.png")]
    assert len(plan(images, tmp_path / "results.v2").jobs) == 2


@pytest.mark.parametrize(
    ("size", "suffix", "is_storable"),
    [
        ((1, 4095), ".webp", True),
        ((1, 4096), ".webp", False),
        ((4096, 1), ".webp", False),
        ((1, 16375), ".jpg", True),
        ((1, 16376), ".jpg", False),
        ((1, 16376), ".png", True),
        ((1, 16376), ".tif", True),
    ],
)
def test_limits_of_formats_are_known_from_the_header(tmp_path, size, suffix, is_storable):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
    output = tmp_path / f"b{suffix}"
    if is_storable:
        (job,) = plan([tmp_path / "a.png"], output).jobs
        upscale_file(job, nearest)
        assert read_image(output).pixels.shape == (4 * size[0], 4 * size[1], 3)
    else:
        assert str(4 * max(size)) in refusal(UnwritableFile, [tmp_path / "a.png"], output).problem


@pytest.mark.parametrize("output", [".", "../in", "link", "a/.."])
def test_folder_is_not_upscaled_into_itself(tmp_path, monkeypatch, output):
    write_noise(tmp_path / "in/a.png", 4, 4)
    (tmp_path / "in/a").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "in", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "in")
    for recursive in (False, True):
        error = refusal(UnwritableFile, [tmp_path / "in"], Path(output), recursive=recursive)
        assert str(tmp_path / "in") in error.problem


def test_recursive_output_is_outside_of_the_input(tmp_path):
    write_noise(tmp_path / "in/a.png", 4, 4)
    assert len(plan([tmp_path / "in"], tmp_path / "in/out/new").jobs) == 1
    refusal(UnwritableFile, [tmp_path / "in"], tmp_path / "in/out/new", recursive=True)
    assert len(plan([tmp_path / "in"], tmp_path / "into", recursive=True).jobs) == 1


def test_output_of_one_image_is_not_another_input(tmp_path):
    images = [write_noise(tmp_path / name, 4, 4) for name in ("a.png", "ax4.png")]
    for skip_existing in (False, True):
        error = refusal(UnwritableFile, images, tmp_path, skip_existing=skip_existing)
        assert "ax4.png" in error.problem


def test_folders_that_are_one_folder_collide(tmp_path):
    for name in ("p/a.png", "q/a.png"):
        write_noise(tmp_path / "in" / name, 4, 4)
    (tmp_path / "out/p").mkdir(parents=True)
    (tmp_path / "out/q").symlink_to(tmp_path / "out/p", target_is_directory=True)
    error = refusal(UnwritableFile, [tmp_path / "in"], tmp_path / "out", recursive=True)
    assert "p/a.png" in error.problem and "q/a.png" in error.problem


# --- alpha and metadata ------------------------------------------------------------------------


def run(tmp_path: Path, name: str) -> tuple[str, ...]:
    (job,) = plan([tmp_path / "a.png"], tmp_path / name).jobs
    return upscale_file(job, nearest)


@pytest.mark.parametrize("name", ["b.png", "b.webp", "b.tif"])
def test_transparency_is_upscaled(tmp_path, name):
    rgba = noise(5, 6, 4)
    rgba[1:, 2:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    (note,) = run(tmp_path, name)
    assert "a.png" in note and "network" in note
    lr, sr = read_image(tmp_path / "a.png"), read_image(tmp_path / name)
    np.testing.assert_array_equal(sr.alpha, lr.alpha.repeat(4, 0).repeat(4, 1))
    difference = sr.pixels.astype(int) - lr.pixels.repeat(4, 0).repeat(4, 1)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("name", ["b.jpg", "b.bmp"])
def test_formats_without_alpha_get_a_white_background(tmp_path, name):
    Image.new("RGBA", (6, 5), (9, 9, 9, 0)).save(tmp_path / "a.png")
    (note,) = run(tmp_path, name)
    assert "composited over white" in note
    assert (read_image(tmp_path / name).pixels == 255).all()


def test_date_and_resolution_are_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0132], exif[0x0112] = "2020:01:02 03:04:05", 6
    Image.fromarray(noise(5, 6)).save(tmp_path / "a.png", exif=exif, dpi=(300, 300))
    run(tmp_path, "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (20, 24) and image.info["dpi"] == (300, 300)
        exif = image.getexif()
    assert exif[0x0132] == "2020:01:02 03:04:05" and 0x0112 not in exif


def test_interruption_leaves_whole_files_only(tmp_path):
    write_noise(tmp_path / "in/a.png", 5, 6)

    def interrupted(lr):
        raise KeyboardInterrupt

    (job,) = plan([tmp_path / "in"], tmp_path / "out").jobs
    with pytest.raises(KeyboardInterrupt):
        upscale_file(job, interrupted)
    assert not (tmp_path / "out").exists()


def test_interruption_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    image, output = write_noise(tmp_path / "in/a.png", 5, 6), tmp_path / "out/ax4.png"
    write_noise(output, 7, 7)
    before = output.read_bytes()

    def fsync(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    (job,) = plan([image], tmp_path / "out").jobs
    with pytest.raises(KeyboardInterrupt):
        upscale_file(job, nearest)
    assert output.read_bytes() == before and os.listdir(tmp_path / "out") == ["ax4.png"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_memory_grows_with_the_height_by_the_lr_image_alone(tmp_path, suffix):
    def forward(lr, mask):
        return lr.repeat(4, axis=1).repeat(4, axis=2)

    upscaler = checked_upscaler(tiled_upscaler(forward, Tiling((50, 40), 2), 1.0, 4))

    def peak_bytes(height: int) -> int:
        image = write_noise(tmp_path / f"{height}.png", height, 60)
        (job,) = plan([image], tmp_path / f"{height}x4{suffix}").jobs
        tracemalloc.start()
        try:
            upscale_file(job, upscaler)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(100)  # imports
    low, high = peak_bytes(400), peak_bytes(2400)
    # The SR image grows by 5.8 MB; whether two bands exist at once depends on the threads.
    assert high - low < 2.5 * 2000 * 60 * 3 + 1_000_000
    sr = read_image(tmp_path / f"2400x4{suffix}").pixels
    np.testing.assert_array_equal(sr, noise(2400, 60).repeat(4, axis=0).repeat(4, axis=1))


def test_failure_in_a_band_leaves_the_old_file(tmp_path):
    calls = []

    def forward(lr, mask):
        calls.append(lr)
        return lr.repeat(4, axis=1).repeat(4, axis=2) / (len(calls) < 3)  # NaN from the third on

    image, output = write_noise(tmp_path / "in/a.png", 40, 10), tmp_path / "out/ax4.png"
    before = write_noise(output, 7, 7).read_bytes()
    (job,) = plan([image], tmp_path / "out").jobs
    upscaler = tiled_upscaler(forward, Tiling((8, 10), 0), 1.0, 4)
    with np.errstate(all="ignore"), pytest.raises(InvalidOutput, match="NaN"):
        upscale_file(job, upscaler)
    assert len(calls) == 3
    assert output.read_bytes() == before and os.listdir(tmp_path / "out") == ["ax4.png"]


# --- transparent images ------------------------------------------------------------------------


def double(image):
    return image.repeat(2, axis=0).repeat(2, axis=1)


def dim(image):
    """A network that is wrong by some levels everywhere, and enlarges by 2."""
    return (double(image) // 2 + 60).astype(np.uint8)


def half_plane(h=8, w=10):
    """Opaque on the left, one column of 100, transparent on the right."""
    alpha = np.zeros((h, w), np.uint8)
    alpha[:, :4], alpha[:, 4] = 255, 100
    return alpha


def test_alpha_is_exact_where_it_is_flat_up_to_the_borders():
    upscaled = upscale_alpha(half_plane(), dim)
    assert upscaled.shape == (16, 20)
    assert (upscaled[:, :6] == 255).all() and (upscaled[:, 12:] == 0).all()
    assert (upscaled[:, 8:10] == 110).all()


def test_hidden_colors_do_not_matter():
    alpha, rng = half_plane(), np.random.default_rng(0)
    colors = np.full((8, 10, 3), (200, 30, 60), np.uint8)
    for hidden in (0, 255, rng.integers(0, 256, (8, 10, 3), np.uint8)):
        other = np.where(alpha[..., None] > 0, colors, hidden).astype(np.uint8)
        np.testing.assert_array_equal(fill_transparent(other, alpha), colors)
        over_white = composite_over_white(other, alpha[..., None], 255).astype(np.uint8)
        pixels, upscaled_alpha = upscale_transparent(over_white, alpha, double)
        np.testing.assert_array_equal(upscaled_alpha, double(alpha))
        np.testing.assert_array_equal(pixels, double(over_white))


def test_fill_takes_the_nearest_colors_and_leaves_visible_ones():
    alpha = np.zeros((3, 2 * FILL_RADIUS + 9), np.uint8)
    alpha[:, 0], alpha[:, -1] = 1, 255
    colors = np.zeros((*alpha.shape, 3), np.uint8)
    colors[:, 0], colors[:, -1] = 40, 90
    filled = fill_transparent(colors, alpha)[1, :, 0]
    assert (filled[: FILL_RADIUS + 1] == 40).all() and (filled[-FILL_RADIUS - 1 :] == 90).all()
    assert (filled[FILL_RADIUS + 1 : -FILL_RADIUS - 1] == 65).all()


def test_wholly_transparent_image_stays_so():
    alpha = np.zeros((2, 3), np.uint8)
    pixels, upscaled = upscale_transparent(np.full((2, 3, 3), 255, np.uint8), alpha, dim)
    assert (upscaled == 0).all() and (pixels == 255).all()
