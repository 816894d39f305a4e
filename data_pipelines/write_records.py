"""Writes records of any kind of `flamingo_jax/data/schema.py` as a TFDS dataset of ArrayRecord files, without TensorFlow.

    {"train": make_records, "test": ...} -> DIRECTORY/{dataset_info.json, features.json, NAME-train.array_record-00000-of-00001, ...}

Records stream through: memory does not grow with their number, and TFDS cuts large splits into several files. A dataset appears under its name
when it is whole: it is written beside it and renamed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from flamingo_jax.data.schema import RECORDS, Record, features, to_example

Splits = Mapping[str, Callable[[], Iterable[Record]]]


class RecordBuilder(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder for records of one kind, in the order in which they are generated."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, name: str, kind: str, splits: Splits, data_dir: str) -> None:
        """Args: as of `write_records`; the dataset is written to data_dir/name/1.0.0."""
        self.name = name
        self.counts: dict[str, int] = {}
        self._kind = kind
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=features(self._kind), disable_shuffling=True)

    def _split_generators(self, download_manager: Any) -> dict[str, Any]:
        del download_manager  # nothing is fetched
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        self.counts[split] = 0
        for index, record in enumerate(self._splits[split]()):
            if not isinstance(record, RECORDS[self._kind]):
                raise TypeError(
                    f"dataset {self.name!r}, split {split!r}, record {index}: got a {type(record).__name__}, expected "
                    f"{RECORDS[self._kind].__name__}, as all records of a dataset have one kind."
                )
            self.counts[split] += 1
            yield index, to_example(record)
        if not self.counts[split]:
            raise ValueError(f"dataset {self.name!r}: split {split!r} has no records; leave it out.")


def write_records(directory: str | os.PathLike[str], kind: str, splits: Splits) -> dict[str, int]:
    """Writes a dataset.

    Args:
      directory: where it goes; must not be there yet. Its last component is the name of the dataset.
      kind: a key of `schema.RECORDS`.
      splits: for each split a function that yields its records.

    Returns:
      {split: number of records}.

    Raises:
      ValueError: there is something at `directory`, a split is empty, or the kind is unknown.
      TypeError: a record is of another kind.
    """
    target = epath.Path(directory)
    with staged(target.parent / f"{target.name}.dataset") as staging:
        if target.exists():
            raise ValueError(f"write_records: {target} is there already. Remove it, or give another directory.")
        builder = RecordBuilder(name=target.name, kind=kind, splits=splits, data_dir=os.fspath(staging))
        with _quiet():
            builder.download_and_prepare()
        (staging / target.name / str(builder.version)).rename(target)
    return builder.counts


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
    """A scratch directory beside `target`, gone at the end: what is renamed out of it is whole.

    Its name is always the same, so that what killed runs leave does not pile up.
    """
    if "://" in os.fspath(target):
        raise ValueError(
            f"{target} is on an object store, where no directory can be renamed: write locally, then copy it there."
        )
    staging = target.parent / f".{target.name}.incomplete"
    staging.rmtree(missing_ok=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        staging.rmtree(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and messages of TFDS: it is the pipeline that reports."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
