"""Prompts: from text and visuals in reading order to tokens, phi and a pool of visuals.

    [cat.jpg, "Output: A cat.<EOC>", dog.jpg, "Output:"]          (paper, Figure 8 and Appendix A.2)
      -> <BOS> <image> Output : A cat . <EOC> <image> Output :
    phi    0      1      1    1 1  1  1   1      2      2   2     the last visual up to each token
    pool   [cat, dog]                                             each distinct visual once

This file adds `<BOS>`, the `<image>` tags, and `<EOC>` if it is missing before a visual. The last
chunk stays open for the answer. Models that were trained elsewhere have other markers
(`tokenizers.markers`), and some have no `<EOC>` before a visual.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import string
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from flamingo_jax.core import paths
from flamingo_jax.data.interleave import IMAGE, Marker, tag_text, tokenise
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.visuals import (
    VISUAL_TYPES,
    Deferred,
    Image,
    PromptError,
    Video,
    Visual,
    existing,
    from_file,
    load_frames,
)
from flamingo_jax.tokenizers.base import Tokenizer

__all__ = [
    "Deferred",
    "Image",
    "Part",
    "Prompt",
    "PromptError",
    "Prompts",
    "Video",
    "Visual",
    "as_batch",
    "at_once",
    "collate",
    "load_frames",
    "only",
    "parse",
    "read",
    "warn_once",
]

_log = logging.getLogger(__name__)

Part: TypeAlias = "str | Visual"
Prompt: TypeAlias = "str | Sequence[Part]"
Prompts: TypeAlias = "Prompt | Sequence[Prompt]"  # one or several; `as_batch` decides


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedPrompt:
    """One prompt, tokenised.

    Attributes:
        tokens: int32[L], `<BOS>` first.
        media_index: int32[L] phi, 0 = no visual.
        visuals: in their order, not read yet.
        tail: the text that an answer follows: the last visual as its tag, and the text after it.
        tail_length: tokens of the text after the last visual.
    """

    tokens: np.ndarray
    media_index: np.ndarray
    visuals: tuple[Visual, ...]
    tail: str = ""
    tail_length: int = 0


def as_batch(prompts: Prompts) -> tuple[list[Prompt], bool]:
    """Returns the prompts, and whether a list of prompts was given (even a list of one).

    A str is one prompt, and so is a list with an image or a video in it. A list of strings is
    several prompts without visuals. A list with lists in it is several prompts, each a str or a
    list of parts. So one prompt of several texts without a visual is `[[text, text]]`.

    Raises:
        PromptError: a list with both lists and visuals in it, or neither a str nor a list.
    """
    if isinstance(prompts, str):
        return [prompts], False
    if not isinstance(prompts, list | tuple):
        raise PromptError(
            f"prompt: got {type(prompts).__name__}; expected a str, or a list of text and images. "
            "Put a single image into a list: [Image('cat.jpg')]."
        )
    number = next(
        (n for n, part in enumerate(prompts) if not isinstance(part, str | list | tuple)), None
    )
    if number is None:
        return [*prompts] or [""], bool(prompts)
    if any(isinstance(part, list | tuple) for part in prompts):
        raise PromptError(
            f"prompt: item {number} is {type(prompts[number]).__name__} in a list that also holds "
            "lists. Expected one prompt, a list of text and images, or several prompts, each of "
            "them a str or a list."
        )
    return [prompts], False


def only(prompt: Prompt) -> Prompt:
    """Returns the one prompt that was given.

    Raises:
        PromptError: there are several, by the rule of `as_batch`.
    """
    batch, _ = as_batch(prompt)
    if len(batch) > 1:
        raise PromptError(
            f"stream: got {len(batch)} prompts; expected one. Put texts without an image into a "
            "list of their own: [[text, text]]."
        )
    return batch[0]


def at_once(prompts: Sequence[Prompt], most: int) -> int:
    """Returns how many images to encode together if these are all prompts.

    Args:
        prompts: not read yet; an empty list is a dialogue, in which images come one by one.
        most: upper bound.
    """
    count = sum(not isinstance(part, str) for prompt in prompts for part in prompt)
    return min(1 << max(count - 1, 0).bit_length(), most)


def parse(template: str) -> list[Part]:
    """Splits "{cat.jpg}Output: A cat.<EOC>{clip.mp4}Output:" into images, videos and text.

    `{{` and `}}` are literal braces.

    Args:
        template: text with files in braces; the suffix says whether a file is a video.

    Returns:
        Parts of a prompt: `Image`, `Video` and str.

    Raises:
        PromptError: an unclosed or unopened brace, empty braces, or a missing file.
    """
    parts: list[Part] = []
    text, at = "", 0
    while at < len(template):
        if template[at : at + 2] in ("{{", "}}"):
            text, at = text + template[at], at + 2
        elif template[at] == "}":
            raise PromptError(
                f"prompt: '}}' at character {at} closes no brace in {_around(template, at)}. Write "
                "'}}' for a literal brace."
            )
        elif template[at] == "{":
            end = template.find("}", at)
            if end < 0 or "{" in template[at + 1 : end]:
                raise PromptError(
                    f"prompt: the brace at character {at} is not closed in "
                    f"{_around(template, at)}. Write {{path}} for an image, '{{{{' for a literal "
                    "brace."
                )
            parts += [text] if text else []
            parts.append(_file(template[at + 1 : end].strip(), at))
            text, at = "", end + 1
        else:
            text, at = text + template[at], at + 1
    return parts + ([text] if text else [])


def read(prompt: Prompt, tokenizer: Tokenizer, *, masked: bool = False) -> TokenisedPrompt:
    """Tokenises a prompt. Texts side by side have the tokens of the joined text.

    A warning is logged if the prompt ends in a space that belongs to the next word.

    Args:
        prompt: parts in reading order; a str is a prompt without visuals.
        tokenizer: of the model.
        masked: True sets phi to 0 everywhere, so that no token attends a visual (a control of the
            evaluation).

    Raises:
        PromptError: an `<image>` tag in the text (more tags than visuals), or a part that is
            neither text nor a visual.
    """
    given = [prompt] if isinstance(prompt, str) else list(prompt)
    parts = [paths.whole_characters(part) if isinstance(part, str) else part for part in given]
    marked: list[str | Marker] = []
    visuals: list[Visual] = []
    text = ""  # after the last visual
    for number, part in enumerate(parts):
        if isinstance(part, str):
            text += f"{tokenizer.separator if text and part else ''}{part}"
            if "<image>" in text:
                raise PromptError(
                    f"prompt: part {number} has an <image> tag in its text, {part[:60]!r}, so "
                    "there are more tags than images. Put the image itself there; its tag is "
                    "written for you."
                )
            marked.append(part)
        elif isinstance(part, VISUAL_TYPES):
            marked.append(IMAGE)
            visuals.append(part)
            text = ""
        else:
            raise PromptError(
                f"prompt: part {number} is {type(part).__name__}; expected str, Image(path), "
                "Video(path), a PIL image, encoded bytes or a uint8 array."
            )
    before = tag_text(tokenizer) if visuals else ""
    last = tokenizer.encode_after(before, text)
    if visuals:
        tokens, phi = tokenise(marked, tokenizer, close=False)
    else:  # a language model's tokenizer may have no <EOC>
        tokens = np.asarray([*tokenizer.start_ids, *last], np.int32)
        phi = np.zeros_like(tokens)
    if text.endswith(" ") and _spaces_begin_words(tokenizer):
        warn_once(
            "prompt: it ends in a space. In this vocabulary a space is a part of the word after "
            "it, so the answer would begin in a way that the model has not seen. Leave the space "
            "out, and put it in front of the candidates if there are any."
        )
    phi = np.zeros_like(phi) if masked else phi
    return TokenisedPrompt(tokens, phi, tuple(visuals), before + text, len(last))


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning about prompts, once in a process."""
    _log.warning(message)


def _spaces_begin_words(tokenizer: Tokenizer) -> bool:
    """Returns True if the vocabulary has a piece of a space with a letter or digit after it."""
    letters = string.ascii_letters + string.digits
    return any(tokenizer.join("a ", letter)[0] for letter in letters)


@dataclasses.dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts padded to one shape, like `data.schema.Batch` with visuals that are not encoded yet.

    Attributes:
        tokens: int32[B, L].
        length: int32[B] real tokens, at least 1.
        media_index: int32[B, L] phi.
        media_slot: int32[B, N] index in `visuals` of the n-th visual of a prompt, -1 = none.
        visuals: the M distinct visuals, in order of appearance; may be empty.
        identities: of the visuals.
    """

    tokens: np.ndarray
    length: np.ndarray
    media_index: np.ndarray
    media_slot: np.ndarray
    visuals: tuple[Visual, ...]
    identities: tuple[bytes, ...] = ()


def collate(
    prompts: Sequence[TokenisedPrompt], *, rows: int, length: int, num_images: int, pad_id: int = 0
) -> PromptBatch:
    """Puts prompts into one batch of a given shape, with each distinct visual once in its pool.

    Rows without a prompt have one token and no visual.

    Args:
        prompts: at most `rows` of them, each within `length` tokens and `num_images` visuals.
        rows: B.
        length: L.
        num_images: N, at least 1.
        pad_id: fills the rest of a row.

    Raises:
        PromptError: a prompt does not fit, or a file is missing.
    """
    tokens = np.full((rows, length), pad_id, np.int32)
    lengths = np.ones(rows, np.int32)
    media_index = np.zeros((rows, length), np.int32)
    media_slot = np.full((rows, num_images), -1, np.int32)
    slots: dict[bytes, int] = {}
    visuals: list[Visual] = []
    if len(prompts) > rows:
        raise PromptError(f"batch: got {len(prompts)} prompts, expected at most {rows}.")
    for row, prompt in enumerate(prompts):
        size = len(prompt.tokens)
        if size > length or len(prompt.visuals) > num_images:
            raise PromptError(
                f"batch: prompt {row} has {size} tokens and {len(prompt.visuals)} images; expected "
                f"at most {length} and {num_images}."
            )
        tokens[row, :size], media_index[row, :size] = prompt.tokens, prompt.media_index
        lengths[row] = size
        for column, visual in enumerate(prompt.visuals):
            slot = slots.setdefault(identity(visual), len(slots))
            visuals += [visual] if slot == len(visuals) else []
            media_slot[row, column] = slot
    return PromptBatch(tokens, lengths, media_index, media_slot, tuple(visuals), tuple(slots))


def _file(name: str, at: int) -> Image | Video:
    if not name:
        raise PromptError(
            f"prompt: the braces at character {at} are empty. Write {{path}} for an "
            "image or a video."
        )
    if "://" in name and not name.startswith(paths.SCHEMES):
        raise PromptError(
            f"prompt: {name!r} is neither a local file nor one of {', '.join(paths.SCHEMES)}. "
            "Download it, and give the file."
        )
    visual = from_file(paths.from_user(name))
    existing(visual)
    return visual


def _around(template: str, at: int) -> str:
    return repr(template[max(0, at - 20) : at + 30])
