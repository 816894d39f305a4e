"""An index on disk of the images in several WARC files.

A page can show an image that the crawler stored in another file. The index is a table in SQLite
with 16 bytes of hash, the file, offset and length of each image, and one of redirects. It takes
about 50 bytes on disk per image, and no memory. Several processes can read it at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence

from etils import epath

from data_pipelines.web import warc, warc_records
from data_pipelines.web.urls import same_url

_BATCH = 10_000
_TABLES = """
    PRAGMA synchronous=OFF;
    CREATE TABLE file (number INTEGER PRIMARY KEY, path TEXT);
    CREATE TABLE image (
        url BLOB PRIMARY KEY, file INTEGER, offset INTEGER, length INTEGER,
        inside INTEGER, inside_length INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE alias (url BLOB PRIMARY KEY, target BLOB) WITHOUT ROWID;
"""


def build_index(files: Sequence[str], path: epath.Path) -> int:
    """Writes the index of all images of some WARC files.

    Of several images with the same URL, the first is stored.

    Args:
      files: the WARC files. Their order decides which image is first.
      path: the index, on a file system.

    Returns:
      The number of images. What cannot be read of a file is skipped here, and counted when the
      pages of the file are read.
    """
    with contextlib.closing(sqlite3.connect(os.fspath(path))) as database, database:
        database.executescript(_TABLES)
        database.executemany("INSERT INTO file VALUES (?, ?)", enumerate(files))
        for number, file in enumerate(files):
            images, aliases = _Rows(database, "image", 6), _Rows(database, "alias", 2)
            for entry in warc.index(file):
                if isinstance(entry, warc.Alias) and entry.target:
                    aliases.add(_hash(entry.url), _hash(entry.target))
                elif isinstance(entry, warc.Entry) and entry.is_image:
                    place = entry.place
                    inside = (place.inside, place.inside_length)
                    images.add(_hash(entry.url), number, place.offset, place.length, *inside)
            images.write()
            aliases.write()
        return int(database.execute("SELECT COUNT(*) FROM image").fetchone()[0])


class _Rows:
    """Rows of one table, written many at a time. Of equal keys, the first row stays."""

    def __init__(self, database: sqlite3.Connection, table: str, num_columns: int):
        values = ", ".join("?" * num_columns)
        self._insert = f"INSERT OR IGNORE INTO {table} VALUES ({values})"
        self._database = database
        self._rows: list[tuple[object, ...]] = []

    def add(self, *row: object) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self.write()

    def write(self) -> None:
        self._database.executemany(self._insert, self._rows)
        self._rows.clear()


class WarcIndex:
    """Reads an index that `build_index` wrote."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str) -> Iterator[WarcIndex]:
        """Opens the index at `path`, as a context."""
        with contextlib.closing(
            sqlite3.connect(f"{epath.Path(path).resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as database:
            yield cls(database)

    def find(self, url: str) -> warc_records.Place | None:
        """Returns the place of the image of a URL, or None if no file has it.

        Redirects and revisits lead to the URL that has it.
        """
        key = _hash(url)
        for _ in range(warc.MOST_HOPS + 1):
            row = self._database.execute(
                "SELECT file.path, offset, length, inside, inside_length FROM image "
                "JOIN file ON file.number = image.file WHERE url = ?",
                (key,),
            ).fetchone()
            if row:
                return warc_records.Place(*row)
            alias = self._database.execute(
                "SELECT target FROM alias WHERE url = ?", (key,)
            ).fetchone()
            if not alias:
                return None
            (key,) = alias
        return None


def _hash(url: str) -> bytes:
    return hashlib.blake2b(same_url(url).encode("utf-8", "surrogatepass"), digest_size=16).digest()
