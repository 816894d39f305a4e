"""Tokenises paired data: one image or video and its text.

A pair becomes a prompt of one shot (pair syntax; paper, A.3.3), or a caption alone (contrastive).

    pairs      <BOS><image>{text}<EOC><EOS>     phi = 1 everywhere
    answers    <BOS><image>{prompt} {answer}<EOC><EOS>
    captions   <BOS>{text}<EOS>                 phi = 0: the text encoder gets no image
                                                (`interleave.tokenise_text`)

With probability 0.5 a space is put before the text of a pair. Tokenizers encode a word with and
without a space differently, and the model must understand both after the tag (first version of the
paper, section 3.2.1).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from flamingo_jax.data.interleave import end_of_chunk, tag_of, tag_text
from flamingo_jax.data.schema import CorruptRecord
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.markers import IMAGE_TAG


def tokenise_pair(
    text: str, tokenizer: Tokenizer, *, space_prefix: bool = False
) -> Int[np.ndarray, "T"]:
    """Returns `<BOS><image>{text}<EOC><EOS>` as int32[T], in the form of the tokenizer's markers.

    Args:
        text: the caption.
        tokenizer: must have <EOC>.
        space_prefix: puts a space before the text.

    Raises:
        CorruptRecord: the text contains the string of the tag, which would be a tag without image.
        ValueError: the tokenizer has no <EOC>.
    """
    return tokenise_turns([text], tokenizer, space_prefix=space_prefix)[0]


def tokenise_turns(
    turns: Sequence[str], tokenizer: Tokenizer, *, space_prefix: bool = False
) -> tuple[Int[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """Tokenises a pair that is written in turns: prompt, answer, prompt, answer.

    A prompt has the tokens that it has alone, as when the model is asked.

    Args:
        turns: the texts; a space is put between them.
        tokenizer: must have <EOC>.
        space_prefix: puts a space before the first one.

    Returns:
        int32[T] tokens, and bool[T], True where a token belongs to an answer. The <EOC> and <EOS>
        after an answer belong to it.

    Raises:
        CorruptRecord: a text contains the string of the tag, which would be a tag without image.
        ValueError: the tokenizer has no <EOC>.
    """
    before, tag = tag_text(tokenizer), tag_of(tokenizer)
    parts = [[*tokenizer.start_ids, *tag.opening, *tag.own]]
    for number, turn in enumerate(turns):
        if IMAGE_TAG in turn:
            raise CorruptRecord(
                f"The text of a pair contains {IMAGE_TAG!r}: it has more <image> tags than images."
            )
        spaced = f" {turn}" if number or space_prefix else turn
        parts.append(tokenizer.encode_after(before, spaced))
        before += spaced
    closing = [end_of_chunk(tokenizer)] if tokenizer.markers.closes_chunks else []
    parts[-1] = [*parts[-1], *closing, tokenizer.eos_id]
    of_answer = np.arange(len(parts)) % 2 == 0
    of_answer[0] = False  # the <BOS> and the tag
    tokens = np.asarray([number for part in parts for number in part], np.int32)
    return tokens, np.repeat(of_answer, [len(part) for part in parts])
