"""Counts the corrupt records of a dataset, and stops the run when their share is too large."""

import collections
import logging
import threading
from collections.abc import Mapping

from flamingo_jax.data.schema import CorruptRecord

_ALWAYS_ALLOWED = 30  # corrupt records, before their share can stop a run
_NUM_LOGGED = 20  # corrupt records of a dataset that are logged one by one
# Corrupt records of a dataset that are counted once. Further ones are counted at each visit.
_NUM_REMEMBERED = 100_000

_log = logging.getLogger(__name__)


class BrokenDataset(ValueError):
    """Too many records of a dataset are corrupt."""


class Rejected:
    """The corrupt records of one dataset, as far as this process has read it.

    Threads may share it.

    Args:
        dataset: name of the dataset, for messages.
        path: directory of the dataset, for messages.
        max_corrupt: largest share of the records read that may be corrupt.

    Attributes:
        reasons: number of different corrupt records, by `CorruptRecord.reason`.
    """

    def __init__(self, dataset: str, path: str, max_corrupt: float):
        self._dataset, self._path, self._max_corrupt = dataset, path, max_corrupt
        self._num_visits = self._num_corrupt_visits = 0
        self._known: set[int] = set()
        self._lock = threading.Lock()
        self.reasons: collections.Counter[str] = collections.Counter()

    def count_good(self) -> None:
        """Counts a visit to a record that is not corrupt."""
        with self._lock:
            self._num_visits += 1

    def count_corrupt(self, index: int, error: CorruptRecord) -> None:
        """Counts a visit to a corrupt record, and logs the first records of a dataset.

        Args:
            index: number of the record.
            error: what is wrong with it.

        Raises:
            BrokenDataset: the share of corrupt records is larger than `max_corrupt`.
        """
        with self._lock:
            self._num_visits += 1
            self._num_corrupt_visits += 1
            if is_new := index not in self._known:
                self.reasons[error.reason] += 1
                if len(self._known) < _NUM_REMEMBERED:
                    self._known.add(index)
            corrupt, visits = self._num_corrupt_visits, self._num_visits
            total = self.reasons.total()
        if is_new and total <= _NUM_LOGGED:
            is_last = total == _NUM_LOGGED
            _log.warning(
                "Dataset %r: record %d is skipped (%s). %s%s",
                self._dataset,
                index,
                error.reason,
                error,
                " Further ones are counted without a line of their own." if is_last else "",
            )
        if corrupt > max(_ALWAYS_ALLOWED, self._max_corrupt * visits):
            raise BrokenDataset(
                f"Dataset {self._dataset!r}: {corrupt} of the {visits} records read from "
                f"{self._path} so far are corrupt ({describe_reasons(self.reasons)}); expected at "
                f"most {self._max_corrupt:.1%} (data.max_corrupt). Write the dataset again, or "
                "raise the limit."
            ) from error


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Returns counts by reason as text, the largest first: "not_an_image 12, broken_text 1"."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered)
