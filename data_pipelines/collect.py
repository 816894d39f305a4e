"""Reads many input files on many workers with Apache Beam, and writes one dataset.

It counts everything that is left out.

    unit (usually a file)  --read-->  Found | Reject  --write-->  one ArrayRecord file per unit,
                                        |                         on the worker, streaming
                                        +-- keys --group--> keys of two records or more
                                                  --decide--> duplicates (see `duplicates.py`)
                                                  --remove--> the files without them
    all counts  -->  report.json

Images and texts stay on the worker that read them. Workers exchange about 30 bytes for each key of
a record, and one account for each unit. So the memory of a worker does not grow with the number of
records, and the time for N documents is N times the time for one. Only the records that share a key
with another record are decided in one place.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines.duplicates import Claims, Shared, left_out
from data_pipelines.on_beam import Execution, run
from data_pipelines.page import Reject
from data_pipelines.watchdog import noted
from flamingo_jax.core.paths import regular
from flamingo_jax.data.schema import Record
from flamingo_jax.data.shards import Shard, drop, shard_name, write_metadata, writing

REPORT = "report.json"
TRAIN, VALIDATION = "train", "validation"

_EXAMPLES = 3  # details that the report shows for each reason
_COLLECTED = "collected.json"  # the accounts, from the workers to the launcher

Unit = Any


@dataclasses.dataclass(frozen=True)
class Found:
    """A record that a reader has made.

    Attributes:
      record: of the kind of the dataset.
      keys: what makes it equal to another record: "url:https://...", "text:HASH". A record that
        shares a key with an earlier record that is kept is left out. It is counted as
        "duplicate_url", "duplicate_text", ...
      sketch: what decides whether it is nearly equal to a record with which it shares a key of
        near_duplicates.KEY.
      split: the split that it goes to; "" = by `Execution.validation_share`.
    """

    record: Record
    keys: tuple[str, ...] = ()
    sketch: bytes = b""
    split: str = ""


Read = Callable[[Unit], Iterator[Found | Reject]]


@dataclasses.dataclass
class Counts:
    """What became of the input.

    Attributes:
      read: records found in the input.
      written: records of the dataset, by split.
      rejected: records left out, by reason.
      images_rejected: images left out of records that were kept without them, by reason.
      passed_over: files that no reader takes, by suffix.
      broken: number of rejected records that were damaged.
      examples: details of the first few of each reason.
    """

    read: int = 0
    written: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    images_rejected: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    passed_over: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    broken: int = 0
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def reject(self, reject: Reject) -> None:
        if reject.unit == "image":
            self.images_rejected[reject.reason] += 1
        elif reject.unit == "file":
            self.passed_over[reject.reason] += 1
            return
        else:
            self.read += 1
            self.rejected[reject.reason] += 1
            self.broken += reject.broken
        known = self.examples.setdefault(reject.reason, [])
        if reject.detail and len(known) < _EXAMPLES:
            known.append(reject.detail[:300])

    def add(self, other: Counts) -> None:
        self.read += other.read
        self.broken += other.broken
        for mine, others in (
            (self.written, other.written),
            (self.rejected, other.rejected),
            (self.images_rejected, other.images_rejected),
            (self.passed_over, other.passed_over),
        ):
            mine.update(others)
        for reason, details in other.examples.items():
            known = self.examples.setdefault(reason, [])
            known.extend(details[: _EXAMPLES - len(known)])

    def report(self) -> dict[str, Any]:
        """Returns everything, for report.json; the most frequent reasons first."""
        return {
            "in": self.read,
            "out": dict(self.written),
            "rejected": dict(self.rejected.most_common()),
            "images_rejected": dict(self.images_rejected.most_common()),
            "passed_over": dict(self.passed_over.most_common()),
            "damaged": self.broken,
            "examples": self.examples,
        }

    def table(self) -> dict[str, int]:
        """Returns the numbers only, one for each line to print."""
        total = self.passed_over.total()
        return {
            "in": self.read,
            **{f"out: {split}": count for split, count in self.written.items()},
            **{f"left out: {reason}": count for reason, count in self.rejected.most_common()},
            **{
                f"images left out: {reason}": count
                for reason, count in self.images_rejected.most_common()
            },
            **({self.passed_over_line(): total} if total else {}),
        }

    def passed_over_line(self) -> str:
        """Returns "passed over: 3 .csv, 1 .DS_Store", with the most frequent suffixes, or ""."""
        named = [f"{count} {suffix}" for suffix, count in self.passed_over.most_common(5)]
        if len(self.passed_over) > len(named):
            named.append("...")
        return f"passed over: {', '.join(named)}" if named else ""


@dataclasses.dataclass
class _Written:
    """The account of one unit."""

    shards: dict[str, Shard]
    counts: Counts


def collect(
    units: Sequence[Unit],
    read: Read,
    kind: str,
    output: epath.Path,
    how: Execution,
    *,
    passed_over: Mapping[str, int] | None = None,
    has_validation: bool = False,
) -> Counts:
    """Makes a dataset of everything that `read` finds in the units.

    Args:
      units: the parts of the input: paths, or any values that can be pickled. They are read in any
        order, or at the same time.
      read: yields records and rejects of one unit; a function that can be pickled. An exception in
        it is a bug, and ends the run.
      kind: of the records, a key of schema.RECORDS.
      output: an existing directory, for the dataset and report.json.
      how: runner, workers and limits.
      passed_over: number of files that were found and are no units, by suffix.
      has_validation: True if `read` names the split "validation" for some records.

    Returns:
      The counts.

    Raises:
      ValueError: too many records are damaged, or no record is left. Then no dataset is written.
      WorkerDied: a worker process died or was stuck; the error names what it was reading.
    """
    splits = (TRAIN, VALIDATION) if how.validation_share or has_validation else (TRAIN,)
    write = functools.partial(
        _write,
        splits=splits,
        read=read,
        kind=kind,
        directory=os.fspath(output),
        num_units=len(units),
        share=how.validation_share,
        stuck_seconds=how.stuck_seconds,
    )
    finish = functools.partial(
        _finish, kind=kind, directory=os.fspath(output), num_units=len(units)
    )
    file = output / _COLLECTED
    save = functools.partial(_save, file=os.fspath(file))

    def graph(pipeline: Any) -> None:
        import apache_beam as beam

        outputs = (
            pipeline
            | "units" >> beam.Create(list(enumerate(units)))
            | "spread" >> beam.Reshuffle()
            | "read and write"
            >> beam.FlatMap(write).with_outputs("keys", "sketches", main="written")
        )
        shared = outputs["keys"] | "same key" >> beam.GroupByKey() | beam.FlatMap(_shared)
        duplicates = (
            {"shared": shared, "sketches": outputs["sketches"]}
            | "claims of a unit" >> beam.CoGroupByKey()
            | "claims" >> beam.Map(_claims)
            | "all claims" >> beam.GroupByKey()
            | "decide" >> beam.FlatMap(lambda claims: left_out(claims[1]))
        )
        _ = (
            {"written": outputs["written"], "duplicates": duplicates}
            | "by unit" >> beam.CoGroupByKey()
            | "drop duplicates" >> beam.Map(finish)
            | "all accounts" >> beam.combiners.ToList()
            | "save" >> beam.Map(save)
        )

    run(
        graph,
        how,
        num_units=len(units),
        count_done=lambda: sum(1 for _ in output.glob(f"*-{TRAIN}.*-of-*")),
    )
    accounts = [_unpack(account) for account in json.loads(regular(file).read_text())]
    file.unlink()
    total = Counts(passed_over=collections.Counter(passed_over))
    for account in accounts:
        total.add(account.counts)
    (output / REPORT).write_text(json.dumps(total.report(), indent=2, allow_nan=False) + "\n")
    if total.broken > how.max_broken * max(total.read, 1):
        raise ValueError(
            f"{total.broken} of {total.read} records are damaged, more than the share of "
            f"{how.max_broken} that --max_broken allows: {_first(total)}. Nothing was written. "
            "Mend the input, or raise --max_broken."
        )
    if not total.written.total():
        if not total.read:
            raise ValueError("The input has no records. Nothing was written. Give another --input.")
        raise ValueError(
            f"None of the {total.read} records is left: {_first(total)}. Nothing was written."
        )
    kept = {
        split: [account.shards[split] for account in accounts]
        for split in splits
        if total.written[split]
    }
    write_metadata(output, kind, kept)
    return total


def _first(counts: Counts) -> str:
    """Describes the three most frequent reasons, with a detail of each."""
    reasons = "; ".join(
        f"{reason} {count}"
        + (f" (such as {counts.examples[reason][0]})" if counts.examples.get(reason) else "")
        for reason, count in counts.rejected.most_common(3)
    )
    passed_over = counts.passed_over_line()
    return reasons + ("; " if reasons and passed_over else "") + passed_over


def _write(
    numbered: tuple[int, Unit],
    *,
    splits: Sequence[str],
    read: Read,
    kind: str,
    directory: str,
    num_units: int,
    share: float,
    stuck_seconds: float,
) -> Iterator[Any]:
    """Writes the records of one unit.

    Yields their keys, tagged, as (key, (unit, split, position, rank)), then their sketches, tagged,
    as (unit, {(split, position): sketch}), and the account of the unit.
    """
    from apache_beam.pvalue import TaggedOutput

    index, unit = numbered
    counts, sketches = Counts(), {}
    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                writing(epath.Path(directory) / shard_name(split, index, num_units), kind)
            )
            for split in splits
        }
        note = stack.enter_context(noted(unit, stuck_seconds))
        for item in read(unit):
            note.count()
            if isinstance(item, Reject):
                counts.reject(item)
                continue
            counts.read += 1
            first_key = item.keys[0] if item.keys else f"{index}/{counts.read}"
            split = item.split or _split(first_key, share)
            position = writers[split].shard.num_records
            writers[split].write(item.record)
            counts.written[split] += 1
            for rank, key in enumerate(item.keys):
                name, _, value = key.partition(":")
                short = f"{name}:{_digest(value, 12).hex()}"
                yield TaggedOutput("keys", (short, (index, split, position, rank)))
            if item.sketch:
                sketches[split, position] = item.sketch
    if sketches:
        yield TaggedOutput("sketches", (index, sketches))
    yield index, _Written({split: writer.shard for split, writer in writers.items()}, counts)


def _split(key: str, share: float) -> str:
    number = int.from_bytes(_digest(key, 8), "big")
    return VALIDATION if number < share * 2**64 else TRAIN


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _shared(
    group: tuple[str, Iterable[tuple[int, str, int, int]]],
) -> Iterator[tuple[int, Shared]]:
    """Yields (unit, key of a record) for a key that two or more records have."""
    key, holders = group[0], list(group[1])
    if len(holders) > 1:
        value = int.from_bytes(_digest(key, 8), "big")
        for index, split, position, rank in holders:
            yield index, (split, position, rank, key.partition(":")[0], value)


def _claims(joined: tuple[int, Any]) -> tuple[int, tuple[int, Claims]]:
    """Returns (0, (unit, its claims)): one key, so that all units meet in one place."""
    index, groups = joined
    sketches: dict[tuple[str, int], bytes] = next(iter(groups["sketches"]), {})
    shared = list(groups["shared"])
    records = {key[:2] for key in shared}
    return 0, (index, Claims(shared, {at: sketches[at] for at in records & sketches.keys()}))


def _finish(
    joined: tuple[int, Any], *, kind: str, directory: str, num_units: int
) -> dict[str, Any]:
    """Removes the duplicates of one unit from its files. Returns its account as JSON values."""
    index, groups = joined
    (written,) = groups["written"]
    names = {(split, position): name for split, position, name in groups["duplicates"]}
    for split in written.shards:
        positions = {position for of, position in names if of == split}
        if positions:
            path = epath.Path(directory) / shard_name(split, index, num_units)
            written.shards[split] = drop(path, positions, kind)
            written.counts.written[split] -= len(positions)
    written.counts.rejected.update(f"duplicate_{name}" for name in names.values())
    shards = {split: dataclasses.asdict(shard) for split, shard in written.shards.items()}
    return {"index": index, "shards": shards, "counts": vars(written.counts)}


def _unpack(account: dict[str, Any]) -> _Written:
    counts = Counts(**account["counts"])
    for name in ("written", "rejected", "images_rejected", "passed_over"):
        setattr(counts, name, collections.Counter(getattr(counts, name)))
    return _Written({split: Shard(**shard) for split, shard in account["shards"].items()}, counts)


def _save(accounts: list[dict[str, Any]], *, file: str) -> None:
    epath.Path(file).write_text(
        json.dumps(sorted(accounts, key=lambda account: account["index"]), allow_nan=False)
    )
