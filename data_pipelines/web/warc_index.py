"""An index on disk of the images in several WARC files.

A page can show an image that the crawler stored in another file. The index is one table in SQLite
with 16 bytes of hash, the file, offset and length of each image. It takes about 50 bytes on disk
per image, and no memory. Several processes can read it at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence

from etils import epath

from data_pipelines.page import Reject
from data_pipelines.web import warc
from data_pipelines.web.urls import same_url

_BATCH = 10_000


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
        database.execute("PRAGMA synchronous=OFF")
        database.execute("CREATE TABLE file (number INTEGER PRIMARY KEY, path TEXT)")
        database.execute(
            "CREATE TABLE image (url BLOB PRIMARY KEY, file INTEGER, offset INTEGER, length "
            "INTEGER) WITHOUT ROWID"
        )
        database.executemany("INSERT INTO file VALUES (?, ?)", enumerate(files))
        for number, file in enumerate(files):
            rows: list[tuple[bytes, int, int, int]] = []
            for entry in warc.index(file):
                if not isinstance(entry, Reject) and entry.is_image:
                    rows.append((_hash(entry.url), number, entry.place.offset, entry.place.length))
                if len(rows) == _BATCH:
                    database.executemany("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?)", rows)
                    rows.clear()
            database.executemany("INSERT OR IGNORE INTO image VALUES (?, ?, ?, ?)", rows)
        return int(database.execute("SELECT COUNT(*) FROM image").fetchone()[0])


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

    def find(self, url: str) -> warc.Place | None:
        """Returns the place of the image of a URL, or None if no file has it."""
        row = self._database.execute(
            "SELECT file.path, offset, length FROM image JOIN file ON file.number = image.file "
            "WHERE url = ?",
            (_hash(url),),
        ).fetchone()
        return warc.Place(*row) if row else None


def _hash(url: str) -> bytes:
    return hashlib.blake2b(same_url(url).encode("utf-8", "surrogatepass"), digest_size=16).digest()
