"""Single requests to an object store (gs://, s3://), past the listings that libraries keep.

A library that has listed a directory may answer from this list later. Where two runs meet, the
answer must be the store's own.
"""

from __future__ import annotations

import fsspec


def create(url: str, content: bytes) -> None:
    """Writes an object on the condition that there is none; the store decides between writers.

    Raises:
        FileExistsError: there is one.
        OSError: the store cannot be reached, or refuses.
    """
    system, name = fsspec.core.url_to_fs(url)
    system.pipe_file(name, content, mode="create")


def read(url: str) -> bytes:
    """Returns the content that an object has now.

    Raises:
        FileNotFoundError: there is none.
        OSError: the store cannot be reached, or refuses.
    """
    system, name = fsspec.core.url_to_fs(url)
    return bytes(system.cat_file(name))
