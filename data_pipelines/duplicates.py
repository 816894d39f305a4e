"""Decides which of the records that share keys are kept.

    record    keys      kept?
    1         u1, t1    yes
    2         u1, t2    no: record 1 is kept and has u1
    3         u2, t2    yes: of the records with t2, none is kept so far

The records are decided in their order. A record is left out only if a record that is kept has one
of its keys. So every record that is left out has a copy in the dataset, and no two records of the
dataset share a key. The keys of near duplicates are only a hint, since unlike texts can share one:
there the kept record must be similar, too.

Only records that share a key take part. They are decided in one process, which needs about 100
bytes of memory for each shared key, and as much for each near duplicate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from data_pipelines.near_duplicates import KEY, is_alike

# Kept records of one near-duplicate key that a record is compared with. More of them would need a
# time that grows with the square of the number of records.
_MOST_COMPARED = 64


# A key that a record shares with another one: (split, position in the files of its unit, rank of
# the key among those of the record, name of the key, hash of the key). A plain tuple, since Beam
# needs a third of the time to send one.
Shared = tuple[str, int, int, str, int]


@dataclasses.dataclass(frozen=True)
class Claims:
    """The records of a unit that share a key with another record.

    Attributes:
      shared: their keys.
      sketches: {(split, position): sketch} of those that have one; see `near_duplicates`.
    """

    shared: list[Shared]
    sketches: dict[tuple[str, int], bytes]


def left_out(units: Iterable[tuple[int, Claims]]) -> Iterator[tuple[int, tuple[str, int, str]]]:
    """Yields the records to leave out.

    Args:
      units: (number of the unit, its claims) in any order.

    Yields:
      (number of the unit, (split, position, name of the key that a kept record has)).
    """
    kept: set[int] = set()
    kept_sketches: dict[int, list[bytes]] = {}
    for unit, claims in sorted(units, key=lambda item: item[0]):
        for (split, position), keys in _by_record(claims.shared):
            sketch = claims.sketches.get((split, position), b"")
            for name, value in keys:
                if name == KEY:
                    is_copy = is_alike(sketch, kept_sketches.get(value, ()))
                else:
                    is_copy = value in kept
                if is_copy:
                    yield unit, (split, position, name)
                    break
            else:
                for name, value in keys:
                    if name != KEY:
                        kept.add(value)
                    elif len(known := kept_sketches.setdefault(value, [])) < _MOST_COMPARED:
                        known.append(sketch)


def _by_record(
    shared: list[Shared],
) -> Iterator[tuple[tuple[str, int], list[tuple[str, int]]]]:
    """Yields ((split, position), [(name, value) of its keys by rank]) in order."""
    records: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for split, position, _, name, value in sorted(shared):
        records.setdefault((split, position), []).append((name, value))
    yield from records.items()
