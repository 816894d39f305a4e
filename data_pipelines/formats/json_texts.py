"""Finds texts by name in a JSON object of names and texts, without reading it into memory.

    {"LA_IMG_000000131074": "/9j/4AAQSkZJRg...", ...}

MIMIC-IT publishes its images in such files, of up to tens of gigabytes, in base64. Only the places
of the texts are kept: some 150 bytes for each.
"""

from __future__ import annotations

import json
import mmap
import re
from typing import Any

from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular

_NO_TEXT = re.compile(rb"\s{0,40}:\s{0,40}(null|true|false|-?[0-9][0-9.eE+-]{0,40})\s{0,40}[,}]")


class JsonTexts:
    """The texts of a file on this machine.

    Attributes:
        problem: why the file, or its end, cannot be read; None if all of it was read.
    """

    def __init__(self, path: str) -> None:
        """Finds all names; `path` is a local file."""
        self.path = path
        self.problem: Reject | None = None
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with regular(path).open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            self.problem = Reject("unreadable_file", f"{path}: {error}", broken=True)
            return
        self._find()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> str:
        """Returns a text.

        Raises:
            KeyError: there is no such name.
            ValueError: it is no text of JSON.
        """
        start, stop = self._places[name]
        found = self._data[start:stop]
        text = json.loads(found)
        if not isinstance(text, str):
            raise ValueError(f"it is {found.decode()}")
        return text

    def _find(self) -> None:
        data, at = self._data, 0
        while (quote := data.find(b'"', at)) >= 0:
            end = data.find(b'"', quote + 1)
            name = data[quote + 1 : end].decode("utf-8", "replace") if end >= 0 else ""
            if end >= 0 and (other := _NO_TEXT.match(data, end + 1)):
                self._places[name], at = other.span(1), other.end(1)
                continue
            start = data.find(b'"', end + 1) if end >= 0 else -1
            stop = data.find(b'"', start + 1) if start >= 0 else -1
            # Names and base64 have no quotes and no escapes of quotes.
            if stop < 0 or data[end + 1 : min(start, end + 40)].strip() != b":":
                detail = f"{self.path}: after {len(self)} texts, at byte {quote}"
                self.problem = Reject("truncated_file", detail, broken=True)
                return
            self._places[name] = (start, stop + 1)
            at = stop + 1
        if not data[at : at + 100].strip().startswith(b"}"):
            detail = f"{self.path}: it ends after {len(self)} texts, without a }}"
            self.problem = Reject("truncated_file", detail, broken=True)


def object_of(path: str) -> dict[str, Any] | Reject:
    """Returns the whole object of a JSON file, or why it cannot be read."""
    try:
        value = json.loads(regular(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return Reject("unreadable_file", f"{path}: {error}", broken=True)
    if not isinstance(value, dict):
        return Reject("not_an_object", f"{path} is {type(value).__name__}", broken=True)
    return value
