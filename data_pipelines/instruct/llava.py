r"""Reads conversations as LLaVA publishes them.

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\nWhat are the colors?"},
                       {"from": "gpt", "value": "Red and white."}, ...]}

"image" may be a list, whose images take the places of the `<image>` in their order. Without
"image" a conversation is text alone. The one image of a conversation without an `<image>` comes
before its first text.
"""

from __future__ import annotations

from typing import Any

from etils import epath

from data_pipelines.collect import Found
from data_pipelines.formats.local_files import MAX_IMAGE_BYTES, read_inside
from data_pipelines.instruct import turns
from data_pipelines.page import Reject
from flamingo_jax.tokenizers.markers import IMAGE_TAG

USERS, MODELS, SYSTEMS = ("human", "user"), ("gpt", "assistant"), ("system",)


def conversation(
    row: dict[str, Any], folder: epath.Path, *, max_images: int, max_characters: int
) -> Found | Reject:
    """Returns the record of one conversation.

    Args:
      row: as the file has it.
      folder: that the paths of images are relative to.
      max_images: a conversation with more is left out.
      max_characters: a conversation with a longer text is left out.

    Returns:
      The record; or a Reject for not_llava (no list of turns), has_video, not_alternating,
      no_answer (the last turn is the user's), image_count (other images than `<image>`),
      missing_image and the other reasons of `read_inside`, or those of `turns`.
    """
    source = str(row.get("id", ""))[:200]
    if row.get("video"):
        return Reject("has_video", source)
    spoken = row.get("conversations")
    if not isinstance(spoken, list) or not all(map(_is_turn, spoken)):
        detail = f"{source}: conversations is no list of {{from, value}}; there are {sorted(row)}"
        return Reject("not_llava", detail, broken=True)
    names = row.get("image") or row.get("images") or []  # of a table, the other one is null
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return Reject("not_llava", f"{source}: image is {names!r:.80}", broken=True)
    sides = _sides(spoken)
    if isinstance(sides, Reject):
        return Reject(sides.reason, f"{source}: {sides.detail}", broken=sides.broken)
    asked, answers = sides
    tags = sum(text.count(IMAGE_TAG) for text in asked)
    if len(names) == 1 and not tags:
        asked[0], tags = f"{IMAGE_TAG}\n{asked[0]}", 1
    if tags != len(names):
        detail = f"{source}: {tags} {IMAGE_TAG} and {len(names)} images"
        return Reject("image_count", detail, broken=True)
    if tags > max_images:
        return Reject("too_many_images", f"{source}: {tags}")
    images = []
    for name in names:
        content = read_inside(folder, name, max_bytes=MAX_IMAGE_BYTES, missing="missing_image")
        if isinstance(content, Reject):
            return content
        images.append(content)
    return _record(asked, answers, images, source, max_images, max_characters)


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and turn.get("from") in (*USERS, *MODELS, *SYSTEMS)
        and isinstance(turn.get("value"), str)
    )


def _sides(spoken: list[dict[str, str]]) -> tuple[list[str], list[str]] | Reject:
    """Returns what the user says and what the model answers, turn by turn."""
    system = [turn["value"] for turn in spoken if turn["from"] in SYSTEMS]
    others = [turn for turn in spoken if turn["from"] not in SYSTEMS]
    for number, turn in enumerate(others):
        if turn["from"] not in (MODELS if number % 2 else USERS):
            return Reject("not_alternating", f"turn {number} is of {turn['from']!r}", broken=True)
    if len(others) % 2:
        return Reject("no_answer", "the last turn is the user's")
    asked = [turn["value"] for turn in others[::2]]
    if asked and system:
        asked[0] = "\n".join([*system, asked[0]])
    return asked, [turn["value"] for turn in others[1::2]]


def _record(
    asked: list[str],
    answers: list[str],
    images: list[bytes],
    source: str,
    max_images: int,
    max_characters: int,
) -> Found | Reject:
    next_image = iter(images)
    said: turns.Asked = []
    for text in asked:
        parts: list[str | bytes] = []
        for number, piece in enumerate(text.split(IMAGE_TAG)):
            if number:
                parts.append(next(next_image))
            words = turns.clean(piece, source, max_characters)
            if isinstance(words, Reject):
                return words
            parts += [words] if words else []
        said.append(parts)
    given = []
    for text in answers:
        words = turns.clean(text, source, max_characters)
        if isinstance(words, Reject):
            return words
        given.append(words)
    return turns.record(said, given, source, max_images=max_images)
