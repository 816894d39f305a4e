"""What the readers of instruction data share: the texts and images of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_pipelines.collect import Found
from data_pipelines.keys import text_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.page import Reject
from data_pipelines.pairs import stored_image
from flamingo_jax.data.conversations import Conversation

Asked = list[list[str | bytes]]


def clean(text: str, source: str, max_characters: int) -> str | Reject:
    """Removes the model's markers and the white space around a text; line ends in it stay.

    Returns:
      The text, "" if there is none; or a Reject for broken_text or text_too_long.
    """
    try:
        text.encode()  # JSON can contain half a surrogate pair
    except UnicodeError as error:
        return Reject("broken_text", f"{source}: {error}", broken=True)
    text = without_markers(text.strip())
    if len(text) > max_characters:
        return Reject("text_too_long", f"{source}: {len(text)} characters")
    return text


def record(asked: Asked, answers: Sequence[str], source: str, *, max_images: int) -> Found | Reject:
    """Makes a record of turns, with its images checked.

    Args:
      asked: the texts and encoded images of each turn.
      answers: of each turn.
      source: name of the conversation.
      max_images: a conversation with more is left out.

    Returns:
      The record; or a Reject for no_turns, no_text, no_answer, too_many_images, or for the image
      that cannot be decoded.
    """
    if not asked:
        return Reject("no_turns", source)
    if not all(answers):
        return Reject("no_answer", source)
    if not all(asked):
        return Reject("no_text", f"{source}: a turn asks nothing")
    number = sum(isinstance(part, bytes) for turn in asked for part in turn)
    if number > max_images:
        return Reject("too_many_images", f"{source}: {number}")
    turns = []
    for turn in asked:
        parts: list[str | bytes] = []
        for part in turn:
            stored = part if isinstance(part, str) else stored_image(part, source)
            if isinstance(stored, Reject):
                return stored
            parts.append(stored)
        turns.append(tuple(parts))
    found = Conversation(
        tuple(turns), tuple(answers), json.dumps({"source": source}, allow_nan=False)
    )
    # Of one text about several images, each is kept.
    keys = () if found.images else (text_key(found.text),)
    return Found(found, keys)
