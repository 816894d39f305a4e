"""Writes records as a dataset, one after the other, in this process.

    {"train": make_records, "test": ...}  -->
    DIRECTORY/{dataset_info.json, features.json, records-train.array_record-00000-of-00001, ...}

The records have any kind of `flamingo_jax/data/schema.py`. They are streamed: the memory does not
grow with their number, and large splits become several files. The dataset is written to a temporary
directory and renamed when it is complete. `collect` does the same on many workers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

from etils import epath

from flamingo_jax.core.paths import only_writer
from flamingo_jax.data.schema import Record
from flamingo_jax.data.shards import Shard, shard_name, write_metadata, writing

SHARD_BYTES = 256 << 20

Splits = Mapping[str, Callable[[], Iterable[Record]]]


def write_records(directory: str | os.PathLike[str], kind: str, splits: Splits) -> dict[str, int]:
    """Writes a dataset.

    Args:
      directory: of the dataset; must not exist.
      kind: a key of `schema.RECORDS`.
      splits: for each split a function that yields its records.

    Returns:
      {split: number of records}.

    Raises:
      ValueError: `directory` exists, a split is empty, or the kind is unknown.
      TypeError: a record is of another kind.
    """
    target = epath.Path(directory)
    with staged(target.parent / f"{target.name}.dataset") as staging:
        if target.exists():
            raise ValueError(
                f"write_records: {target} is there already. Remove it, or give another directory."
            )
        whole = staging / "whole"
        whole.mkdir()
        shards = {split: _write_split(whole, kind, split, make()) for split, make in splits.items()}
        write_metadata(whole, kind, shards)
        whole.rename(target)
    return {split: sum(shard.num_records for shard in each) for split, each in shards.items()}


def _write_split(
    directory: epath.Path, kind: str, split: str, records: Iterable[Record]
) -> list[Shard]:
    remaining = iter(records)
    shards: list[Shard] = []
    for first in remaining:
        with writing(directory / f"{split}-{len(shards)}", kind) as writer:
            for record in itertools.chain([first], remaining):
                writer.write(record)
                if writer.shard.num_bytes > SHARD_BYTES:
                    break
        shards.append(writer.shard)
    if not shards:
        raise ValueError(f"write_records: split {split!r} has no records; leave it out.")
    for index in range(len(shards)):
        (directory / f"{split}-{index}").rename(directory / shard_name(split, index, len(shards)))
    return shards


@contextlib.contextmanager
def staged(target: epath.Path) -> Iterator[epath.Path]:
    """Makes a temporary directory next to `target`, and removes it at the end.

    A complete result is renamed out of it. Its name is always the same, so that the remains of
    killed runs do not accumulate.

    Raises:
      ValueError: the target is on an object store.
      PathError: another run makes the same target now.
    """
    if "://" in os.fspath(target):
        raise ValueError(
            f"{target} is on an object store, where no directory can be renamed: write locally, "
            "then copy it there."
        )
    staging = target.parent / f".{target.name}.incomplete"
    with only_writer(staging):
        for left in staging.iterdir():
            left.rmtree() if left.is_dir() else left.unlink()
        try:
            yield staging
        finally:
            staging.rmtree(missing_ok=True)
