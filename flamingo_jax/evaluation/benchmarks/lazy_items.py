"""Items that are made on request, for training splits of a million images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from flamingo_jax.evaluation.benchmarks.benchmark import Item


class LazyItems(Sequence[Item]):
    """A sequence that stores no items: each access makes the item again.

    Args:
        length: number of items.
        make: index in 0..length-1 -> item; pure.
    """

    def __init__(self, length: int, make: Callable[[int], Item]):
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(self._length)[index]  # handles negative indices, raises IndexError
        if isinstance(places, int):
            return self._make(places)
        return [self._make(place) for place in places]

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(self._length))
