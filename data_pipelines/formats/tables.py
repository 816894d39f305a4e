"""Rows of CSV and TSV files, one at a time.

A large table is read in parts, each by a worker of its own. Where a part may begin, only reading
the table tells, since a field in quotes can hold newlines: that is done once, before the work is
given out.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from typing import IO

from etils import epath

from data_pipelines.page import Reject

SUFFIXES = (".csv", ".tsv")

# bytes; a field ends at 131,072 characters already, by the csv module's own limit
_MAX_LINE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
      path: of the file.
      start: where the first of them begins, in bytes; 0: with the names of the columns.
      stop: where the next part begins; -1: the end of the file.
    """

    path: str
    start: int = 0
    stop: int = -1


def parts(path: str, size: int) -> list[Part]:
    """Returns the parts of a table in order, of about `size` bytes each.

    One part if it cannot be read.
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
    """Reads rows of a table whose first row names its columns.

    Tabs or commas separate them, whichever that row has.

    Args:
      part: which ones.

    Yields:
      In order: a row by column, or why it cannot be used: "broken_text" (not UTF-8), "broken_row"
      (more or fewer fields than columns, or one without end); "unreadable_file" for the whole,
      "truncated_file" where reading it fails later.
    """
    columns: list[str] = []
    try:
        with epath.Path(part.path).open("rb") as file:
            columns = [name.strip() for name in next(iter(_Reader(file, 0)), None) or []]
            reader = _Reader(file, part.start)
            for number, row in enumerate(reader):
                where = f"{part.path}, near byte {reader.position}"
                if row is None:
                    yield Reject(
                        "broken_row",
                        f"{where}: a field of more than {csv.field_size_limit()} characters",
                        broken=True,
                    )
                elif row and (number or part.start):
                    yield _row(columns, row, where)
                if 0 <= part.stop <= reader.position:
                    return
    except OSError as error:
        yield Reject(
            "truncated_file" if columns else "unreadable_file", f"{part.path}: {error}", broken=True
        )


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
    return Reject(
        "missing_column",
        f"the columns are {', '.join(row)}: name the right one by {flag}",
        broken=True,
    )


class _Reader:
    """Yields rows from a place in a file on, None for one without end.

    Attributes:
      position: where the next row begins, in bytes.
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
        """Lines of bounded length.

        Bytes that are not UTF-8 become lone surrogates, by which a row is known to hold them.
        """
        while line := self._file.readline(_MAX_LINE):
            text = line.decode("utf-8" if self.position else "utf-8-sig", "surrogateescape")
            self.position += len(line)
            yield text


def _row(columns: list[str], row: list[str], where: str) -> dict[str, str] | Reject:
    if len(row) != len(columns):
        return Reject(
            "broken_row", f"{where}: {len(row)} fields, expected {len(columns)}", broken=True
        )
    if not all(field.isascii() or _is_utf8(field) for field in row):
        return Reject("broken_text", f"{where}: not UTF-8", broken=True)
    return dict(zip(columns, row, strict=True))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
