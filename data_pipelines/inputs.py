"""The files that --input names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from etils import epath

from flamingo_jax.data.files import files_below


def input_files(pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Returns the files that --input names, sorted.

    Args:
      pattern: a file, a directory (all files below it that end in one of `suffixes`), or a pattern
        with * ? [ ]; several of them are separated by commas.
      suffixes: endings of file names, such as (".warc.gz", ".warc").

    Raises:
      ValueError: there is no such file.
    """
    found: set[str] = set()
    for one in filter(None, pattern.split(",")):
        place = epath.Path(one)
        if any(letter in place.name for letter in "*?["):
            matches = list(place.parent.glob(place.name))
        elif place.is_dir():
            matches = [file for file in files_below(place) if file.name.endswith(tuple(suffixes))]
        else:
            matches = [place] if place.exists() else []
        if not matches:
            raise ValueError(
                f"--input={one}: there is no such file, and no file ending in "
                f"{' or '.join(suffixes)} below it. Check the path."
            )
        found |= {os.fspath(match) for match in matches}
    if not found:
        raise ValueError(
            "--input is missing: give a file, a directory, or a pattern of files ending in "
            f"{suffixes[0]}."
        )
    return sorted(found)


def identity(patterns: str | Sequence[str]) -> str:
    """Returns a hash of the names and sizes of all files that an option names.

    It changes when there are other files at the same paths.
    """
    stated = hashlib.sha256()
    for one in filter(None, patterns.split(",") if isinstance(patterns, str) else patterns):
        place = epath.Path(one)
        files = files_below(place) if place.is_dir() else sorted(place.parent.glob(place.name))
        for file in files:
            stated.update(f"{file.name} {file.stat().length}\n".encode())
    return stated.hexdigest()
