"""Finds and reads files in a folder by names and URLs from the data.

    read_inside    a name in a table, as written on Windows or macOS too
    local_image    the URL of an image, in a folder of images that were fetched before
    page_image     a reference in an HTML file, in the folder of the page

No name leads out of the folder. A name stands for one file: none is searched by its last component
alone, since pages of many sites show an image with the name logo.png.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Literal

from etils import epath

from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular
from flamingo_jax.data.files import IMAGE_SUFFIXES, has_suffix, is_local

MAX_IMAGE_BYTES = 1 << 26

_HASHED = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif")  # behind the hash of a URL
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


def inside(folder: epath.Path, name: str) -> epath.Path | Reject:
    """Returns the path of a file in a folder. The file need not exist.

    If it does not exist, it is looked for under the names that other systems give it: with the
    other Unicode form, / for a backslash, decoded %20, or the case of the suffix changed.

    Args:
      folder: folder that the name is relative to.
      name: a relative path, or the absolute path of something in the folder.

    Returns:
      The path; or a Reject for path_traversal if the name leads elsewhere or is no name.
    """
    path = _inside(folder, name)
    if path is None:
        return Reject("path_traversal", f"{name!r:.200} is no file in {folder}", broken=True)
    if not is_local(folder):
        return path
    others = (_inside(folder, each) for each in _spellings(name))
    return _first_file(filter(None, itertools.chain((path,), others))) or path


def read_inside(folder: epath.Path, name: str, *, max_bytes: int, missing: str) -> bytes | Reject:
    """Reads a file in a folder.

    Args:
      folder: folder that the name is relative to.
      name: as in `inside`.
      max_bytes: a larger file is not read.
      missing: reason of the Reject if the file does not exist.

    Returns:
      Its content; or a Reject for path_traversal, file_too_large, or the reason `missing`.
    """
    path: epath.Path | Reject | None = _inside(folder, name)
    content = _read(path, max_bytes) if path else None
    if content is None:
        path = inside(folder, name)
        if isinstance(path, Reject):
            return path
        content = _read(path, max_bytes)
    if not isinstance(content, bytes):
        return Reject(missing, f"{name!r:.200}: there is no such file in {folder}", broken=True)
    if len(content) > max_bytes:
        detail = f"{name!r:.200} has more than {max_bytes} bytes"
        return Reject("file_too_large", detail, broken=True)
    return content


def local_image(folder: epath.Path, url: str, max_bytes: int) -> bytes | None:
    """Reads the image of a URL from a folder of images that were fetched before.

    It looks for DIR/<sha256 of the URL, in hex>, with and without a suffix, DIR/<host>/<path of the
    URL> and DIR/<path of the URL>; the path with its query, or without if it ends as the name of an
    image does.

    Args:
      folder: DIR.
      url: absolute.
      max_bytes: largest file. Of a longer one max_bytes + 1 bytes are returned, so that the caller
        can detect it.

    Returns:
      The file, or None if there is none.
    """
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    names = [f"{digest}{suffix}" for suffix in _HASHED]
    host, paths = _path_names(url)
    names += [f"{host}/{path}" for path in paths] if host else []
    return _read_first((folder / name for name in (*names, *paths)), max_bytes)


def page_image(root: epath.Path, base: epath.Path, url: str, max_bytes: int) -> bytes | None:
    """Reads an image that an HTML file shows.

    Args:
      root: directory of the input that the page is in. Nothing outside of it is read.
      base: directory that the URLs of pages are relative to: `root`, or one above it.
      url: file:///PATH.
      max_bytes: as in `local_image`.

    Returns:
      The file, or None if there is none. A PATH that is not below `root` was written as /PATH in
      the page, and is relative to `root`.
    """
    if not url.startswith("file:///"):
        return None
    _, names = _path_names(url)
    paths = [path for name in names if (path := base / name).is_relative_to(root)]
    return _read_first((*paths, *(root / name for name in names)), max_bytes)


def forms(name: str) -> Iterator[str]:
    """Yields a name, then its forms in Unicode that look the same.

    macOS writes "é" as two characters (NFD), other systems and most data sets as one (NFC).
    """
    yield from dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in _FORMS)))


def _path_names(url: str) -> tuple[str, list[str]]:
    """Returns the host of a URL, and the names that the file of its path can have."""
    try:
        split = urllib.parse.urlsplit(url)
        host = (split.hostname or "").strip(".")
    except ValueError:
        return "", []
    queries = [f"?{split.query}"] if split.query else [""]
    if split.query and has_suffix(split.path, IMAGE_SUFFIXES):
        queries.append("")
    names = []
    for query in queries:
        for raw in (False, True):
            path = split.path + query
            path = path if raw else urllib.parse.unquote(path, errors="surrogateescape")
            parts = [part for part in path.split("/") if part]
            if parts and all(map(_is_file_name, parts)):
                names.append("/".join(parts))
    return host, list(dict.fromkeys(names))


def _is_file_name(part: str) -> bool:
    return part not in (".", "..") and "\\" not in part and "\0" not in part


def _read_first(paths: Iterable[epath.Path], max_bytes: int) -> bytes | None:
    path = _first_file(form for each in paths for form in _path_forms(each))
    return _read(path, max_bytes) if path else None


def _path_forms(path: epath.Path) -> Iterable[epath.Path]:
    name = os.fspath(path)
    return (path,) if name.isascii() else map(epath.Path, forms(name))


def _read(path: epath.Path, max_bytes: int) -> bytes | None:
    try:
        with regular(path).open("rb") as opened:
            return opened.read(max_bytes + 1)
    except (OSError, ValueError):  # ValueError: not a valid name for the file system
        return None


def _first_file(paths: Iterable[epath.Path]) -> epath.Path | None:
    for path in paths:
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # for example a name that is too long
            continue
    return None


def _spellings(name: str) -> Iterator[str]:
    """Yields a name, then how other systems write it."""

    def spelled() -> Iterator[str]:
        for text in (name, name.replace("\\", "/"), urllib.parse.unquote(name)):
            stem, suffix = posixpath.splitext(text)
            for each in (text, stem + suffix.lower(), stem + suffix.upper()):
                yield from forms(each)

    yield from dict.fromkeys(spelled())


def _inside(folder: epath.Path, name: str) -> epath.Path | None:
    relative = posixpath.normpath(name.removeprefix(os.fspath(folder).rstrip("/") + "/"))
    if not name or "\0" in name or relative in (".", "..") or relative.startswith(("/", "../")):
        return None
    return folder / relative
