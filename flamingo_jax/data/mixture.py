"""The mixture.

Batch t of dataset m is a pure function of (seed, m, t), on any number of processes (section 2.4).

    position i = t * B + row   --shuffle (seed, m)-->  record   --draw (seed, m, i)-->  row i of the dataset's rows
                                                                      process p keeps rows [p*b,
                                                                      (p+1)*b) of each batch

So the whole state of a dataset is one integer, t. Every record comes once per epoch, in another
order each time.
"""

import collections
import functools
import logging
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import grain
import numpy as np

from flamingo_jax.data import pack
from flamingo_jax.data.config import DataConfig, DatasetConfig, ImageFit
from flamingo_jax.data.rows import RECORD_KINDS, Example, Rng, RowMaker, TrainingRow, collate
from flamingo_jax.data.schema import Batch, CorruptRecord, Record, check
from flamingo_jax.data.sources import Examples, Source
from flamingo_jax.tokenizers.base import Tokenizer

__all__ = ["BrokenDataset", "DataConfig", "DatasetConfig", "Mixture", "describe"]

_MOST_REJECTED_IN_A_ROW = 1000  # so many corrupt records one after the other are a broken dataset
_ALWAYS_ALLOWED = 30  # corrupt records, before their share can stop a run
_NUM_LOGGED = 20  # corrupt records of a dataset that are logged one by one
# corrupt records of a dataset that are counted once; further ones at each visit
_NUM_REMEMBERED = 100_000

T = TypeVar("T")


class BrokenDataset(ValueError):
    """Too many records of a dataset are corrupt."""


_log = logging.getLogger(__name__)


class Mixture:
    """The datasets of a run.

    Args:
        config: the datasets.
        seed: decides order and randomness, together with the dataset's name and the position.
        tokenizer: for all texts.
        process_index: which of the readers this is; readers that feed the same data shards have the
            same index.
        process_count: readers that share a batch.
        num_shards: data shards in all, over which the rows and the pool of images are split.
        cache_bytes: memory in which small datasets are kept decoded, over all datasets.

    Raises:
        ValueError: a batch cannot be split evenly, or a dataset's records do not suit its kind;
            later, from any batch: too many records are corrupt, or a row does not fit the batch.
        FileNotFoundError: a dataset is not there.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        seed: int,
        tokenizer: Tokenizer,
        process_index: int = 0,
        process_count: int = 1,
        num_shards: int = 1,
        cache_bytes: int = 512 << 20,
    ):
        if num_shards % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"Process {process_index} of {process_count} cannot read for {num_shards} data "
                "shards: the number of shards must be a multiple of the number of processes, and "
                "the index less than that."
            )
        share = cache_bytes // max(len(config.datasets), 1)
        self._num_threads = config.num_threads or _num_cores()
        self._prefetch = config.prefetch
        self._datasets = {
            name: _Dataset(
                name,
                dataset,
                seed=seed,
                tokenizer=tokenizer,
                image_size=config.image_size,
                image_fit=config.image_fit,
                process_index=process_index,
                process_count=process_count,
                num_shards=num_shards,
                cache_bytes=share,
                max_corrupt=config.max_corrupt,
            )
            for name, dataset in config.datasets.items()
        }

    @property
    def rejected(self) -> dict[str, dict[str, int]]:
        """How many records of each dataset this process has found corrupt so far, by reason.

        Datasets without are left out.
        """
        return {
            name: dict(dataset.rejected)
            for name, dataset in self._datasets.items()
            if dataset.rejected
        }

    @property
    def sizes(self) -> dict[str, int]:
        """How many records each dataset has."""
        return {name: len(dataset.examples) for name, dataset in self._datasets.items()}

    def batch(self, name: str, t: int) -> Batch:
        """Returns this process's rows of batch `t` of dataset `name`, in numpy arrays."""
        return self._datasets[name].batch(t)

    def record(self, name: str, position: int) -> Record:
        """Returns the stored record that is seen at a position.

        Args:
            name: the dataset.
            position: row t * batch_size + r of pages, pairs and captions, for row r of batch t; of
                text, one of the documents set aside for that row, the first of which is number row
                * documents_per_row.
        """
        return self._datasets[name].record(position)

    def iterate(self, positions: Mapping[str, int]) -> Iterator[dict[str, Batch]]:
        """Yields a batch of each dataset that has a position, starting there, without end.

        Threads read ahead.

        Args:
            positions: number of the next batch by dataset; those of a checkpoint, to resume.
        """
        start = dict(positions)

        def read(step: int) -> dict[str, Batch]:
            return {name: self.batch(name, t + step) for name, t in start.items()}

        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=self._prefetch
        )
        yield from grain.MapDataset.range(sys.maxsize).map(read).to_iter_dataset(options)


class _Dataset:
    """One dataset of a mixture; the arguments are those of Mixture."""

    def __init__(
        self,
        name: str,
        config: DatasetConfig,
        *,
        seed: int,
        tokenizer: Tokenizer,
        image_size: int,
        image_fit: ImageFit,
        process_index: int,
        process_count: int,
        num_shards: int,
        cache_bytes: int,
        max_corrupt: float,
    ):
        if config.batch_size % num_shards:
            raise ValueError(
                f"Dataset {name!r}: batch_size {config.batch_size} cannot be split evenly over "
                f"{num_shards} data shards."
            )
        source = Source(config.path, config.split)
        if source.kind not in RECORD_KINDS[config.kind]:
            raise ValueError(
                f"Dataset {name!r} is of kind {config.kind!r}, which takes "
                f"{' or '.join(RECORD_KINDS[config.kind])}, but {config.path} holds {source.kind}. "
                "Change the kind or the path."
            )
        self._name, self._config, self._tokenizer, self._image_size = (
            name,
            config,
            tokenizer,
            image_size,
        )
        self._rows = config.batch_size // process_count
        self._first_row = process_index * self._rows
        self._num_shards = num_shards // process_count
        self._maker = RowMaker(config, tokenizer, image_size, image_fit)
        self.examples: Examples[Example] = Examples(source, self._maker.prepare, cache_bytes)
        # not hash(), which differs from process to process
        stream = zlib.crc32(f"{seed}/{name}".encode())
        self._key = (seed, stream)
        self._order = grain.MapDataset.range(len(source)).seed(stream).shuffle().repeat()
        self._source = source
        self._max_corrupt = max_corrupt
        self._num_visits = self._num_corrupt_visits = 0
        self._known_corrupt: set[int] = set()
        self.rejected: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def batch(self, t: int) -> Batch:
        first = t * self._config.batch_size + self._first_row
        positions = range(first, first + self._rows)
        where = f"batch {t} of dataset {self._name!r}"
        batch = collate(
            self._text_rows(positions)
            if self._config.kind == "text"
            else [self._row(i) for i in positions],
            self._config,
            image_size=self._image_size,
            num_shards=self._num_shards,
            tokenizer=self._tokenizer,
            stream=self._key,
            first=first,
            where=where,
        )
        check(batch, num_shards=self._num_shards, where=where)
        return batch

    def record(self, position: int) -> Record:
        draw = self._maker.window if self._config.kind == "text" else self._maker.draw
        return self._source[self._draw(position, draw)[0]]

    def _row(self, position: int) -> TrainingRow:
        return self._draw(position, self._maker.draw)[1]

    def _text_rows(self, positions: range) -> list[TrainingRow]:
        """Rows of packed text.

        Groups that these rows do not fill are packed whole, so that any reader gets the same.
        """
        size = self._config.rows_per_group
        groups = range(positions.start // size, -(-positions.stop // size))
        rows = [row for group in groups for row in self._packed(group)]
        return rows[positions.start - groups.start * size :][: len(positions)]

    def _packed(self, group: int) -> list[TrainingRow]:
        """Packs the documents from position group * share on into the group's rows.

        Those of its share that do not fit are left out.
        """
        share = self._config.documents_per_row * self._config.rows_per_group
        documents = (
            self._draw(i, self._maker.window)[1] for i in range(group * share, (group + 1) * share)
        )
        packed = pack.pack(documents, self._config.length, self._config.rows_per_group)
        return [TrainingRow(tokens, segment, np.zeros_like(tokens)) for tokens, segment in packed]

    def _draw(self, position: int, draw: Callable[[Example, Rng], T]) -> tuple[int, T]:
        """Draws from the record at `position`.

        A corrupt one is replaced by the next in the store that is not.

        Returns:
            The number of the record, and what was drawn.
        """
        first = self._order[position]
        for step in range(min(len(self.examples), _MOST_REJECTED_IN_A_ROW)):
            index = (first + step) % len(self.examples)
            try:
                drawn = draw(
                    self.examples[index], functools.cache(functools.partial(self._random, position))
                )
            except CorruptRecord as error:
                self._reject(index, error)
            else:
                with self._lock:
                    self._num_visits += 1
                return index, drawn
        raise BrokenDataset(
            f"Dataset {self._name!r}: {step + 1} records of {self._config.path} in a row, from "
            f"record {first} on, are corrupt. See the warnings above, and write the dataset again."
        )

    def _random(self, position: int) -> np.random.Generator:
        """A generator of its own for each (seed, dataset, position)."""
        counter = np.array([0, 0, position, 0], np.uint64)
        return np.random.Generator(
            np.random.Philox(key=np.array(self._key, np.uint64), counter=counter)
        )

    def _reject(self, index: int, error: CorruptRecord) -> None:
        with self._lock:
            self._num_visits += 1
            self._num_corrupt_visits += 1
            if new := index not in self._known_corrupt:
                self.rejected[error.reason] += 1
                if len(self._known_corrupt) < _NUM_REMEMBERED:
                    self._known_corrupt.add(index)
            number, visits = self._num_corrupt_visits, self._num_visits
            total = self.rejected.total()
        if new and total <= _NUM_LOGGED:
            last = (
                " Further ones are counted without a line of their own."
                if total == _NUM_LOGGED
                else ""
            )
            _log.warning(
                "Dataset %r: record %d is skipped (%s). %s%s",
                self._name,
                index,
                error.reason,
                error,
                last,
            )
        if number > max(_ALWAYS_ALLOWED, self._max_corrupt * visits):
            raise BrokenDataset(
                f"Dataset {self._name!r}: {number} of the {visits} records read from "
                f"{self._config.path} so far are corrupt ({describe(self.rejected)}); expected at "
                f"most {self._max_corrupt:.1%} (data.max_corrupt). Write the dataset again, or "
                "raise the limit."
            ) from error


def _num_cores() -> int:
    """Cores that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(reasons: Mapping[str, int]) -> str:
    """Returns counts by reason as text, the most frequent first.

    "not_an_image 12, broken_text 1".
    """
    return ", ".join(
        f"{reason} {number:,}"
        for reason, number in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )
