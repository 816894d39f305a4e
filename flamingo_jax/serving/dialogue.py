"""The prompt of the messages of a request, in the dialogue of `inference.chat`.

It is the paper's (B.1.6), unless the export has a template of its own.

system      replaces the introduction and the example turns; without it they are there
user        User: <image> What is this?
assistant   Flamingo: A dog.
...         the last message is the user's, and the model continues after "Flamingo:"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flamingo_jax.inference import chat
from flamingo_jax.inference.prompt import Part
from flamingo_jax.serving.api_error import ApiError, unsupported
from flamingo_jax.tokenizers.chat_template import ChatTemplate

_SYSTEM = ("system", "developer")
_ROLES = (*_SYSTEM, "user", "assistant")

# Reads the image of a content part, which is not of type "text".
ReadImage = Callable[[Mapping[str, Any], str], Part]


def prompt_of(
    messages: Sequence[Mapping[str, Any]], image: ReadImage, template: ChatTemplate
) -> list[Part]:
    """Returns the parts of the prompt. An answer ends at `template.user`.

    Args:
        messages: of the request.
        image: image(content part, its place in the request) -> the image; raises ApiError.
        template: how the model's export writes a dialogue.

    Raises:
        ApiError: a message has another role or content, or the last one is not of the user.
    """
    start: list[Part] = []
    turns: list[Part] = []
    said: list[Part] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role")
        if role not in _ROLES:
            raise ApiError(
                f"{where}.role is {role!r:.40}; expected one of {', '.join(_ROLES)}.",
                param=f"{where}.role",
            )
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise unsupported(f"{where}.{name}", "the model calls no tools; leave it out.")
        parts = _content(message.get("content"), f"{where}.content", image)
        if role == "user":
            said += ["\n", *parts] if said and not template.space else parts
            continue
        if not all(isinstance(part, str) for part in parts):
            raise ApiError(
                f"{where} is of the {role} and has an image; only the user has images.",
                param=f"{where}.content",
            )
        text = "".join(part for part in parts if isinstance(part, str))
        if role == "assistant":
            turns += [*chat.turn_of(said, template), chat.answered(text.strip(), template)]
            said = []
        elif turns or said:
            raise ApiError(f"{where} is of the system; expected before all others.", param=where)
        else:
            start.append(text.strip().join(template.system))
    if not any(not isinstance(part, str) or part.strip() for part in said):
        raise ApiError(
            "The last message says nothing of the user; expected a text or an image to answer.",
            param="messages",
        )
    return [*(start or chat.opening(template)), *turns, *chat.turn_of(said, template)]


def num_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """Returns how many content parts are no text."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return sum(isinstance(part, Mapping) and part.get("type") != "text" for part in parts)


def _content(content: Any, where: str, image: ReadImage) -> list[Part]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not all(isinstance(each, Mapping) for each in content):
        raise ApiError(
            f"{where} is {type(content).__name__}; expected a text, or a list of parts.",
            param=where,
        )
    parts: list[Part] = []
    for number, part in enumerate(content):
        place = f"{where}[{number}]"
        if part.get("type") == "text":
            if not isinstance(part.get("text"), str):
                raise ApiError(f"{place}.text is missing; expected a text.", param=f"{place}.text")
            parts.append(part["text"])
        else:
            parts.append(image(part, place))
    return parts
