"""Reads rows of CSV and TSV files, one at a time.

A large table is read in parts, each by one worker. A field in quotes can contain newlines, so the
places where a part can begin are only found by reading the table. This is done once, before the
workers start.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from typing import IO

from etils import epath

from data_pipelines.page import Reject

SUFFIXES = (".csv", ".tsv")

_MAX_LINE = 1 << 20  # bytes; the csv module limits a field to 131,072 characters


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
      path: of the file.
      start: first byte of the rows; 0: the names of the columns come first.
      stop: first byte of the next part; -1: the end of the file.
    """

    path: str
    start: int = 0
    stop: int = -1


def parts(path: str, size: int) -> list[Part]:
    """Returns the parts of a table in order, of about `size` bytes each.

    A table that cannot be read is one part.
    """
    starts = [0]
    try:
        with epath.Path(path).open("rb") as file:
            reader = _Reader(file, 0)
            for _ in reader:
                if reader.position - starts[-1] >= size:
                    starts.append(reader.position)
            if starts[-1] == reader.position > 0:
                starts.pop()
    except OSError:
        starts = [0]
    return [Part(path, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]


def rows(part: Part) -> Iterator[dict[str, str] | Reject]:
    """Reads rows of a table with the names of its columns in the first row.

    Tabs separate the columns if the first row contains one, else commas.

    Args:
      part: the rows to read.

    Yields:
      In order: a row by column, or a Reject for broken_text (not UTF-8) or broken_row (more or
      fewer fields than columns, or a field without end). A file that cannot be opened yields
      unreadable_file, a file that fails later yields truncated_file.
    """
    columns: list[str] = []
    try:
        with epath.Path(part.path).open("rb") as file:
            columns = [name.strip() for name in next(iter(_Reader(file, 0)), None) or []]
            reader = _Reader(file, part.start)
            for number, row in enumerate(reader):
                where = f"{part.path}, near byte {reader.position}"
                if row is None:
                    detail = f"{where}: a field of more than {csv.field_size_limit()} characters"
                    yield Reject("broken_row", detail, broken=True)
                elif row and (number or part.start):
                    yield _row(columns, row, where)
                if 0 <= part.stop <= reader.position:
                    return
    except OSError as error:
        reason = "truncated_file" if columns else "unreadable_file"
        yield Reject(reason, f"{part.path}: {error}", broken=True)


def column(row: dict[str, str], asked: str, known: Sequence[str], *, flag: str) -> str | Reject:
    """Returns the value of one column of a row, or a Reject for missing_column.

    Args:
      row: by column.
      asked: name of the column; "": the first of `known` that the row has.
      known: usual names of the column.
      flag: the option that names the column, for the Reject.
    """
    for name in (asked,) if asked else known:
        if name in row:
            return row[name]
    detail = f"the columns are {', '.join(row)}: name the right one by {flag}"
    return Reject("missing_column", detail, broken=True)


class _Reader:
    """Yields rows from a place in a file to its end; None for a row with a field without end.

    Attributes:
      position: first byte of the next row.
    """

    def __init__(self, file: IO[bytes], start: int):
        file.seek(0)
        delimiter = "\t" if b"\t" in file.readline(_MAX_LINE) else ","
        file.seek(start)
        self.position = start
        self._file = file
        self._rows = csv.reader(self._lines(), delimiter=delimiter)

    def __iter__(self) -> Iterator[list[str] | None]:
        while True:
            try:
                yield next(self._rows)
            except StopIteration:
                return
            except csv.Error:
                yield None

    def _lines(self) -> Iterator[str]:
        """Yields lines of bounded length.

        Bytes that are not UTF-8 become lone surrogates, which mark the row.
        """
        while line := self._file.readline(_MAX_LINE):
            text = line.decode("utf-8" if self.position else "utf-8-sig", "surrogateescape")
            self.position += len(line)
            yield text


def _row(columns: list[str], row: list[str], where: str) -> dict[str, str] | Reject:
    if len(row) != len(columns):
        detail = f"{where}: {len(row)} fields, expected {len(columns)}"
        return Reject("broken_row", detail, broken=True)
    if not all(field.isascii() or _is_utf8(field) for field in row):
        return Reject("broken_text", f"{where}: not UTF-8", broken=True)
    return dict(zip(columns, row, strict=True))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
