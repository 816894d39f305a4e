"""Reads MIMIC-IT: instructions by id, with images by id in other files (arXiv 2306.05425).

    LACR_T2T_instructions.json   {"meta": {...}, "data": {"LACR_T2T_INS_00001":
        {"instruction": "Who is it?", "answer": "A police officer.",
         "image_ids": ["LA_IMG_000000131074"], "rel_ins_ids": ["LACR_T2T_INS_00002", ...]}, ...}}
    LA.json                      {"LA_IMG_000000131074": "/9j/4AAQ...", ...}     in base64

Each instruction is a conversation of its own. Its first related instructions come before it, as
turns in context. A turn about the same images as the turn before it does not show them again, as in
the conversations LACONV. Images are read from .json; the .parquet files of newer copies are not.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.collect import Found
from data_pipelines.deadline import each_in_time
from data_pipelines.formats.json_texts import JsonTexts, object_of
from data_pipelines.formats.local_files import MAX_IMAGE_BYTES
from data_pipelines.instruct import turns
from data_pipelines.page import Reject


@dataclasses.dataclass(frozen=True)
class Ids:
    """Some instructions of a file.

    Attributes:
      path: the file.
      start: number of the first one.
      stop: number after the last one.
    """

    path: str
    start: int
    stop: int


@functools.lru_cache(maxsize=1)  # of a worker, which reads many parts of a file
def _data(path: str) -> dict[str, Any] | Reject:
    found = object_of(path)
    if isinstance(found, Reject):
        return found
    data = found.get("data")
    if not isinstance(data, dict) or not data:
        return Reject("not_mimic_it", f"{path}: it has no instructions in `data`", broken=True)
    return data


@functools.lru_cache(maxsize=64)
def _texts(path: str) -> JsonTexts:
    return JsonTexts(path)


def read(
    unit: Ids,
    files: Sequence[str],
    *,
    related: int,
    images_per_turn: int,
    max_images: int,
    max_characters: int,
    seconds: float,
) -> Iterator[Found | Reject]:
    """Yields the conversations of some instructions, and a Reject for each that is left out.

    Args:
      unit: the instructions.
      files: the .json files of the images.
      related: largest number of related instructions before each.
      images_per_turn: of more images of a turn so many are taken, evenly spaced.
      max_images: a conversation with more is left out.
      max_characters: a conversation with a longer text is left out.
      seconds: largest CPU time of a conversation.
    """
    data = _data(unit.path)
    if isinstance(data, Reject):
        yield data
        return
    if unit.start == 0:  # once for the file of images
        yield from (each.problem for each in map(_texts, files) if each.problem)
    ids = list(data)[unit.start : unit.stop]
    yield from each_in_time(
        ids,
        lambda id: [
            *_conversation(
                data,
                id,
                files,
                related=related,
                images_per_turn=images_per_turn,
                max_images=max_images,
                max_characters=max_characters,
            )
        ],
        seconds=seconds,
        place=unit.path,
    )


def _conversation(
    data: dict[str, Any],
    id: str,
    files: Sequence[str],
    *,
    related: int,
    images_per_turn: int,
    max_images: int,
    max_characters: int,
) -> Iterator[Found | Reject]:
    """Yields a Reject for each related instruction and image left out, then the conversation."""
    if not _is_instruction(data[id]):
        detail = f"{id}: no object with instruction, answer, image_ids and rel_ins_ids"
        yield Reject("not_mimic_it", detail, broken=True)
        return
    chosen: list[str] = []
    for other in data[id]["rel_ins_ids"][:related]:
        if other == id or other in chosen:  # its own answer would stand before it
            yield Reject("repeated_related", f"{id}: {other}", unit="image")
        elif _is_instruction(data.get(other)):
            chosen.append(other)
        else:
            yield Reject("missing_related", f"{id}: {other!r:.100}", unit="image")
    asked: turns.Asked = []
    answers: list[str] = []
    before: list[str] = []
    for each in (*chosen, id):
        parts: list[str | bytes] = []
        shown = data[each]["image_ids"]
        if shown != before:
            taken = _spaced(shown, images_per_turn)
            yield from (
                Reject("between_taken", unit="image") for _ in range(len(shown) - len(taken))
            )
            for name in taken:
                image = _image(name, files)
                if isinstance(image, Reject):
                    yield image
                    return
                parts.append(image)
        before = shown
        texts = [
            turns.clean(data[each][field], each, max_characters)
            for field in ("instruction", "answer")
        ]
        for text in texts:
            if isinstance(text, Reject):
                yield text
                return
        question, answer = (str(text) for text in texts)
        asked.append([*parts, *([question] if question else [])])
        answers.append(answer)
    yield turns.record(asked, answers, id, max_images=max_images)


def _is_instruction(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in ("instruction", "answer"))
        and all(_is_names(value.get(name)) for name in ("image_ids", "rel_ins_ids"))
    )


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _spaced(names: Sequence[str], number: int) -> list[str]:
    """Returns at most `number` of the names, evenly spaced, the first among them."""
    if len(names) <= number:
        return list(names)
    return [names[place * len(names) // number] for place in range(number)]


def _image(name: str, files: Sequence[str]) -> bytes | Reject:
    texts = next((found for found in map(_texts, files) if name in found), None)
    if texts is None:
        return Reject("missing_image", f"{name!r:.100} is in no file of --images", broken=True)
    try:
        content = base64.b64decode(texts[name], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        detail = f"{name!r:.100} in {texts.path} is no base64: {error}"
        return Reject("not_an_image", detail, broken=True)
    if len(content) > MAX_IMAGE_BYTES:
        detail = f"{name!r:.100} has more than {MAX_IMAGE_BYTES} bytes"
        return Reject("file_too_large", detail, broken=True)
    return content
