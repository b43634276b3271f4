"""How batches come to the devices: cut by the host, or by the devices from what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrjax.errors import UserError
from esrjax.training.batches import Batches, open_batches
from esrjax.training.devices import Devices
from esrjax.training.draws import Draws
from esrjax.training.recipe import Data

Pictures = tuple[Array, Array]  # LR (n, h, w, 3) and HR (n, s·h, s·w, 3), 8 bits


class TooLarge(UserError):
    """Pictures that the devices cannot hold."""


class Feed(Protocol):
    """The batches of a stage, on the devices."""

    def since(self, step: int, steps: int) -> Iterator[Pictures]:
        """LR and HR of the steps from `step` to `steps`, spread over the devices by patches."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class HostFeed:
    """The host cuts the patches; the devices flip and recolour them."""

    batches: Batches
    devices: Devices

    def since(self, step: int, steps: int) -> Iterator[Pictures]:
        """LR and HR of every step."""
        with closing(self.batches.since(step, steps)) as source:
            for patches in source:
                yield _augmented_alike(**self.devices.spread(dict(patches)))


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceFeed:
    """The devices hold all pictures and cut the patches that the host has drawn.

    lr, hr: the pictures one below the other, black to their right, (rows, width, 3). first: (N,),
    the LR row at which each begins.
    """

    draws: Draws
    lr: Array
    hr: Array
    first: np.ndarray[Any, np.dtype[np.int32]]
    devices: Devices

    @classmethod
    def of(cls, batches: Batches, devices: Devices) -> DeviceFeed:
        """The same batches, with the pictures taken to every device."""
        heights, width = batches.draws.sides[:, 0], int(batches.draws.sides[:, 1].max())
        s, rows = batches.draws.scale, int(heights.sum(dtype=np.int64))
        _require_room(3 * rows * width * (1 + s * s))
        first = np.cumsum(heights, dtype=np.int32) - heights
        sheets = [np.zeros((k * rows, k * width, 3), np.uint8) for k in (1, s)]
        for row, pair in zip(first, batches.pictures, strict=True):
            for k, sheet, each in zip((1, s), sheets, pair, strict=True):
                sheet[k * row : k * row + each.shape[0], : each.shape[1]] = each
        lr, hr = map(devices.held, sheets)
        return cls(draws=batches.draws, lr=lr, hr=hr, first=first, devices=devices)

    def since(self, step: int, steps: int) -> Iterator[Pictures]:
        """LR and HR of every step."""
        turns = "rot90" in self.draws.data.augment
        for draw in map(self.draws.at, range(step, steps)):
            drawn = {"row": self.first[draw.picture] + draw.top, "left": draw.left}
            drawn |= {"turned": draw.turned, "upended": draw.upended, "mirrored": draw.mirrored}
            drawn["colours"] = draw.colours
            s, spread = self.draws.scale, self.devices.spread(drawn)
            yield _cut_alike(self.lr, self.hr, s, draw.shape, turns, **spread)


def open_feed(
    data: Data, scale: int, seed: int, devices: Devices, share: tuple[int, int] = (0, 1)
) -> Feed:
    """The batches of a stage as its recipe says. share: the part that this process gives."""
    batches = open_batches(data, scale, seed, share)
    if data.feed == "device":
        return DeviceFeed.of(batches, devices)
    return HostFeed(batches=batches, devices=devices)


@jax.jit
def _augmented_alike(
    lr: Array, hr: Array, upended: Array, mirrored: Array, colours: Array
) -> Pictures:
    augmented = partial(_augmented, upended=upended, mirrored=mirrored, colours=colours)
    return augmented(lr), augmented(hr)


def _augmented(patches: Array, *, upended: Array, mirrored: Array, colours: Array) -> Array:
    """(n, h, w, 3), upside down where asked, then mirrored where asked, its channels as asked."""
    patches = jnp.where(upended[:, None, None, None], patches[:, ::-1], patches)
    patches = jnp.where(mirrored[:, None, None, None], patches[:, :, ::-1], patches)
    red, green, blue = jnp.split(patches, 3, axis=-1)
    channel = colours[:, None, None, :]
    return jnp.where(channel == 0, red, jnp.where(channel == 1, green, blue))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _cut_alike(
    lr: Array,
    hr: Array,
    scale: int,
    shape: tuple[int, int],
    turns: bool,
    *,
    row: Array,
    left: Array,
    turned: Array,
    upended: Array,
    mirrored: Array,
    colours: Array,
) -> Pictures:
    """The patches of one draw. turns: whether any may be turned."""
    h, w = shape
    s, top, start = scale, scale * row, scale * left
    lr_patches, hr_patches = _cut(lr, row, left, shape), _cut(hr, top, start, (s * h, s * w))
    if turns:
        across = turned[:, None, None, None]
        lr_turned, hr_turned = _cut(lr, row, left, (w, h)), _cut(hr, top, start, (s * w, s * h))
        lr_patches = jnp.where(across, lr_turned.swapaxes(1, 2), lr_patches)
        hr_patches = jnp.where(across, hr_turned.swapaxes(1, 2), hr_patches)
    return _augmented_alike(lr_patches, hr_patches, upended, mirrored, colours)


def _cut(pictures: Array, row: Array, left: Array, shape: tuple[int, int]) -> Array:
    """(rows, width, 3) -> (n, h, w, 3)."""
    zero = jnp.zeros((), row.dtype)
    return jax.vmap(lambda r, c: lax.dynamic_slice(pictures, (r, c, zero), (*shape, 3)))(row, left)


def _require_room(size: int) -> None:
    """Raise where a device would be filled by the pictures alone; not every backend tells."""
    free = [
        told["bytes_limit"] - told.get("bytes_in_use", 0)
        for device in jax.local_devices()
        if (told := device.memory_stats()) and "bytes_limit" in told
    ]
    if free and size > min(free):
        raise TooLarge(
            f"the pictures take {size / 2**30:.1f} GiB, a device has {min(free) / 2**30:.1f} left",
            rule='with data.feed = "device" every device holds all pictures of the stage',
            remedy='say data.feed = "host", or train on a part of the sets, such as "DIV2K[:400]"',
        )
