"""A file in a folder, by a name that comes from the data.

Such a name may not lead out of the folder.
"""

from __future__ import annotations

import os
import posixpath

from etils import epath

from data_pipelines.page import Reject

MAX_IMAGE_BYTES = 1 << 26


def inside(folder: epath.Path, name: str) -> epath.Path | Reject:
    """Returns the path of a file in a folder, which need not be there.

    Args:
      folder: that the name starts from.
      name: a relative path, or an absolute one of something in the folder.

    Returns:
      The path; or "path_traversal", if the name leads elsewhere or is no name.
    """
    relative = posixpath.normpath(name.removeprefix(os.fspath(folder).rstrip("/") + "/"))
    if not name or "\0" in name or relative in (".", "..") or relative.startswith(("/", "../")):
        return Reject("path_traversal", f"{name!r:.200} is no file in {folder}", broken=True)
    return folder / relative


def read_inside(folder: epath.Path, name: str, *, max_bytes: int, missing: str) -> bytes | Reject:
    """Reads a file in a folder.

    Args:
      folder: that the name starts from.
      name: as of `inside`.
      max_bytes: a larger file is not read.
      missing: what it is counted under if it is not there.

    Returns:
      Its content; or "path_traversal", "file_too_large", or the reason `missing`.
    """
    path = inside(folder, name)
    if isinstance(path, Reject):
        return path
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that the file system cannot have
        return Reject(missing, f"{name!r:.200}: {error}", broken=True)
    if len(content) > max_bytes:
        return Reject(
            "file_too_large", f"{name!r:.200} has more than {max_bytes} bytes", broken=True
        )
    return content
