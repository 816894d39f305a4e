"""Reads rows of parquet files; bad cells cost a cell, and bad row groups a row group.

Pyarrow does not check that a text is UTF-8 when it reads it, and raises when it decodes it. Here
such a text becomes a BrokenText.

The memory is bounded by the pages of a file, which their headers state (the format's PageHeader, in
Thrift's compact protocol): a few kilobytes can unpack to gigabytes, and one value in a dictionary
can be in every row. So the number of rows that are decoded at once follows from the largest page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular

PART = 128 << 20  # uncompressed bytes of the row groups of one part
_MOST_ROWS = 256  # in memory at once
_MEMORY = 128 << 20  # bytes of these rows, as a rule
_MAX_PAGE = 256 << 20  # bytes; a row group with a larger page or row is left out
_UNKNOWN_PAGES = 16  # rows in memory at once if the pages cannot be looked through
_HEADER = 1 << 13  # bytes; a header of a page is shorter
_LONGEST_SHIFT = 63 - 7  # bits of an integer of Thrift before its last byte
_MOST_PAGES = 10_000  # of a column of a row group
_MAX_METADATA = 64 << 20  # bytes
_MAGIC = b"PAR1"
_BUFFER = 4 << 20  # bytes of each column that are read at once


class BrokenText(bytes):
    """A text that is not UTF-8."""


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """Row groups start..stop-1 of a parquet file; stop = -1: to the end of the file."""

    path: str
    start: int = 0
    stop: int = -1


def parts(path: str) -> list[RowGroups]:
    """Returns consecutive row groups of about PART bytes.

    A file that cannot be opened is one part, so that a worker counts it.
    """
    import pyarrow.parquet

    try:
        with regular(path).open("rb") as file:
            metadata = pyarrow.parquet.read_metadata(file)
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            sizes = [group.total_byte_size for group in groups]
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
        return [RowGroups(path)]
    starts, size = [0], 0
    for number, bytes_of_group in enumerate(sizes):
        if size and size + bytes_of_group > PART:
            starts.append(number)
            size = 0
        size += bytes_of_group
    stops = [*starts[1:], len(sizes)]
    return [RowGroups(path, start, stop) for start, stop in zip(starts, stops, strict=True)]


def rows(
    part: RowGroups, needed: Sequence[str], others: Sequence[str] = (), *, missing: str
) -> Iterator[dict[str, Any] | Reject]:
    """Yields rows by column. A text that is not UTF-8 is a BrokenText, at any depth.

    Args:
      part: the row groups to read.
      needed: columns that the file must have.
      others: further columns to read, if there are such.
      missing: reason of the Reject if a needed column is not there.

    Yields:
      Rows, and a Reject for unreadable_file, `missing`, or for each row group that cannot be read
      to its end: truncated_file, or row_group_too_large.
    """
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(regular(part.path).open("rb"))
            metadata = _metadata(raw)
            file = pyarrow.parquet.ParquetFile(raw, metadata=metadata, buffer_size=_BUFFER)
            names = set(file.schema_arrow.names)
        except (OSError, ValueError) as error:
            yield Reject("unreadable_file", f"{part.path}: {error}", broken=True)
            return
        if lacking := [name for name in needed if name not in names]:
            detail = f"{part.path}: columns {', '.join(sorted(names))}, not {', '.join(lacking)}"
            yield Reject(missing, detail, broken=True)
            return
        wanted = sorted(names & {*needed, *others})
        stop = file.num_row_groups if part.stop < 0 else part.stop
        for number in range(part.start, stop):
            where, read = f"{part.path}, row group {number}", 0
            try:
                group = file.metadata.row_group(number)
                at_once = _rows_at_once(group, wanted, raw)
                if not at_once:
                    detail = f"{where}: {group.num_rows} rows with a page of more than {_MAX_PAGE}"
                    yield Reject("row_group_too_large", f"{detail} bytes", broken=True)
                    continue
                for batch in file.iter_batches(at_once, row_groups=[number], columns=wanted):
                    yield from _batch_rows(batch)
                    read += batch.num_rows
            except (OSError, ValueError, NotImplementedError) as error:
                detail = f"{where}, after {read} rows: {error}"
                yield Reject("truncated_file", detail, broken=True)


def _metadata(raw: IO[bytes]) -> Any:
    """Returns the metadata at the end of a file, without the types of Arrow.

    With these types, pyarrow would make dictionaries and views of texts, and checks these texts for
    UTF-8 while it reads: one bad text would cost the row group.
    """
    import pyarrow.parquet

    end = raw.seek(0, 2)
    raw.seek(max(end - 8, 0))
    length = int.from_bytes(raw.read(4), "little")
    if length > min(end, _MAX_METADATA):
        raise ValueError(f"it states {length} bytes of metadata at its end: it is no parquet file")
    raw.seek(max(end - 8 - length, 0))
    footer = raw.read(length + 8).replace(b"ARROW:schema", b"ARROW:passed")
    raw.seek(0)
    return pyarrow.parquet.read_metadata(io.BytesIO(_MAGIC + footer))


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError:
            cells = column.cast(_with_bytes(column.type)).to_pylist()
            columns[name] = [_decoded(cell, column.type) for cell in cells]
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _with_bytes(kind: Any) -> Any:
    """Returns a type of Arrow with bytes in the place of texts."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind):
        return pa.binary()
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _with_bytes(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_with_bytes(kind.key_type), _with_bytes(kind.item_type))
    return pa.list_(_with_bytes(kind.value_type)) if types.is_list(kind) else kind


def _decoded(cell: Any, kind: Any) -> Any:
    """Returns a cell with texts in the place of bytes where its type has texts."""
    from pyarrow import types

    if cell is None:
        return None
    if types.is_string(kind):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            return BrokenText(cell)
    if types.is_struct(kind):
        return {field.name: _decoded(cell[field.name], field.type) for field in kind}
    if types.is_map(kind):
        return [
            (_decoded(key, kind.key_type), _decoded(value, kind.item_type)) for key, value in cell
        ]
    if isinstance(cell, list):
        return [_decoded(each, kind.value_type) for each in cell]
    return cell


def _rows_at_once(group: Any, wanted: Sequence[str], raw: IO[bytes]) -> int:
    """Returns the rows of a row group to decode at once; 0: not even one.

    A row takes at most the largest page for each of its values, also if the page is a dictionary.
    """
    chunks = [group.column(number) for number in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted]
    rows = max(group.num_rows, 1)
    at_once = _MOST_ROWS
    for chunk in chunks:
        page = _largest_page(chunk, raw)
        if page is None:
            at_once = min(at_once, _UNKNOWN_PAGES)
            continue
        values = max(chunk.num_values / rows, 1)
        if page > _MAX_PAGE or chunk.total_uncompressed_size / rows > _MAX_PAGE:
            return 0
        if page * values > 2 * _MAX_PAGE:
            return 0
        at_once = min(at_once, max(int(_MEMORY / max(page * values, 1)), 1))
    return at_once


def _largest_page(chunk: Any, raw: IO[bytes]) -> int | None:
    """Returns the uncompressed bytes of the largest page of a column; None if it is not known."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end, largest = at + chunk.total_compressed_size, 0
    for _ in range(_MOST_PAGES):
        if at >= end:
            return largest
        raw.seek(at)
        try:
            fields, length = _struct(raw.read(_HEADER), 0)
        except (IndexError, RecursionError):
            return None
        size, packed = fields.get(2, -1), fields.get(3, -1)
        if size < 0 or packed < 0:
            return None
        largest = max(largest, size)
        at += length + packed
    return None


def _struct(data: bytes, at: int) -> tuple[dict[int, int], int]:
    """Parses a struct of Thrift's compact protocol: (its integers by field, where it ends).

    Raises:
      IndexError: it does not end in the data.
    """
    fields, field = dict[int, int](), 0
    while kind := data[at]:
        at += 1
        field += kind >> 4
        if not kind >> 4:
            field, at = _integer(data, at)
        value, at = _value(data, at, kind & 15)
        fields[field] = value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """Parses a value: (the integer, or 0 for other kinds, where it ends)."""
    if kind in (1, 2):  # True and False have no bytes
        return 0, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 7:
        return 0, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return 0, at + length
    if kind in (9, 10):
        count, each, at = data[at] >> 4, data[at] & 15, at + 1
        if count == 15:
            count, at = _varint(data, at)
        if count > len(data) - at:  # each takes a byte or more: a damaged count would take hours
            raise IndexError(f"a list of {count} values")
        for _ in range(count):
            at = at + 1 if each in (1, 2) else _value(data, at, each)[1]
        return 0, at
    if kind == 12:
        return 0, _struct(data, at)[1]
    raise IndexError(f"a field of kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 128:
        if shift > _LONGEST_SHIFT:
            raise IndexError("an integer of more than 64 bits")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
