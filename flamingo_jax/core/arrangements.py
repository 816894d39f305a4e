"""The arrangements of an image's tiles, by number: what the reader and the model both have to know.

Of at most 4 tiles they are, as (rows, columns): 1 (1, 1), 2 (1, 2), 3 (1, 3), 4 (1, 4), 5 (2, 1),
6 (2, 2), 7 (3, 1), 8 (4, 1). So are the rows of Llama 3.2 Vision's tables, whose row 0 is of no
image.
"""

import functools


@functools.cache
def arrangements(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Returns all (rows, columns) of at most so many tiles; number 1 is the first, (1, 1)."""
    sides = range(1, max_tiles + 1)
    return tuple((h, w) for h in sides for w in sides if h * w <= max_tiles)
