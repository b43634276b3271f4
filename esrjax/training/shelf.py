"""Training pictures, as many of them in memory as there is room for."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from esrjax.pictures.files import Pixels
from esrjax.pictures.pairs import Pair

GIB = 2**30


class Shelf(Sequence[tuple[Pixels, Pixels]]):
    """(LR, HR) of every pair. What was read stays while there is room; the rest is read each time.

    Nothing that is held is ever given up for something else: patches come from shuffled pictures,
    so that no picture is needed sooner than another. room: GiB, in all processes together.
    """

    def __init__(self, pairs: Sequence[Pair], room: float, readers: int = 1):
        self._pairs, self._room = pairs, int(room * GIB / readers)
        self._held: dict[int, tuple[Pixels, Pixels]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        held = self._held.get(index)
        if held is not None:
            return held
        pictures = self._pairs[index].load()
        size = sum(each.nbytes for each in pictures)
        with self._lock:
            if size <= self._room and index not in self._held:
                self._room -= size
                self._held[index] = pictures
        return pictures

    def __iter__(self) -> Iterator[tuple[Pixels, Pixels]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is held: another process reads for itself."""
        room = self._room + sum(each.nbytes for pair in self._held.values() for each in pair)
        return {"_pairs": self._pairs, "_room": room, "_held": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}
