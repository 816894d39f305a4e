"""The mixture: an endless stream of batches from each dataset of a run (paper, 2.4).

Batch t of a dataset depends on (seed, name of the dataset, t) alone, not on the number of processes
or on what was read before.

    position i = t * B + row  --shuffle (seed, name)-->  record  --draw (seed, name, i)-->  row

Process p keeps rows [p * b, (p + 1) * b) of each batch, with b = B / number of processes. So the
whole state of a dataset is one integer, t. Each epoch has every record once, in another order.
"""

import dataclasses
import functools
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import grain
import numpy as np

from flamingo_jax.core.config import ConfigError
from flamingo_jax.data import pack
from flamingo_jax.data.config import DataConfig, DatasetConfig, check_chunks
from flamingo_jax.data.rejected import BrokenDataset, Rejected
from flamingo_jax.data.rows import RECORD_KINDS, Example, Rng, RowMaker, TrainingRow
from flamingo_jax.data.schema import Batch, CorruptRecord, Record, check, text_of
from flamingo_jax.data.sources import Examples, Source
from flamingo_jax.tokenizers.base import Tokenizer

_MOST_REJECTED_IN_A_ROW = 1000  # more corrupt records one after the other are a broken dataset
_MOST_WITHOUT_TEXT = 1000  # records; of a dataset with text, nearly always the first has some

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """What all datasets of a mixture share: the arguments of Mixture, checked.

    Attributes:
        max_tiles: the most tiles that an image is cut into; 0 = it is one square.
        cache_bytes: memory in which one dataset may be kept decoded.
    """

    config: DataConfig
    seed: int
    tokenizer: Tokenizer
    process_index: int
    process_count: int
    num_shards: int
    max_tiles: int
    cache_bytes: int

    def __post_init__(self) -> None:
        if self.num_shards % self.process_count or not 0 <= self.process_index < self.process_count:
            raise ConfigError(
                f"Process {self.process_index} of {self.process_count} cannot read for "
                f"{self.num_shards} data shards: the number of shards must be a multiple of the "
                "number of processes, and the index less than the number of processes."
            )

    @property
    def num_local_shards(self) -> int:
        """Data shards that this process reads for."""
        return self.num_shards // self.process_count


class Mixture:
    """The datasets of a run.

    Args:
        config: the datasets.
        seed: decides order and randomness, together with the dataset's name and the position.
        tokenizer: for all texts.
        process_index: which of the readers this is. Readers that feed the same data shards have the
            same index.
        process_count: readers that share a batch.
        num_shards: all data shards of the mesh, over which rows and pool of images are split.
        max_tiles: the most tiles that an image is cut into, for a model that sees tiles; 0 = it is
            one square.
        cache_bytes: memory in which small datasets are kept decoded, over all datasets.

    Raises:
        ConfigError: a batch cannot be split evenly, a dataset's records do not suit its kind, or it
            has no such split.
        BrokenDataset: from any batch, too many records are corrupt.
        ValueError: from any batch, a row does not fit the batch.
        FileNotFoundError: a dataset does not exist.
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
        max_tiles: int = 0,
        cache_bytes: int = 512 << 20,
    ):
        reader = _Reader(
            config,
            seed=seed,
            tokenizer=tokenizer,
            process_index=process_index,
            process_count=process_count,
            num_shards=num_shards,
            max_tiles=max_tiles,
            cache_bytes=cache_bytes // max(len(config.datasets), 1),
        )
        self._num_threads = config.num_threads or _num_cores()
        self._prefetch = config.prefetch
        self._datasets = {name: _Dataset(name, reader) for name in config.datasets}

    @property
    def rejected(self) -> dict[str, dict[str, int]]:
        """Number of corrupt records that this process has found so far, by dataset and reason.

        Datasets without corrupt records are left out.
        """
        return {
            name: dict(dataset.rejected.reasons)
            for name, dataset in self._datasets.items()
            if dataset.rejected.reasons
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Number of records of each dataset."""
        return {name: len(dataset.examples) for name, dataset in self._datasets.items()}

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Returns the fingerprint of each dataset's files; see `data.fingerprints`.

        Raises:
            PathError: a file cannot be read.
        """
        return {name: dataset.fingerprint() for name, dataset in self._datasets.items()}

    def batch(self, name: str, t: int) -> Batch[np.ndarray]:
        """Returns this process's rows of batch `t` of dataset `name`, in numpy arrays."""
        return self._datasets[name].batch(t)

    def record(self, name: str, position: int) -> Record:
        """Returns the stored record that is read at a position.

        Args:
            name: the dataset.
            position: for pages, pairs and captions t * batch_size + r, for row r of batch t. For
                text the number of a document: row i starts at document i * documents_per_row.
        """
        return self._datasets[name].record(position)

    def origin(self, name: str, t: int) -> str:
        """Returns which records batch `t` of a dataset is made of, in words.

        All rows of the batch count, also those of other processes. The numbers are those of the
        split. A corrupt record is named too, though the next one took its place.
        """
        return self._datasets[name].origin(t)

    def iterate(
        self,
        positions: Mapping[str, int],
        number: Callable[[str, int], int] = lambda name, use: use,
    ) -> Iterator[dict[str, Batch[np.ndarray]]]:
        """Yields a batch of each dataset that has a position, starting there, without end.

        Threads read ahead.

        Args:
            positions: how many batches of each dataset were used; from a checkpoint, to resume.
            number: number(dataset, batches used before) -> number of the next batch; another one
                where batches are left out.
        """
        start = dict(positions)

        def read(step: int) -> dict[str, Batch[np.ndarray]]:
            return {name: self.batch(name, number(name, use + step)) for name, use in start.items()}

        options = grain.ReadOptions(
            num_threads=self._num_threads, prefetch_buffer_size=self._prefetch
        )
        yield from grain.MapDataset.range(sys.maxsize).map(read).to_iter_dataset(options)


class _Dataset:
    """One dataset of a mixture: its order, its randomness, and its batches."""

    def __init__(self, name: str, reader: _Reader):
        config = reader.config.datasets[name]
        if config.batch_size % reader.num_shards:
            raise ConfigError(
                f"Dataset {name!r}: batch_size {config.batch_size} cannot be split evenly over "
                f"{reader.num_shards} data shards (config.mesh: replica x data). Give a multiple, "
                f"such as --config.data.datasets.{name}.batch_size="
                f"{-(-config.batch_size // reader.num_shards) * reader.num_shards}."
            )
        check_chunks(name, config, reader.num_shards)
        _check_pool(name, config, rows=config.batch_size // reader.num_shards)
        source = Source(config.path, config.split)
        if source.kind not in RECORD_KINDS[config.kind]:
            raise ConfigError(
                f"Dataset {name!r} is of kind {config.kind!r}, which takes "
                f"{' or '.join(RECORD_KINDS[config.kind])}, but {config.path} holds {source.kind}. "
                "Change the kind or the path."
            )
        if reader.max_tiles and source.kind.startswith("video"):
            raise ConfigError(
                f"Dataset {name!r}: {config.path} holds {source.kind}, and the model sees an image "
                "as tiles, and no videos. Leave the dataset out: "
                f"--config.data.datasets.{name}=None."
            )
        if config.loss_on == "answers" and config.kind == "pairs" and "answers" not in source.kind:
            raise ConfigError(
                f"Dataset {name!r} has loss_on = 'answers', and {config.path} holds {source.kind}, "
                "which does not say what is an answer: write it with --pipeline=benchmark, or take "
                "loss_on = 'text'."
            )
        self._name, self._config, self._source = name, config, source
        self._num_rows = config.batch_size // reader.process_count
        self._first_row = reader.process_index * self._num_rows
        self._num_shards = reader.num_local_shards
        self._maker = RowMaker(
            config,
            reader.tokenizer,
            reader.config.image_size,
            reader.config.image_fit,
            reader.config.background,
            reader.max_tiles,
        )
        self._check_targets(reader.tokenizer)
        self.examples: Examples[Example] = Examples(source, self._maker.prepare, reader.cache_bytes)
        self.rejected = Rejected(name, config.path, reader.config.max_corrupt)
        # not hash(), which differs from process to process
        stream = zlib.crc32(f"{reader.seed}/{name}".encode())
        self._key = (reader.seed, stream)
        self._order = grain.MapDataset.range(len(source)).seed(stream).shuffle().repeat()

    def _check_targets(self, tokenizer: Tokenizer) -> None:
        """Raises ConfigError if no row could predict a word."""
        config, where = self._config, f"Dataset {self._name!r}"
        least = self._maker.num_marker_tokens
        if config.length <= least:
            raise ConfigError(
                f"{where}: length is {config.length}, and the first {least} token(s) of a row are "
                f"no words, so nothing would be predicted; expected at least {least + 1}, as in "
                f"--config.data.datasets.{self._name}.length=32."
            )
        number = min(len(self._source), _MOST_WITHOUT_TEXT)
        if all(text == "" for text in self._texts(number)):
            raise ConfigError(
                f"{where}: the first {number} records of {config.path} ({config.split}) have no "
                "text, so nothing would be predicted. Give another path or split, or leave the "
                f"dataset out: --config.data.datasets.{self._name}=None."
            )

    def _texts(self, number: int) -> Iterator[str | None]:
        """Yields the text of the first records; None of one that is corrupt."""
        for index in range(number):
            try:
                yield text_of(self._source[index]).strip()
            except CorruptRecord:
                yield None  # it is counted when it is drawn

    def batch(self, t: int) -> Batch[np.ndarray]:
        first = t * self._config.batch_size + self._first_row
        positions = range(first, first + self._num_rows)
        if self._config.kind == "text":
            rows = self._text_rows(positions)
        else:
            rows = [self._draw(i, self._maker.draw)[1] for i in positions]
        where = f"batch {t} of dataset {self._name!r}"
        batch = self._maker.collate(
            rows, num_shards=self._num_shards, stream=self._key, first=first, where=where
        )
        check(batch, num_shards=self._num_shards, where=where)
        return batch

    def fingerprint(self) -> dict[str, Any]:
        return self._source.fingerprint()

    def record(self, position: int) -> Record:
        draw = self._maker.window if self._config.kind == "text" else self._maker.draw
        return self._source[self._draw(position, draw)[0]]

    def origin(self, t: int) -> str:
        size, config = self._config.batch_size, self._config
        positions = range(t * size, (t + 1) * size)
        if config.kind == "text":
            groups = self._groups(positions)
            share = config.documents_per_row * config.rows_per_group
            positions = range(groups.start * share, groups.stop * share)
        return self._source.places([self._order[i] for i in positions])

    def _text_rows(self, positions: range) -> list[TrainingRow]:
        """Returns rows of packed text.

        Groups that are only partly in `positions` are packed whole, so that every reader gets the
        same rows.
        """
        size, groups = self._config.rows_per_group, self._groups(positions)
        rows = [row for group in groups for row in self._packed(group)]
        return rows[positions.start - groups.start * size :][: len(positions)]

    def _groups(self, positions: range) -> range:
        """Returns the groups that have rows in `positions`."""
        size = self._config.rows_per_group
        return range(positions.start // size, -(-positions.stop // size))

    def _packed(self, group: int) -> list[TrainingRow]:
        """Packs documents group * share, group * share + 1, ... into the rows of a group.

        Documents that do not fit are left out.
        """
        share = self._config.documents_per_row * self._config.rows_per_group
        documents = (
            self._draw(i, self._maker.window)[1] for i in range(group * share, (group + 1) * share)
        )
        packed = pack.pack(documents, self._config.length, self._config.rows_per_group)
        return [TrainingRow(tokens, segment, np.zeros_like(tokens)) for tokens, segment in packed]

    def _draw(self, position: int, draw: Callable[[Example, Rng], T]) -> tuple[int, T]:
        """Returns the number of the record at `position`, and what `draw` makes of it.

        A corrupt record is replaced by the next one in the store that is not corrupt.
        """
        first = self._order[position]
        for step in range(min(len(self.examples), _MOST_REJECTED_IN_A_ROW)):
            index = (first + step) % len(self.examples)
            rng = functools.cache(functools.partial(self._generator, position))
            try:
                drawn = draw(self.examples[index], rng)
            except CorruptRecord as error:
                self.rejected.count_corrupt(index, error)
            else:
                self.rejected.count_good()
                return index, drawn
        raise BrokenDataset(
            f"Dataset {self._name!r}: {step + 1} records of {self._config.path} in a row, from "
            f"record {first} on, are corrupt. See the warnings above, and write the dataset again."
        )

    def _generator(self, position: int) -> np.random.Generator:
        """Returns the generator of (seed, dataset, position)."""
        key = np.array(self._key, np.uint64)
        counter = np.array([0, 0, position, 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _check_pool(name: str, config: DatasetConfig, rows: int) -> None:
    """Raises ConfigError if a pool cannot hold the images of a data shard.

    Args:
        name: of the dataset.
        config: of the dataset.
        rows: of a data shard; those of pairs and captions have an image each.
    """
    if config.pool is None or config.kind not in ("pairs", "captions"):
        return
    if config.pool < rows or (config.kind == "captions" and config.pool > rows):
        raise ConfigError(
            f"Dataset {name!r}: pool is {config.pool}, and a data shard has {rows} {config.kind} "
            f"with one image each; expected {rows}: leave it out, as in "
            f"--config.data.datasets.{name}.pool=None."
        )


def _num_cores() -> int:
    """Returns the cores that this process may use; on macOS, those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
