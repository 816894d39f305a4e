"""Tokenises paired data: one image or video and its text.

A pair becomes a prompt of one shot (pair syntax; paper, A.3.3), or a caption alone (contrastive).

    pairs      <BOS><image>{text}<EOC><EOS>     phi = 1 everywhere
    captions   <BOS>{text}<EOS>                 phi = 0: the text encoder gets no image
                                                (`interleave.tokenise_text`)

With probability 0.5 a space is put before the text of a pair. Tokenizers encode a word with and
without a space differently, and the model must understand both after the tag (first version of the
paper, section 3.2.1).
"""

import numpy as np
from jaxtyping import Int

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
    if IMAGE_TAG in text:
        raise CorruptRecord(
            f"The text of a pair contains {IMAGE_TAG!r}: it has more <image> tags than images."
        )
    spaced = f" {text}" if space_prefix else text
    text_ids = tokenizer.encode_after(tag_text(tokenizer), spaced)
    tag = tag_of(tokenizer)
    closing = [end_of_chunk(tokenizer)] if tokenizer.markers.closes_chunks else []
    ids = [*tokenizer.start_ids, *tag.opening, *tag.own, *text_ids, *closing, tokenizer.eos_id]
    return np.asarray(ids, np.int32)
