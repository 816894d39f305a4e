"""Items that are made when they are asked for.

A training split of a million pictures as a sequence that holds none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from flamingo_jax.evaluation.benchmarks.benchmark import Item


class LazyItems(Sequence[Item]):
    """A sequence of items, each made anew by a function whenever it is asked for.

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
        places = range(self._length)[index]  # raises IndexError, and counts from the end
        return (
            self._make(places)
            if isinstance(places, int)
            else [self._make(place) for place in places]
        )

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(self._length))
