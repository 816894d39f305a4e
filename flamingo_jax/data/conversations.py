r"""The tokens of conversations, the records of instruction data.

    asked     ((image, "What is it?"), ("Is it old?",))
    answers   ("A cat.", "No.")
    row       <BOS>User:<EOC><image> What is it?\nFlamingo: A cat.<EOC>User: Is it old?\n
              Flamingo: No.<EOC><EOS>

The words around the turns are those of `tokenizers.chat_template.TURNS`, and the tokens of a turn
are those that it has in `Flamingo.chat`. Text attends the last image before it, as on pages (paper,
2.3). With `loss_on = "answers"` only the answers count in the loss, each with its `<EOC>`. The
paper has no training data of this kind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from flamingo_jax.data.answers import Conversation
from flamingo_jax.data.interleave import TagInText, end_of_chunk, tag_of, tag_text
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.chat_template import TURNS
from flamingo_jax.tokenizers.markers import EOC, IMAGE_TAG


class TokenisedConversation(NamedTuple):
    """The tokens of a conversation.

    Attributes:
        tokens: int32[T].
        phi: int32[T], the number of the image that a token attends; 0 = none.
        targets: bool[T], True where a token belongs to an answer, or ends it.
    """

    tokens: Int[np.ndarray, "T"]
    phi: Int[np.ndarray, "T"]
    targets: Bool[np.ndarray, "T"]


def said(asked: Sequence[str | bytes], separator: str) -> list[str | bytes]:
    """Returns a turn of the user up to the answer, texts that follow each other as one.

    Args:
        asked: texts and encoded images.
        separator: what joins two texts; of the tokenizer.
    """
    parts: list[str | bytes] = [TURNS.user]
    for part in asked:
        if isinstance(part, bytes):
            parts.append(part)
        elif part.strip():
            parts += [f" {part.strip()}"]
    parts.append(TURNS.model)
    joined: list[str | bytes] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += separator + part
        else:
            joined.append(part)
    return joined


def tokenise_conversation(record: Conversation, tokenizer: Tokenizer) -> TokenisedConversation:
    """Writes a conversation as one token sequence.

    Raises:
        TagInText: a text contains the string of the tag, which would be a tag without an image.
        ValueError: the tokenizer has no `<EOC>`.
    """
    if IMAGE_TAG in record.text:
        raise TagInText(
            f"A text of the conversation contains {IMAGE_TAG!r}: it has more tags than images."
        )
    tag, eoc = tag_of(tokenizer), end_of_chunk(tokenizer)
    begin = list(tokenizer.start_ids)
    tokens, phi, targets = list(begin), [0] * len(begin), [False] * len(begin)
    before, image = "", 0

    def add(ids: Sequence[int], *, is_answer: bool = False) -> None:
        tokens.extend(ids)
        phi.extend([image] * len(ids))
        targets.extend([is_answer] * len(ids))

    for turn, answer in zip(record.asked, record.answers, strict=True):
        for part in said(turn, tokenizer.separator):
            if isinstance(part, bytes):
                if len(tokens) > len(begin) and tokens[-1] != eoc:
                    add([eoc])
                add(tag.opening)
                image += 1
                add(tag.own)
                before = tag_text(tokenizer)
            else:
                add(tokenizer.encode_after(before, part))
                before += part
        add([*tokenizer.encode_after(before, f" {answer.strip()}"), eoc], is_answer=True)
        before += f" {answer.strip()}{EOC}"
    add([tokenizer.eos_id], is_answer=True)
    return TokenisedConversation(
        np.asarray(tokens, np.int32), np.asarray(phi, np.int32), np.asarray(targets, bool)
    )
