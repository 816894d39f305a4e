"""Interleaved text and images to tokens and phi, the index of the image that each token attends (section 2.3; p_next: A.3.2).

    page     Cute pics of my pets!  [image]   My puppy sitting in the grass.  [image]   My cat looking very dignified.
    tokens   <BOS>Cute..pets!<EOC>  <image>My puppy sitting in the grass.<EOC><image>My cat looking very dignified.<EOC><EOS>
    phi      0    0   ..    0       1      1 ..                           1    2      2 ..                         2    2

This is Figure 7 of the paper. phi grows by one at the first token of each tag, so that the tag
itself attends its own image; the <EOC> before a tag still belongs to the chunk that it closes.

A model that was trained elsewhere may write other signs (`tokenizers.markers`). IDEFICS frames each
image, and phi grows inside:

    tokens   <s> User: <around> <image> <around> Which?     tokens   <s> <around> <image> <around> <image> <around> Both?
    phi      0   0     0        1       1        1          phi      0   0        1       1        2       2        2
"""

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int

from flamingo_jax.data.schema import CorruptRecord, InterleavedPage
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.markers import IMAGE_TAG


class Marker(enum.Enum):
    """Has one member, IMAGE, which stands for an image among the texts given to `tokenise`."""

    IMAGE = IMAGE_TAG


IMAGE: Final = Marker.IMAGE


class Tag(NamedTuple):
    """What is written where an image stands.

    Ids that still attend what came before, and ids that attend the image.
    """

    opening: list[int]
    own: list[int]


def tag_of(tokenizer: Tokenizer) -> Tag:
    """Returns the tag of an image as the tokenizer's markers have it.

    In the paper, `<image>` and no opening.
    """
    pieces = tokenizer.markers.image
    at = pieces.index(IMAGE_TAG)
    opening, own = (
        [i for piece in part for i in tokenizer.encode(piece)]
        for part in (pieces[:at], pieces[at:])
    )
    return Tag(opening, own)


def tokenise(
    parts: Sequence[str | Marker], tokenizer: Tokenizer, *, close: bool = True
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """Writes texts and images as one token sequence.

    <BOS> comes first, where the tokenizer's markers have it so. <EOC> closes a chunk: it stands before every <image> and at
    the end of the document, before <EOS>. It is left out where there is nothing to close (straight
    after <BOS>, as in `<BOS><image>..` of the pairs and of the few-shot prompts), where the text
    already ends in one, and in a model whose markers do not close chunks. A tag's opening is left
    out where the sequence already ends in it.

    Args:
        parts: texts, and IMAGE where an image stands. The tag is written for each IMAGE; a text
            that contains the tag's string would have a tag without an image, which is an error.
        tokenizer: needs <EOC>, except for open text without images; <image> may be a new token, or
            plain text of several pieces (as in the paper).
        close: ends with <EOC><EOS>, as a page does; False leaves the last chunk open, as a prompt
            does.

    Returns:
        int32[T] tokens, and int32[T] phi, the number of image tags up to and with each token.

    Raises:
        ValueError: a text contains "<image>", or there is no <EOC>.
    """
    closes = tokenizer.markers.closes_chunks
    eoc = end_of_chunk(tokenizer) if closes and (close or IMAGE in parts) else tokenizer.eoc_id
    tag = tag_of(tokenizer)
    begin = tokenizer.start_ids
    tokens, starts = [*begin], []
    for part in parts:
        if part is IMAGE:
            if closes and len(tokens) > len(begin) and tokens[-1] != eoc:
                tokens.append(eoc)
            if tokens[max(len(tokens) - len(tag.opening), 0) :] != tag.opening:
                tokens += tag.opening
            starts.append(len(tokens))
            tokens += tag.own
        elif IMAGE_TAG in part:
            raise ValueError(
                f"A text contains {IMAGE_TAG!r}, so there are more <image> tags than images: "
                f"{part[:80]!r}. Put the image in the place of the tag."
            )
        elif part:
            tokens += tokenizer.encode(part)
    if close and closes and tokens[-1:] != [eoc]:
        tokens.append(eoc)
    if close:
        tokens.append(tokenizer.eos_id)
    phi = np.zeros(len(tokens), np.int32)
    phi[starts] = 1
    return np.asarray(tokens, np.int32), np.cumsum(phi, dtype=np.int32)


def end_of_chunk(tokenizer: Tokenizer) -> int:
    """Returns the id that <EOC> stands for.

    Raises:
        ValueError: there is none.
    """
    return (
        tokenizer.eoc_id if tokenizer.eoc_id >= 0 else tokenizer.id(tokenizer.markers.end_of_chunk)
    )


def tokenise_page(
    page: InterleavedPage, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """Tokenises a page: `tokenise` of its texts and images.

    Raises:
        CorruptRecord: the page has more <image> tags than images.
    """
    if any(IMAGE_TAG in text for text in page.texts):
        raise CorruptRecord(
            f"A text of the page contains {IMAGE_TAG!r}: it has more <image> tags than images."
        )
    return tokenise([part if isinstance(part, str) else IMAGE for part in page.parts], tokenizer)


def attend_next(phi: Int[np.ndarray, "T"], tag_length: int) -> Int[np.ndarray, "T"]:
    """Turns phi of "attend the previous image" into "attend the next image".

    The text before an image then attends it; the tag itself attends its own image in either mode.
    Text after the last image has no next one, and the paper does not say what it attends: here
    nothing (phi = 0).

    Args:
        phi: int32[T] as `tokenise` gives it, or a window of it that starts anew at 0.
        tag_length: tokens of one tag from where phi grows: `len(tag_of(tokenizer).own)`.
    """
    starts = np.flatnonzero(np.diff(phi, prepend=0) > 0)
    in_tag = np.zeros(len(phi) + tag_length, bool)  # a tag may be cut off at the end of the window
    in_tag[starts[:, None] + np.arange(tag_length)[None]] = True
    following = np.where(phi < len(starts), phi + 1, 0)
    return np.where(in_tag[: len(phi)], phi, following).astype(np.int32)


class Window(NamedTuple):
    """A piece of a page.

    Int32[l] tokens and phi, and which of the page's images (first, number) it attends.
    """

    tokens: np.ndarray
    phi: np.ndarray
    first_image: int
    num_images: int


def window(
    tokens: Int[np.ndarray, "T"],
    phi: Int[np.ndarray, "T"],
    *,
    length: int,
    max_images: int,
    p_next: float,
    tag_length: int,
    rng: np.random.Generator,
) -> Window:
    """Takes the training example of one visit to a page.

    A window of at most `length` tokens with at most N images.

    The paper takes a random subsequence of L = 256 tokens with up to the first N = 5 of its images
    (section 2.4), and draws once per page whether text attends the previous or the next image
    (A.3.2). What it leaves open is decided so:

    - A page that fits starts at its <BOS>. Of a longer one, every start whose window holds an
      <image> tag is equally likely (any start at all, if no tag is there). Tokens before the first
      tag of the window attend nothing.
    - The window ends before its (N + 1)-th tag: the text from there on would have no image of its
      own.

    Args:
        tokens: int32[T] of the whole page.
        phi: int32[T] of the whole page.
        length: L.
        max_images: N.
        p_next: probability that this visit lets text attend the next image.
        tag_length: tokens of one tag from where phi grows.
        rng: decides the start and the direction; always two draws.
    """
    where, direction = rng.random(2)
    start = 0
    if len(tokens) > length:
        # last token of each window
        last = np.minimum(np.arange(len(tokens) - length + 1) + length, len(tokens)) - 1
        before = np.concatenate([[0], phi])[: len(last)]  # images before its first token
        starts = np.flatnonzero(phi[last] > before)
        starts = starts if len(starts) else np.arange(len(last))
        start = int(starts[int(where * len(starts))])
    first_image = int(phi[start - 1]) if start else 0
    tokens, phi = tokens[start : start + length], phi[start : start + length] - first_image
    end = int(np.searchsorted(phi, max_images, side="right"))  # the (N + 1)-th tag
    tokens, phi = tokens[:end], phi[:end]
    num_images = int(phi[-1]) if end else 0
    return Window(
        tokens, attend_next(phi, tag_length) if direction < p_next else phi, first_image, num_images
    )
