"""Prompts of the page: rows of visuals and text, and the file that keeps them.

    PromptRow(("cat.jpg",), "Output: A cat.")        a shot
    PromptRow(("dog.jpg",), "Output:")               the question: the model writes what comes next
      -> [Image("cat.jpg"), "Output: A cat.", Image("dog.jpg"), "Output:"]

A saved prompt is a ZIP archive: prompt.json, and the images and videos unchanged.

    {"format": "flamingo_jax prompt 1",
     "rows": [{"visuals": ["1.jpg"], "text": "Output: A cat."}, ...], "candidates": [" A dog."]}
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any, TypeGuard

from flamingo_jax.core import paths
from flamingo_jax.inference.prompt import Part, PromptError, load_frames
from flamingo_jax.inference.visuals import VIDEO_SUFFIXES, from_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
MOST_ROWS = 33  # 32 shots, as in the paper's tables, and the question
MOST_MEGABYTES = 50  # of one file
_MOST_ARCHIVE = 500 << 20  # bytes of all files of a saved prompt
_FORMAT, _NAME = "flamingo_jax prompt 1", "prompt.json"


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """Images and videos, and the text that follows them.

    Attributes:
        visuals: paths of files; may be empty.
        text: may be "".
    """

    visuals: tuple[str, ...] = ()
    text: str = ""


@dataclasses.dataclass(frozen=True)
class SavedPrompt:
    """What the file of a prompt keeps.

    Attributes:
        rows: the prompt.
        candidates: answers to compare.
    """

    rows: tuple[PromptRow, ...]
    candidates: tuple[str, ...] = ()


def parts(rows: Sequence[PromptRow]) -> list[Part]:
    """Returns the prompt in reading order, as `Flamingo.generate` takes it."""
    found: list[Part] = []
    for row in rows:
        found += [from_file(path) for path in row.visuals]
        found += [row.text] if row.text.strip() else []
    return found


def check_file(path: str) -> None:
    """Reads an image or a video once, so that a wrong file is found when it is dropped.

    Raises:
        PromptError: it is too large, has another suffix, or is no image or video.
    """
    name, size = os.path.basename(path), os.path.getsize(path)
    if not name.lower().endswith(SUFFIXES):
        raise PromptError(
            f"{name!r} is neither an image nor a video: give a file that ends in "
            f"{', '.join(SUFFIXES)}."
        )
    if size > MOST_MEGABYTES << 20:
        raise PromptError(
            f"{name!r} has {size / (1 << 20):.0f} MB; expected at most {MOST_MEGABYTES} MB: give a "
            "smaller picture or a shorter video."
        )
    try:
        load_frames(from_file(path), 8)
    except PromptError as error:
        raise PromptError(str(error).replace(str(path), name)) from error


def save(saved: SavedPrompt, path: str) -> None:
    """Writes a prompt to a ZIP archive.

    Args:
        saved: the prompt; its files are read.
        path: of the archive.
    """
    files: dict[str, str] = {}  # name in the archive -> path
    rows: list[dict[str, Any]] = []
    for row in saved.rows:
        names = []
        for visual in row.visuals:
            names.append(f"{len(files) + 1}{os.path.splitext(visual)[1].lower()}")
            files[names[-1]] = visual
        rows.append({"visuals": names, "text": row.text})
    content = {"format": _FORMAT, "rows": rows, "candidates": list(saved.candidates)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_NAME, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
        for name, visual in files.items():
            archive.write(visual, name)


def load(path: str, directory: str) -> SavedPrompt:
    """Reads a prompt, and writes its files to a directory.

    Args:
        path: of the archive.
        directory: receives the images and videos.

    Raises:
        PromptError: it is no saved prompt, or one of its files is missing, damaged or too large.
    """
    name = os.path.basename(path)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {each.filename: each.file_size for each in archive.infolist()}
            if sum(sizes.values()) > _MOST_ARCHIVE:
                raise _no_prompt(name, f"it has more than {_MOST_ARCHIVE >> 20} MB")
            saved = _parse(archive.read(_NAME))
            rows = []
            for row in saved.rows:
                visuals = [_extract(archive, each, directory) for each in row.visuals]
                rows.append(dataclasses.replace(row, visuals=tuple(visuals)))
    except PromptError:
        raise
    except Exception as error:  # damaged and encrypted archives raise errors of many kinds
        raise _no_prompt(name, str(error)) from error
    return dataclasses.replace(saved, rows=tuple(rows))


def _parse(data: bytes) -> SavedPrompt:
    """Reads prompt.json.

    Raises:
        ValueError: it has another form.
    """
    content = paths.parse_json(data.decode())
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"its {_NAME} has not the format {_FORMAT!r}")
    rows, candidates = content.get("rows"), content.get("candidates", [])
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_ROWS:
        raise ValueError(f"expected 1 to {MOST_ROWS} rows")
    found = []
    for row in rows:
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        visuals, text = fields.get("visuals"), fields.get("text")
        if not _are_texts(visuals) or not isinstance(text, str):
            raise ValueError(f"expected rows with visuals and text, got {row!r:.60}")
        found.append(PromptRow(tuple(visuals), text))
    if not _are_texts(candidates):
        raise ValueError("expected candidates to be a list of texts")
    return SavedPrompt(tuple(found), tuple(candidates))


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _extract(archive: zipfile.ZipFile, name: str, directory: str) -> str:
    """Writes a member, which must be a plain name, and returns its path."""
    if name != os.path.basename(name) or not name.lower().endswith(SUFFIXES):
        raise ValueError(f"{name!r} is no name of an image or a video")
    target = paths.Path(directory) / name
    target.write_bytes(archive.read(name))
    check_file(str(target))
    return str(target)


def _no_prompt(name: str, reason: str) -> PromptError:
    return PromptError(
        f"{name!r} is no saved prompt ({reason.removesuffix('.')}): give a file that this page "
        "saved."
    )
