"""Pictures read ahead of their use."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grain

Item = TypeVar("Item")
Found = TypeVar("Found")


def ahead(act: Callable[[Item], Found], items: Sequence[Item], buffer: int = 2) -> Iterator[Found]:
    """What `act` makes of every item, in order, by two threads; few results wait in memory."""
    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=buffer)
    source: Any = grain.MapDataset.range(len(items)).map(lambda index: act(items[index]))
    return iter(source.to_iter_dataset(reading))
