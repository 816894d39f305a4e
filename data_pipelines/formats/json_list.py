"""Reads the objects of a JSON list one after the other, in bounded memory.

    [{"id": 1, ...}, {"id": 2, ...}, ...]

A file of a gigabyte is such a list, as LLaVA publishes it. It is read from the start to the end by
one worker; JSON lines are read by many.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from data_pipelines.formats.jsonl import MAX_LINE
from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular

SUFFIXES = (".json",)

_PIECE = 1 << 20  # bytes
_SPACE = " \t\r\n"


def rows(path: str) -> Iterator[dict[str, Any] | Reject]:
    """Yields the objects of a list.

    A value that is no object yields a Reject for not_an_object. A file that is no list, cannot be
    read or decoded, or ends before its list does, yields one for not_a_list, unreadable_file,
    broken_text or truncated_file after all complete objects.
    """
    try:
        yield from _rows(path)
    except UnicodeDecodeError as error:
        yield Reject("broken_text", f"{path}: {error}", broken=True)
    except OSError as error:
        yield Reject("unreadable_file", f"{path}: {error}", broken=True)


def _rows(path: str) -> Iterator[dict[str, Any] | Reject]:
    with regular(path).open("rb") as file:
        pieces = codecs.iterdecode(iter(lambda: file.read(_PIECE), b""), "utf-8-sig")
        text = next((piece for each in pieces if (piece := each.lstrip(_SPACE))), "")
        if not text.startswith("["):
            yield Reject("not_a_list", f"{path} begins with {text[:40]!r}", broken=True)
            return
        yield from _values(path, text, pieces)


def _values(path: str, text: str, pieces: Iterator[str]) -> Iterator[dict[str, Any] | Reject]:
    """Yields the values of a list that begins at the start of `text`."""
    decode, at, wanted, is_whole = json.JSONDecoder().raw_decode, 1, 0, False
    while True:
        while at < len(text) and text[at] in f"{_SPACE},":
            at += 1
        if text[at : at + 1] == "]":
            return
        try:
            if len(text) - at < wanted and not is_whole:
                raise ValueError
            value, end = decode(text, at)
            if end == len(text) and not is_whole:  # a number may go on in the next piece
                raise ValueError
        except (ValueError, RecursionError):
            # A value of many pieces is tried again when twice as much of it is there.
            wanted = 2 * (len(text) - at) if len(text) - at > _PIECE else 0
            piece = next(pieces, "")
            if is_whole or len(text) - at > MAX_LINE:
                detail = f"{path}: no object at {text[at : at + 80]!r}"
                yield Reject("truncated_file", detail, broken=True)
                return
            text, at, is_whole = text[at:] + piece, 0, not piece
            continue
        at, wanted = end, 0
        if isinstance(value, dict):
            yield value
        else:
            yield Reject("not_an_object", f"{path}: {value!r:.80}", broken=True)
