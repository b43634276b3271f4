"""Cache of decoded training images, limited in size."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from esrjax.data.datasets import Pair
from esrjax.data.image_io import Pixels

GIB = 2**30


class ImageCache(Sequence[tuple[Pixels, Pixels]]):
    """Sequence of (LR, HR) images that caches what it reads until its capacity is reached.

    Nothing is evicted: images are drawn in shuffled order, so none is needed sooner than another,
    and replacing one by another would not save reads. Thread-safe.

    Args:
        pairs: The image pairs.
        capacity_gib: Capacity in GiB, over all readers together.
        num_readers: Number of processes that have a copy of the cache.
    """

    def __init__(self, pairs: Sequence[Pair], capacity_gib: float, num_readers: int = 1):
        self._pairs, self._free_bytes = pairs, int(capacity_gib * GIB / num_readers)
        self._cache: dict[int, tuple[Pixels, Pixels]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        images = self._pairs[index].load()
        num_bytes = sum(image.nbytes for image in images)
        with self._lock:
            if num_bytes <= self._free_bytes and index not in self._cache:
                self._free_bytes -= num_bytes
                self._cache[index] = images
        return images

    def __iter__(self) -> Iterator[tuple[Pixels, Pixels]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without cached images: a worker process reads its own."""
        free_bytes = self._free_bytes + sum(
            image.nbytes for pair in self._cache.values() for image in pair
        )
        return {"_pairs": self._pairs, "_free_bytes": free_bytes, "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}
