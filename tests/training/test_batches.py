"""A batch is a function of seed and step; its HR patch is the HR of its LR patch."""

import multiprocessing
import os
import signal
from itertools import permutations

import numpy as np
import pytest

from esrjax.pictures.files import UnreadablePicture
from esrjax.pictures.resize import crop, downscale, shrink
from esrjax.pictures.sets import Pair, pairs
from esrjax.training import batches, feeds
from esrjax.training.devices import Devices
from esrjax.training.recipe import Data


def opened(pictures, **changes):
    said = {"sets": (str(pictures),), "patches": ((16, 16), (16, 24)), "batch": 3} | changes
    return batches.open_batches(Data(**said), 4, seed=said.pop("seed", 1))


def batch(source, step):
    """The patches of a step as they are trained on."""
    patches = source.patches(step)
    up, mirror = (patches[key][:, None, None, None] for key in ("upended", "mirrored"))
    sides = {side: np.where(up, patches[side][:, ::-1], patches[side]) for side in ("lr", "hr")}
    sides = {side: np.where(mirror, each[:, :, ::-1], each) for side, each in sides.items()}
    colours = patches["colours"][:, None, None, :]
    return {side: np.take_along_axis(each, colours, -1) for side, each in sides.items()}


def test_shapes_are_those_of_the_recipe(pictures):
    source = opened(pictures)
    shapes = {batch(source, step)["hr"].shape for step in range(20)}
    assert shapes == {(3, 16, 16, 3), (3, 16, 24, 3)}
    assert all(
        b["lr"].shape == (3, 4, b["hr"].shape[2] // 4, 3)
        for b in [batch(source, 0), batch(source, 9)]
    )


def test_a_batch_does_not_depend_on_what_came_before(pictures):
    source = opened(pictures, augment=("hflip", "rot90"))
    from_start = list(source.since(0, 9, threads=1))
    from_middle = list(opened(pictures, augment=("hflip", "rot90")).since(5, 9, threads=3))
    assert len(from_start) == 9
    for ours, theirs in zip(from_start[5:], from_middle, strict=True):
        np.testing.assert_array_equal(ours["lr"], theirs["lr"])
        np.testing.assert_array_equal(ours["hr"], theirs["hr"])


@pytest.mark.parametrize("patches", [((16, 16),), ((16, 24), (24, 16))])
def test_host_device_and_workers_give_the_same_bits(pictures, patches):
    """Whoever cuts, whoever flips: the batches of two devices, of two processes, and of NumPy."""
    said = {"patches": patches, "augment": ("hflip", "vflip", "rot90", "rgb"), "batch": 6}
    expected = opened(pictures, **said)
    kinds = [{}, {"feed": "device"}] + [{"workers": 2, "memory": 1e-6}] * (len(patches) == 1)
    for kind in kinds:
        data = Data(sets=(str(pictures),), **said, **kind)
        feed = feeds.open_feed(data, 4, 1, Devices.dividing(6))
        steps = list(feed.since(3, 8))
        assert len(steps) == 5 and not steps[0][0].sharding.is_fully_replicated
        for step, (lr, hr) in enumerate(steps, start=3):
            flipped = batch(expected, step)
            np.testing.assert_array_equal(lr, flipped["lr"])
            np.testing.assert_array_equal(hr, flipped["hr"])


def test_all_eight_turns_and_flips_come(pictures):
    source = opened(pictures, augment=("hflip", "vflip", "rot90"), batch=64)
    draw = source.draws.at(0)
    moves = set(zip(*(bits.tolist() for bits in (draw.turned, draw.upended, draw.mirrored))))  # noqa: B905
    assert len(moves) == 8


def test_half_of_the_patches_have_their_channels_in_any_order(pictures):
    colours = opened(pictures, augment=("rgb",), batch=600).draws.at(0).colours
    orders, counts = np.unique(colours, axis=0, return_counts=True)
    assert sorted(map(tuple, orders)) == sorted(permutations(range(3)))
    assert 300 < counts[0] < 400 and all(30 < count < 75 for count in counts[1:])


def test_the_patches_are_the_same_with_and_without_other_colours(pictures):
    """What a recipe drew before it said `rgb`, it still draws."""
    plain, coloured = (
        opened(pictures, augment=a).patches(3) for a in (("hflip",), ("hflip", "rgb"))
    )
    np.testing.assert_array_equal(plain["hr"], coloured["hr"])
    np.testing.assert_array_equal(plain["mirrored"], coloured["mirrored"])
    np.testing.assert_array_equal(plain["colours"], np.tile([0, 1, 2], (3, 1)))


@pytest.mark.parametrize("of", [2, 3])
def test_shares_of_a_batch_are_the_batch(pictures, of):
    said = {"augment": ("hflip", "rot90", "rgb"), "batch": 6}
    whole = batch(opened(pictures, **said), 5)
    data = Data(sets=(str(pictures),), patches=((16, 16), (16, 24)), **said)
    shares = [batch(batches.open_batches(data, 4, 1, share=(i, of)), 5) for i in range(of)]
    for side in ("lr", "hr"):
        np.testing.assert_array_equal(np.concatenate([s[side] for s in shares]), whole[side])


def test_what_does_not_fit_into_memory_is_read_when_it_is_drawn(pictures, monkeypatch):
    read = []
    load = Pair.load
    monkeypatch.setattr(Pair, "load", lambda pair: read.append(pair.name) or load(pair))
    one = 3 * (48 * 64) * 17 / 16 / 2**30  # of the four pictures, the first
    whole, part = opened(pictures, batch=4), len(read)
    assert part == 4
    source = opened(pictures, batch=4, memory=1.5 * one)
    assert len(read) == part  # their headers alone
    for step in range(5):
        for side, value in batch(source, step).items():
            np.testing.assert_array_equal(value, batch(whole, step)[side])
    assert part + 4 < len(read) < part + 20


def test_a_broken_picture_is_named_by_whoever_reads_it(pictures):
    (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:200])
    for kind in ({"workers": 1}, {"memory": 1e-6}):
        data = Data(sets=(str(pictures),), patches=((16, 16),), batch=8, **kind)
        with pytest.raises(UnreadablePicture, match=r"2\.png' cannot be read"):
            list(batches.open_batches(data, 4, 1).since(0, 3))


def test_pictures_that_a_device_cannot_hold_are_refused(pictures, monkeypatch):
    monkeypatch.setattr(feeds.jax, "local_devices", lambda: [Small()])
    data = Data(sets=(str(pictures),), patches=((16, 16),), batch=2, feed="device")
    with pytest.raises(feeds.TooLarge, match=r"a device has 0\.0 left"):
        feeds.open_feed(data, 4, 1, None)


class Small:
    def memory_stats(self):
        return {"bytes_limit": 40_000, "bytes_in_use": 10_000}


def test_seeds_and_steps_differ(pictures):
    source = opened(pictures)
    assert not np.array_equal(batch(source, 0)["hr"][:, :, :16], batch(source, 1)["hr"][:, :, :16])
    other = batches.open_batches(source.draws.data, 4, seed=2)
    assert any(
        batch(source, k)["hr"].shape != batch(other, k)["hr"].shape
        or not np.array_equal(batch(source, k)["hr"], batch(other, k)["hr"])
        for k in range(3)
    )


def test_every_picture_comes_once_before_any_comes_twice(pictures):
    source = opened(pictures, batch=4, patches=((16, 16),))
    order = [source.draws.order[i] for i in range(12)]
    assert all(sorted(order[i : i + 4]) == [0, 1, 2, 3] for i in (0, 4, 8))
    assert order[:4] != order[4:8] or order[4:8] != order[8:]


@pytest.mark.parametrize("augment", [(), ("hflip",), ("vflip",), ("rot90",), ("rgb",)])
def test_patches_are_cut_from_the_picture_and_moved_alike(pictures, augment):
    source = opened(pictures, augment=augment, patches=((16, 24),), batch=1)
    for step in range(8):
        lr, hr = (side[0] for side in batch(source, step).values())
        assert any(_lies_in(lr, hr, picture, augment) for picture in source.pictures)


def _lies_in(lr, hr, picture, augment):
    """Whether some crop of the picture, moved by at most `augment`, is this patch."""
    turns = {"hflip": lambda p: p[:, ::-1], "vflip": lambda p: p[::-1], "rot90": np.rot90}
    orders = [lambda p, order=order: p[..., order] for order in permutations(range(3))]
    moves = {name: [turn] for name, turn in turns.items()} | {"rgb": orders}
    for move in (lambda p: p, *(move for name in augment for move in moves[name])):
        whole_lr, whole_hr = move(picture[0]), move(picture[1])
        for top in range(whole_lr.shape[0] - lr.shape[0] + 1):
            for left in range(whole_lr.shape[1] - lr.shape[1] + 1):
                small = whole_lr[top : top + lr.shape[0], left : left + lr.shape[1]]
                large = whole_hr[4 * top : 4 * top + hr.shape[0], 4 * left : 4 * left + hr.shape[1]]
                if np.array_equal(small, lr) and np.array_equal(large, hr):
                    return True
    return False


def test_patches_larger_than_a_picture_are_refused(pictures):
    with pytest.raises(batches.NoPatches) as error:
        opened(pictures, patches=((64, 64),))
    assert "3 of 4 pictures are too small: 0, 1, 3" in str(error.value)
    assert "at least 64 pixels a side" in str(error.value)


def test_small_pictures_are_left_out_where_the_recipe_says_so(pictures):
    assert len(opened(pictures, patches=((64, 48),), small="skip").pictures) == 1
    with pytest.raises(batches.NoPatches, match="4 of 4"):
        opened(pictures, patches=((68, 48),), small="skip")


def test_patches_that_the_scale_does_not_divide_are_refused(pictures):
    with pytest.raises(batches.NoPatches) as error:
        opened(pictures, patches=((16, 18),))
    assert "16 x 18" in str(error.value) and "multiples of 4" in str(error.value)


def _waits(said):
    batches._serve(0, 1)
    said.send("ready")
    said.recv()


def test_a_worker_heeds_no_signal_and_ends_with_its_pipe():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_waits, args=(theirs,))
    worker.start()
    assert ours.recv() == "ready"
    for each in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, each)
    worker.join(0.5)
    assert worker.is_alive()
    ours.send("go")
    worker.join(20)
    assert worker.exitcode == 0


def test_every_picture_is_also_taken_smaller(pictures):
    plain, both = opened(pictures), opened(pictures, shrink=(0.7,))
    count = len(plain.pictures)
    assert len(both.pictures) == 2 * count
    for index in range(count):
        whole, (lr, hr) = pairs(pictures)[index].load()[1], both.pictures[count + index]
        height, width = (-(-7 * side // 10) for side in whole.shape[:2])
        np.testing.assert_array_equal(hr, crop(shrink(whole, 0.7)))
        assert hr.shape[:2] == (height // 4 * 4, width // 4 * 4)
        np.testing.assert_array_equal(lr, downscale(hr))
        assert tuple(both.draws.sides[count + index]) == lr.shape[:2]
