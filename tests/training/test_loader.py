"""A batch is a function of seed and step, and its LR and HR patches match."""

import multiprocessing
import os
import signal
from itertools import permutations

import numpy as np
import pytest

from esrjax.data.datasets import Pair, list_folder_pairs
from esrjax.data.resize import bicubic_downscale, bicubic_resize, mod_crop
from esrjax.errors import RecipeError, TrainingFailed, UnreadableFile
from esrjax.training import loader
from esrjax.training import pipeline as feeds
from esrjax.training.distributed import DataParallel
from esrjax.training.recipe import Data


def make_batches(image_dir, **changes):
    data = {"datasets": (str(image_dir),), "hr_patch_sizes": ((16, 16), (16, 24)), "batch_size": 3}
    data |= changes
    return loader.open_batches(Data(**data), 4, seed=data.pop("seed", 1))


def batch(source, step):
    """Return the augmented LR and HR patches of a step, computed by NumPy."""
    patches = source.batch_at(step)
    vflip, hflip = (patches[key][:, None, None, None] for key in ("vflip", "hflip"))
    images = {key: np.where(vflip, patches[key][:, ::-1], patches[key]) for key in ("lr", "hr")}
    images = {key: np.where(hflip, image[:, :, ::-1], image) for key, image in images.items()}
    order = patches["channel_order"][:, None, None, :]
    return {key: np.take_along_axis(image, order, -1) for key, image in images.items()}


def test_patch_sizes_are_those_of_the_recipe(image_dir):
    source = make_batches(image_dir)
    shapes = {batch(source, step)["hr"].shape for step in range(20)}
    assert shapes == {(3, 16, 16, 3), (3, 16, 24, 3)}
    assert all(
        b["lr"].shape == (3, 4, b["hr"].shape[2] // 4, 3)
        for b in [batch(source, 0), batch(source, 9)]
    )


def test_batch_does_not_depend_on_earlier_batches(image_dir):
    source = make_batches(image_dir, augment=("hflip", "rot90"))
    from_start = list(source.iter_from(0, 9, threads=1))
    from_middle = list(
        make_batches(image_dir, augment=("hflip", "rot90")).iter_from(5, 9, threads=3)
    )
    assert len(from_start) == 9
    for left, right in zip(from_start[5:], from_middle, strict=True):
        np.testing.assert_array_equal(left["lr"], right["lr"])
        np.testing.assert_array_equal(left["hr"], right["hr"])


@pytest.mark.parametrize("sizes", [((16, 16),), ((16, 24), (24, 16))])
def test_host_device_and_worker_pipelines_are_bit_exact(image_dir, sizes):
    """Batches of two devices, of worker processes and of NumPy are equal."""
    fields = {"hr_patch_sizes": sizes, "augment": ("hflip", "vflip", "rot90", "rgb")}
    fields["batch_size"] = 6
    expected = make_batches(image_dir, **fields)
    variants = [{}, {"crop_on": "device"}]
    variants += [{"num_workers": 2, "cache_gib": 1e-6}] * (len(sizes) == 1)
    for variant in variants:
        data = Data(datasets=(str(image_dir),), **fields, **variant)
        batches, devices = loader.open_batches(data, 4, 1), DataParallel.for_batch(6)
        steps = list(feeds.image_batches(batches, devices, 3, 8))
        assert len(steps) == 5 and not steps[0][0].sharding.is_fully_replicated
        for step, (lr, hr) in enumerate(steps, start=3):
            augmented = batch(expected, step)
            np.testing.assert_array_equal(lr, augmented["lr"])
            np.testing.assert_array_equal(hr, augmented["hr"])


def test_all_8_symmetries_occur(image_dir):
    source = make_batches(image_dir, augment=("hflip", "vflip", "rot90"), batch_size=64)
    spec = source.sampler.sample(0)
    flags = (spec.transpose, spec.vflip, spec.hflip)
    symmetries = set(zip(*(array.tolist() for array in flags), strict=True))
    assert len(symmetries) == 8


def test_half_of_the_patches_have_shuffled_channels(image_dir):
    orders = (
        make_batches(image_dir, augment=("rgb",), batch_size=600).sampler.sample(0).channel_order
    )
    unique, counts = np.unique(orders, axis=0, return_counts=True)
    assert sorted(map(tuple, unique)) == sorted(permutations(range(3)))
    assert 300 < counts[0] < 400 and all(30 < count < 75 for count in counts[1:])


def test_patches_do_not_depend_on_channel_shuffle(image_dir):
    """Adding `rgb` to a recipe changes no other draw."""
    plain, shuffled = (
        make_batches(image_dir, augment=a).batch_at(3) for a in (("hflip",), ("hflip", "rgb"))
    )
    np.testing.assert_array_equal(plain["hr"], shuffled["hr"])
    np.testing.assert_array_equal(plain["hflip"], shuffled["hflip"])
    np.testing.assert_array_equal(plain["channel_order"], np.tile([0, 1, 2], (3, 1)))


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_of_a_batch_concatenate_to_the_batch(image_dir, num_shards):
    fields = {"augment": ("hflip", "rot90", "rgb"), "batch_size": 6}
    full = batch(make_batches(image_dir, **fields), 5)
    data = Data(datasets=(str(image_dir),), hr_patch_sizes=((16, 16), (16, 24)), **fields)
    shards = [
        batch(loader.open_batches(data, 4, 1, shard=(i, num_shards)), 5) for i in range(num_shards)
    ]
    for key in ("lr", "hr"):
        np.testing.assert_array_equal(np.concatenate([s[key] for s in shards]), full[key])


def test_images_beyond_the_cache_are_read_when_drawn(image_dir, monkeypatch):
    loads = []
    load = Pair.load
    monkeypatch.setattr(Pair, "load", lambda pair: loads.append(pair.name) or load(pair))
    first_gib = 3 * (48 * 64) * 17 / 16 / 2**30  # LR and HR of the first image
    cached, num_loads = make_batches(image_dir, batch_size=4), len(loads)
    assert num_loads == 4
    source = make_batches(image_dir, batch_size=4, cache_gib=1.5 * first_gib)
    assert len(loads) == num_loads  # only headers were read
    for step in range(5):
        for key, value in batch(source, step).items():
            np.testing.assert_array_equal(value, batch(cached, step)[key])
    assert num_loads + 4 < len(loads) < num_loads + 20


def test_corrupt_image_is_reported_with_its_name(image_dir):
    (image_dir / "2.png").write_bytes((image_dir / "2.png").read_bytes()[:200])
    for variant in ({"num_workers": 1}, {"cache_gib": 1e-6}):
        data = Data(datasets=(str(image_dir),), hr_patch_sizes=((16, 16),), batch_size=8, **variant)
        with pytest.raises(UnreadableFile, match=r"2\.png"):
            list(loader.open_batches(data, 4, 1).iter_from(0, 3))


def test_images_that_exceed_device_memory_are_reported(image_dir, monkeypatch):
    monkeypatch.setattr(feeds.jax, "local_devices", lambda: [SmallDevice()])
    fields = {"hr_patch_sizes": ((16, 16),), "batch_size": 2, "crop_on": "device"}
    data = Data(datasets=(str(image_dir),), **fields)
    with pytest.raises(RecipeError, match=r"0\.0 GiB free"):
        feeds.image_batches(loader.open_batches(data, 4, 1), None, 0, 1)


class SmallDevice:
    def memory_stats(self):
        return {"bytes_limit": 40_000, "bytes_in_use": 10_000}


def test_batches_differ_between_seeds_and_steps(image_dir):
    source = make_batches(image_dir)
    assert not np.array_equal(batch(source, 0)["hr"][:, :, :16], batch(source, 1)["hr"][:, :, :16])
    other = loader.open_batches(source.sampler.data, 4, seed=2)
    assert any(
        batch(source, k)["hr"].shape != batch(other, k)["hr"].shape
        or not np.array_equal(batch(source, k)["hr"], batch(other, k)["hr"])
        for k in range(3)
    )


def test_every_image_occurs_once_per_epoch(image_dir):
    source = make_batches(image_dir, batch_size=4, hr_patch_sizes=((16, 16),))
    order = [source.sampler.image_order[i] for i in range(12)]
    assert all(sorted(order[i : i + 4]) == [0, 1, 2, 3] for i in (0, 4, 8))
    assert order[:4] != order[4:8] or order[4:8] != order[8:]


@pytest.mark.parametrize("augment", [(), ("hflip",), ("vflip",), ("rot90",), ("rgb",)])
def test_lr_and_hr_are_the_same_augmented_crop_of_an_image(image_dir, augment):
    source = make_batches(image_dir, augment=augment, hr_patch_sizes=((16, 24),), batch_size=1)
    for step in range(8):
        lr, hr = (images[0] for images in batch(source, step).values())
        assert any(_is_crop_of(lr, hr, pair, augment) for pair in source.images)


def _is_crop_of(lr, hr, pair, augment):
    """Return whether the patch is a crop of the image pair, changed by at most `augment`."""
    symmetries = {"hflip": lambda p: p[:, ::-1], "vflip": lambda p: p[::-1], "rot90": np.rot90}
    orders = [lambda p, order=order: p[..., order] for order in permutations(range(3))]
    transforms = {name: [fn] for name, fn in symmetries.items()} | {"rgb": orders}
    for transform in (lambda p: p, *(fn for name in augment for fn in transforms[name])):
        image_lr, image_hr = transform(pair[0]), transform(pair[1])
        for top in range(image_lr.shape[0] - lr.shape[0] + 1):
            for left in range(image_lr.shape[1] - lr.shape[1] + 1):
                lr_crop = image_lr[top : top + lr.shape[0], left : left + lr.shape[1]]
                hr_rows = image_hr[4 * top : 4 * top + hr.shape[0]]
                hr_crop = hr_rows[:, 4 * left : 4 * left + hr.shape[1]]
                if np.array_equal(lr_crop, lr) and np.array_equal(hr_crop, hr):
                    return True
    return False


def test_undersized_images_are_reported(image_dir):
    with pytest.raises(RecipeError) as error:
        make_batches(image_dir, hr_patch_sizes=((64, 64),))
    assert "3 of 4" in error.value.problem and "0, 1, 3" in error.value.problem
    assert "64" in error.value.rule and "data.undersized" in error.value.remedy


def test_undersized_images_are_skipped_on_request(image_dir):
    assert len(make_batches(image_dir, hr_patch_sizes=((64, 48),), undersized="skip").images) == 1
    with pytest.raises(RecipeError, match="4 of 4"):
        make_batches(image_dir, hr_patch_sizes=((68, 48),), undersized="skip")


def test_patch_size_not_divisible_by_the_scale_is_reported(image_dir):
    with pytest.raises(RecipeError) as error:
        make_batches(image_dir, hr_patch_sizes=((16, 18),))
    assert "16x18" in error.value.problem and "multiples of 4" in error.value.rule
    assert "data.hr_patch_sizes" in error.value.remedy


def _run_worker(pipe):
    loader._init_worker(0, 1)
    pipe.send("ready")
    pipe.recv()


def test_worker_ignores_signals_and_exits_with_its_pipe():
    context = multiprocessing.get_context("spawn")
    parent_end, worker_end = context.Pipe()
    worker = context.Process(target=_run_worker, args=(worker_end,))
    worker.start()
    assert parent_end.recv() == "ready"
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, signum)
    worker.join(0.5)
    assert worker.is_alive()
    parent_end.send("go")
    worker.join(20)
    assert worker.exitcode == 0


def test_hr_downscales_add_a_smaller_copy_of_every_image(image_dir):
    plain, both = make_batches(image_dir), make_batches(image_dir, hr_downscales=(0.7,))
    count = len(plain.images)
    assert len(both.images) == 2 * count
    for index in range(count):
        original = list_folder_pairs(image_dir)[index].load()[1]
        lr, hr = both.images[count + index]
        height, width = (-(-7 * side // 10) for side in original.shape[:2])
        np.testing.assert_array_equal(hr, mod_crop(bicubic_resize(original, 0.7)))
        assert hr.shape[:2] == (height // 4 * 4, width // 4 * 4)
        np.testing.assert_array_equal(lr, bicubic_downscale(hr))
        assert tuple(both.sampler.lr_sizes[count + index]) == lr.shape[:2]


@pytest.mark.parametrize(("code", "parts"), [(-9, "SIGKILL memory"), (-7, "SIGBUS /dev/shm")])
def test_dead_worker_is_reported_with_its_cause(image_dir, monkeypatch, code, parts):
    message = f"Worker process was terminated unexpectedly with exit code {code}. Search"
    batches = make_batches(image_dir)
    monkeypatch.setattr(
        loader.Batches, "batch_at", lambda *_: (_ for _ in ()).throw(RuntimeError(message))
    )
    with pytest.raises(TrainingFailed) as error:
        next(batches.iter_from(0, 1))
    assert all(part in str(error.value) for part in parts.split())
