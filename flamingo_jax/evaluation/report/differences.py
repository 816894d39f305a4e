"""How rows of an ablation differ from the base, over several seeds.

Every row is trained with the same seeds: seed s gives the world, the towers, the order of the data
and the test episodes. So a row is compared with the base of the same seed, and what the seed alone
changes falls out:

    d[r, s] = value[r, s] - value[base, s]              difference of row r
    d[r]    = mean over s of d[r, s]
    e       = sqrt(sum over r, s of (d[r, s] - d[r])^2 / (R (S - 1)) / S)

`e` is the standard error of a d[r]. It is one number for all rows of a column: with two seeds a
row by itself says little about its spread, and all R rows together say enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

BASE = "base"
Values = Mapping[str, float]  # column -> value


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far one row is from the base in one column.

    Attributes:
        by_seed: value of the row minus that of the base, for each seed.
        error: standard error of their mean; None with one seed.
    """

    by_seed: tuple[float, ...]
    error: float | None

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.by_seed))

    @property
    def is_clear(self) -> bool:
        """Returns True if the mean is at least two standard errors away from 0."""
        return self.error is not None and abs(self.mean) >= 2 * self.error


def differences(
    values: Mapping[str, Mapping[int, Values]], columns: Sequence[str]
) -> dict[str, dict[str, Difference]]:
    """Returns {row: {column: difference}} of all rows but the base.

    A row is compared over the seeds that it has, and the base too; rows with none are left out.

    Args:
        values: row -> seed -> column -> value; `BASE` is one of the rows.
        columns: the columns to compare.
    """
    base = values[BASE]
    by_seed = {
        row: {
            column: tuple(seeds[seed][column] - base[seed][column] for seed in sorted(seeds))
            for column in columns
        }
        for row, seeds in (
            (row, {seed: found for seed, found in seeds.items() if seed in base})
            for row, seeds in values.items()
            if row != BASE
        )
        if seeds
    }
    spread = {column: _spread([found[column] for found in by_seed.values()]) for column in columns}

    def difference(column: str, numbers: tuple[float, ...]) -> Difference:
        deviation = spread[column]
        return Difference(
            numbers, None if deviation is None else deviation / math.sqrt(len(numbers))
        )

    return {
        row: {column: difference(column, numbers) for column, numbers in found.items()}
        for row, found in by_seed.items()
    }


def _spread(rows: Sequence[tuple[float, ...]]) -> float | None:
    """Returns the standard deviation over seeds, of all rows together."""
    freedom = sum(len(numbers) - 1 for numbers in rows)
    if not freedom:
        return None
    squares = sum(float(np.sum((np.array(numbers) - np.mean(numbers)) ** 2)) for numbers in rows)
    return math.sqrt(squares / freedom)
