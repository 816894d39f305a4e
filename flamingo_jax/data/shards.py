"""Writes datasets that `sources.Source` reads: ArrayRecord files with the metadata of TFDS.

    DIRECTORY/records-train.array_record-00000-of-00008   by `writing`, each in any process
              ...
    DIRECTORY/features.json, dataset_info.json            by `write_metadata`, once, at the end

A directory without dataset_info.json is no dataset. TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from array_record.python import array_record_module

from flamingo_jax.core.paths import (
    Path,
    PathError,
    PathLike,
    is_local,
    regular,
    temporary_directory,
    written_locally,
)
from flamingo_jax.data.schema import RECORDS, Document, Record, features, to_example

NAME = "records"  # the first part of every file name: the directory may be renamed
VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class Shard:
    """The size of one file: its records, and their bytes before compression."""

    num_records: int = 0
    num_bytes: int = 0


def shard_name(split: str, index: int, num_shards: int) -> str:
    """Returns the name that TFDS gives to one file of a split."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


class ShardWriter:
    """Writes the records of one file in order; made by `writing`.

    Attributes:
        shard: the size of what has been written so far.
    """

    def __init__(self, path: PathLike, kind: str):
        self._kind = kind
        self._features = features(kind)
        # One record per group, as TFDS does it, so that reading a record decompresses only this
        # record. Images are compressed already.
        options = "group_size:1" if kind == Document.kind else "group_size:1,uncompressed"
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), options)
        self.shard = Shard()

    def write(self, record: Record) -> None:
        """Writes one record.

        Raises:
            TypeError: the record has another kind.
        """
        if not isinstance(record, RECORDS[self._kind]):
            raise TypeError(
                f"Record {self.shard.num_records} of this file: got a {type(record).__name__}, "
                f"expected {RECORDS[self._kind].__name__}, as all records of a dataset have one "
                "kind."
            )
        self.write_example(
            self._features.serialize_example(self._features.encode_example(to_example(record)))
        )

    def write_example(self, example: bytes) -> None:
        """Writes one serialized example, for example a copy from another file.

        Raises:
            PathError: it cannot be written, for example because the disk is full.
        """
        try:
            self._writer.write(example)
        except RuntimeError as error:
            raise self._not_written(error) from error
        self.shard = Shard(self.shard.num_records + 1, self.shard.num_bytes + len(example))

    def close(self) -> None:
        """Closes the file. Raises PathError if what was written does not fit on the disk."""
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: RuntimeError) -> PathError:
        return PathError(f"Cannot write records: {error}. Give a writable place with room.")


@contextlib.contextmanager
def writing(path: PathLike, kind: str) -> Iterator[ShardWriter]:
    """Writes a file of records. The file appears when the context ends without an error.

    An existing file is replaced.

    Args:
        path: of the file. For an object store (gs://) it is written locally and copied.
        kind: of its records, a key of schema.RECORDS.
    """
    with (
        written_locally(path) as temporary,
        contextlib.closing(ShardWriter(temporary, kind)) as writer,
    ):
        yield writer


def drop(path: PathLike, positions: AbstractSet[int], kind: str) -> Shard:
    """Writes a file again without the records at `positions`, and returns its new size."""
    source = Path(path)
    with contextlib.ExitStack() as stack:
        if not is_local(source):
            local = stack.enter_context(temporary_directory("shard-")) / source.name
            source = source.copy(local)
        reader = stack.enter_context(
            contextlib.closing(array_record_module.ArrayRecordReader(os.fspath(regular(source))))
        )
        writer = stack.enter_context(writing(path, kind))
        for position in range(reader.num_records()):
            if position not in positions:
                (example,) = reader.read([position])
                writer.write_example(example)
    return writer.shard


def write_metadata(directory: PathLike, kind: str, splits: Mapping[str, Sequence[Shard]]) -> None:
    """Makes the files in `directory` a dataset, by writing its metadata.

    Args:
        directory: contains the files. File i of a split has the name
            `shard_name(split, i, number of files)`.
        kind: of their records.
        splits: the sizes of the files of each split.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info, naming
    from tensorflow_datasets.core.splits import SplitDict, SplitInfo

    place = os.fspath(directory)
    identity = dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version(VERSION), data_dir=place, module_name="data_pipelines"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features(kind), disable_shuffling=True)
    infos = [
        SplitInfo(
            name=split,
            shard_lengths=[shard.num_records for shard in shards],
            num_bytes=sum(shard.num_bytes for shard in shards),
            filename_template=naming.ShardedFileTemplate(
                dataset_name=NAME, split=split, data_dir=Path(place), filetype_suffix="array_record"
            ),
        )
        for split, shards in splits.items()
    ]
    info.set_splits(SplitDict(infos))
    info.set_file_format("array_record")
    info.write_to_directory(place)
