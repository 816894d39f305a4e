"""Reads rows of CSV and TSV files, one at a time.

    first row       the names of the columns; tells the separator: tab, else comma or semicolon
    .csv            fields can be in quotes (RFC 4180) and contain separators and newlines
    tab-separated   a quote is a letter like any other, unless all names of columns are in quotes or
                    the caller asks for quotes

A quote that is never closed, as in `7.jpg,"Look`, would take all rows up to the next quote into one
field. Such a row is found by what follows it, is counted, and reading goes on at the next line.

A large table is read in parts, each by one worker. A field in quotes can contain newlines, so the
places where a part can begin are only found by reading the table. This is done once, before the
workers start.
"""

from __future__ import annotations

import codecs
import collections
import csv
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import IO

from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular

SUFFIXES = (".csv", ".tsv")

_MAX_LINE = 1 << 20  # bytes; the csv module limits a field to 131,072 characters
_MAX_ROW = 1 << 20  # bytes of a row of several lines
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
      path: of the file.
      start: first byte of the rows; 0: the names of the columns come first.
      stop: first byte of the next part; -1: the end of the file.
      quoted: fields of tab-separated tables can be in quotes too.
    """

    path: str
    start: int = 0
    stop: int = -1
    quoted: bool = False


class _NoTable(ValueError):
    """The file is not a table that can be read; the message says why and what to do."""


def parts(path: str, size: int, *, quoted: bool = False) -> list[Part]:
    """Returns the parts of a table in order, of about `size` bytes each.

    A table that cannot be read is one part.

    Args:
      path: of the file.
      size: of a part, in bytes.
      quoted: as in Part.
    """
    starts = [0]
    try:
        with regular(path).open("rb") as file:
            reader = _Reader(file, 0, quoted)
            for _ in reader:
                if reader.position - starts[-1] >= size:
                    starts.append(reader.position)
            if starts[-1] == reader.position > 0:
                starts.pop()
    except (OSError, _NoTable):
        starts = [0]
    stops = [*starts[1:], -1]
    return [Part(path, start, stop, quoted) for start, stop in zip(starts, stops, strict=True)]


def rows(part: Part) -> Iterator[dict[str, str] | Reject]:
    """Reads rows of a table.

    Args:
      part: the rows to read.

    Yields:
      In order: a row by column, or a Reject for broken_text (not UTF-8, or with zero bytes),
      broken_row (more or fewer fields than columns) or unclosed_quote. A file that cannot be opened
      yields unreadable_file, and so does a table in UTF-16, with rows that end in a carriage return
      alone, or with two columns of one name. A file that fails later yields truncated_file.
    """
    reader = None
    try:
        with regular(part.path).open("rb") as file:
            reader = _Reader(file, part.start, part.quoted)
            for row in reader:
                if isinstance(row, str):
                    reason, _, what = row.partition(": ")
                    yield Reject(reason, f"{reader.where(part.path)}: {what}", broken=True)
                elif row:
                    yield _row(reader.columns, row, reader.where(part.path))
                if 0 <= part.stop <= reader.position:
                    return
    except _NoTable as error:
        yield Reject("unreadable_file", f"{part.path}: {error}", broken=True)
    except OSError as error:
        reason = "truncated_file" if reader else "unreadable_file"
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
    detail = (
        f"the first row names the columns {', '.join(row)}. If these are values, put a row of "
        f"names before it, such as {known[0]}; or name the right one by {flag}"
    )
    return Reject("missing_column", detail, broken=True)


class _Lines:
    """The lines of a file, for the csv module. Lines can be read once more.

    Bytes that are not UTF-8 become lone surrogates, which mark the row.

    Attributes:
      row: lines that were read since `begin`, as (text, bytes).
      is_at_end: a line was asked for, and there is none.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._waiting: collections.deque[tuple[str, int]] = collections.deque()
        self.begin()

    def begin(self) -> None:
        self.row: list[tuple[str, int]] = []
        self.is_at_end = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._waiting:
            line = self._waiting.popleft()
        else:
            read = self._file.readline(_MAX_LINE)
            line = read.decode("utf-8", "surrogateescape"), len(read)
        if not line[1]:
            self.is_at_end = True
            raise StopIteration
        if self.row and sum(size for _, size in self.row) > _MAX_ROW:
            self._waiting.appendleft(line)
            raise csv.Error(f"more than {_MAX_ROW} bytes")
        self.row.append(line)
        return line[0]

    def give_back(self) -> None:
        """Gives back all lines of the row but the first."""
        self._waiting.extendleft(reversed(self.row[1:]))
        del self.row[1:]


class _Reader:
    """Yields the rows from a place in a file to its end; "reason: what" for a row that is damaged.

    Attributes:
      columns: their names; "" for a column that is not to be read.
      position: first byte of the next row.

    Raises:
      _NoTable: the first row has no names.
    """

    def __init__(self, file: IO[bytes], start: int, quoted: bool):
        file.seek(0)
        header = file.readline(_MAX_LINE)
        self.position = len(codecs.BOM_UTF8) if header.startswith(codecs.BOM_UTF8) else 0
        self._delimiter, is_quoted = _dialect(header[self.position :])
        self._is_plain = not (self._delimiter != "\t" or is_quoted or quoted)
        self._file, self._lines = file, _Lines(file)
        self._csv = csv.reader(self._lines, delimiter=self._delimiter)
        self.columns: list[str] = []
        file.seek(self.position)
        self.columns = _names(next((row for row in self if row), []))
        if start:
            file.seek(start)
            self.position = start

    def where(self, path: str) -> str:
        return f"{path}, near byte {self.position}"

    def __iter__(self) -> Iterator[list[str] | str]:
        return self._plain_rows() if self._is_plain else self._quoted_rows()

    def _plain_rows(self) -> Iterator[list[str] | str]:
        while line := self._file.readline(_MAX_LINE):
            self.position += len(line)
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            yield text.split(self._delimiter) if text else []

    def _quoted_rows(self) -> Iterator[list[str] | str]:
        lines = self._lines
        while True:
            lines.begin()
            row: list[str] | str
            try:
                row = next(self._csv)
                if (len(lines.row) > 1 or lines.is_at_end) and not self._is_whole(row):
                    row = "unclosed_quote: a field begins with a quote that nothing closes"
            except StopIteration:
                return
            except csv.Error as error:
                row = f"broken_row: {error}"
                if len(lines.row) > 1:
                    row = "unclosed_quote: a field begins with a quote that nothing closes"
                elif "\r" in (text := lines.row[0][0].rstrip("\r\n")):
                    # In a field without quotes it is white space.
                    row = next(csv.reader([text.replace("\r", " ")], delimiter=self._delimiter))
            if isinstance(row, str):
                lines.give_back()
            self.position += sum(size for _, size in lines.row)
            yield row

    def _is_whole(self, row: list[str]) -> bool:
        """Returns False for a row of several lines that a quote took although they are rows."""
        lines = [text for text, _ in self._lines.row]
        if self._lines.is_at_end or (self.columns and len(row) != len(self.columns)):
            return False
        try:
            if len(list(csv.reader(lines, delimiter=self._delimiter, strict=True))) != 1:
                return False
        except csv.Error:  # something between the closing quote and the separator
            return False
        kinds = _kinds(lines[0], self._delimiter)
        looks_like_a_row = len(kinds) == len(self.columns) and any(kinds)
        return not looks_like_a_row or all(
            _kinds(line, self._delimiter) != kinds for line in lines[1:]
        )


def _dialect(header: bytes) -> tuple[str, bool]:
    """Returns the separator, and whether all names of columns are in quotes.

    Raises:
      _NoTable: the file has another encoding, or other ends of lines.
    """
    if header.startswith(_UTF16_MARKS) or b"\0" in header:
        raise _NoTable("it is in UTF-16 or UTF-32: save it as UTF-8, as with `iconv -t UTF-8`")
    if b"\r" in header.rstrip(b"\r\n"):
        raise _NoTable(
            "its rows end in a carriage return alone: write line feeds, as with `tr '\\r' '\\n'`"
        )
    text = header.decode("utf-8", "replace").rstrip("\r\n")
    if "\t" in text:
        return "\t", all(len(name) > 1 and name[0] == name[-1] == '"' for name in text.split("\t"))
    return max(",;|", key=text.count), False


def _names(row: list[str] | str) -> list[str]:
    if isinstance(row, str):
        raise _NoTable(f"its first row has no names of columns ({row})")
    names = [name.strip() for name in row]
    twice = [name for name, count in collections.Counter(names).items() if name and count > 1]
    if twice:
        raise _NoTable(f"{len(twice)} names of columns occur twice, as {twice[0]!r}: rename one")
    return names


def _kinds(line: str, delimiter: str) -> list[str]:
    """Returns what the fields of a line look like: the suffix of a path or URL, or ""."""
    kinds = []
    for field in line.rstrip("\r\n").split(delimiter):
        name = field.strip().strip('"')
        suffix = os.path.splitext(name)[1].lower()
        kinds.append(suffix if len(suffix) < 7 and " " not in name else "")
    return kinds


def _row(columns: list[str], row: list[str], where: str) -> dict[str, str] | Reject:
    if len(row) != len(columns):
        detail = f"{where}: {len(row)} fields, expected {len(columns)}"
        return Reject("broken_row", detail, broken=True)
    for field in row:
        if "\0" in field or not (field.isascii() or _is_utf8(field)):
            return Reject("broken_text", f"{where}: not UTF-8, or a zero byte", broken=True)
    found = dict(zip(columns, row, strict=True))
    found.pop("", None)  # columns without a name
    return found


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
