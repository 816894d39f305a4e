"""Reads a file in a folder by a name from the data. The name must not lead out of the folder."""

from __future__ import annotations

import os
import posixpath

from etils import epath

from data_pipelines.page import Reject

MAX_IMAGE_BYTES = 1 << 26


def inside(folder: epath.Path, name: str) -> epath.Path | Reject:
    """Returns the path of a file in a folder. The file need not exist.

    Args:
      folder: folder that the name is relative to.
      name: a relative path, or the absolute path of something in the folder.

    Returns:
      The path; or a Reject for path_traversal if the name leads elsewhere or is no name.
    """
    relative = posixpath.normpath(name.removeprefix(os.fspath(folder).rstrip("/") + "/"))
    if not name or "\0" in name or relative in (".", "..") or relative.startswith(("/", "../")):
        return Reject("path_traversal", f"{name!r:.200} is no file in {folder}", broken=True)
    return folder / relative


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
    path = inside(folder, name)
    if isinstance(path, Reject):
        return path
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: not a valid name for the file system
        return Reject(missing, f"{name!r:.200}: {error}", broken=True)
    if len(content) > max_bytes:
        detail = f"{name!r:.200} has more than {max_bytes} bytes"
        return Reject("file_too_large", detail, broken=True)
    return content
