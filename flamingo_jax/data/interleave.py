"""Tokenises interleaved text and images, and computes phi, the image that each token attends.

The paper defines phi in 2.3, and p_next in A.3.2.

    page     Cute pics of my pets!  [image]  My puppy.           [image]  My cat.
    tokens   <BOS>Cute..pets!<EOC>  <image>  My puppy.<EOC>      <image>  My cat.<EOC><EOS>
    phi      0    0   ..    0       1        1        1          2        2      2    2

This is Figure 7 of the paper. phi increases by one at the first token of each tag, so that the tag
attends its own image. The <EOC> before a tag belongs to the chunk that it closes.

Models that were trained elsewhere may have other markers (`tokenizers.markers`). IDEFICS writes a
token around each image, and phi increases after the first of them:

    tokens   <s>  User:  <around>  <image>  <around>  Which?
    phi      0    0      0         1        1         1

    tokens   <s>  <around>  <image>  <around>  <image>  <around>  Both?
    phi      0    0         1        1         2        2         2
"""

import enum
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int

from flamingo_jax.data.schema import CorruptRecord, InterleavedPage
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.markers import IMAGE_TAG


class Marker(enum.Enum):
    """The enum with one member, IMAGE, which marks the place of an image among texts."""

    IMAGE = IMAGE_TAG


IMAGE: Final = Marker.IMAGE


class TagInText(ValueError):
    """A text contains the string of the tag, which would be a tag without an image."""


class Tag(NamedTuple):
    """The token ids that are written for an image.

    Attributes:
        opening: ids that still attend the image before.
        own: ids that attend this image.
    """

    opening: list[int]
    own: list[int]


@functools.lru_cache(maxsize=8)
def tag_of(tokenizer: Tokenizer) -> Tag:
    """Returns the tag that the tokenizer's markers define; in the paper `<image>`, no opening.

    Its ids are the same everywhere: those after the token that closes a chunk.
    """
    pieces, before = tokenizer.markers.image, tokenizer.markers.end_of_chunk
    at = pieces.index(IMAGE_TAG)
    opening, own = (
        [i for piece in part for i in tokenizer.encode_after(before, piece)]
        for part in (pieces[:at], pieces[at:])
    )
    return Tag(opening, own)


def tag_text(tokenizer: Tokenizer) -> str:
    """Returns the string of the whole tag, which is before the text that follows an image."""
    return "".join(tokenizer.markers.image)


def joined(parts: Iterable[str | Marker], tokenizer: Tokenizer) -> Iterator[str | Marker]:
    """Yields the parts, with texts that follow each other as one text; none of them is empty.

    Their tokens are then those of the whole text, wherever it was cut.
    """
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts += [part] if part else []
            continue
        if texts:
            yield tokenizer.separator.join(texts)
            texts = []
        yield part
    if texts:
        yield tokenizer.separator.join(texts)


def tokenise(
    parts: Sequence[str | Marker], tokenizer: Tokenizer, *, close: bool = True
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """Writes texts and images as one token sequence: texts side by side are one text.

    <BOS> is first, unless the tokenizer's markers have no <BOS>. <EOC> closes a chunk: it is
    written before every <image>, and before the <EOS> at the end of the document. It is left out
    where no chunk is open (directly after <BOS>, as in the `<BOS><image>..` of pairs and few-shot
    prompts), where the text already ends in <EOC>, and if the markers do not close chunks. The
    opening of a tag is left out if the sequence already ends in it.

    Args:
        parts: texts, and IMAGE in the place of each image. A text must not contain the string of
            the tag, which would be a tag without an image.
        tokenizer: needs <EOC>, except for open text without images. <image> may be a new token, or
            plain text of several pieces (as in the paper).
        close: ends with <EOC><EOS>, as a page does. False leaves the last chunk open, as a prompt
            does.

    Returns:
        int32[T] tokens, and int32[T] phi, the number of image tags up to and including each token.

    Raises:
        TagInText: a text contains "<image>".
        ValueError: the tokenizer has no <EOC>.
    """
    closes = tokenizer.markers.closes_chunks
    eoc = end_of_chunk(tokenizer) if closes and (close or IMAGE in parts) else tokenizer.eoc_id
    tag = tag_of(tokenizer)
    begin = tokenizer.start_ids
    tokens, starts = [*begin], []
    before, after_image = "", tag_text(tokenizer)
    for part in joined(parts, tokenizer):
        if part is IMAGE:
            if closes and len(tokens) > len(begin) and tokens[-1] != eoc:
                tokens.append(eoc)
            if tokens[max(len(tokens) - len(tag.opening), 0) :] != tag.opening:
                tokens += tag.opening
            starts.append(len(tokens))
            tokens += tag.own
            before = after_image
        elif IMAGE_TAG in part:
            raise TagInText(
                f"A text contains {IMAGE_TAG!r}, so there are more <image> tags than images: "
                f"{part[:80]!r}. Put the image in the place of the tag."
            )
        else:
            tokens += tokenizer.encode_after(before, part)
    if close and closes and tokens[-1:] != [eoc]:
        tokens.append(eoc)
    if close:
        tokens.append(tokenizer.eos_id)
    phi = np.zeros(len(tokens), np.int32)
    phi[starts] = 1
    return np.asarray(tokens, np.int32), np.cumsum(phi, dtype=np.int32)


def end_of_chunk(tokenizer: Tokenizer) -> int:
    """Returns the id of the piece or new token that closes a chunk.

    Raises:
        ValueError: the tokenizer has no such piece.
    """
    if tokenizer.eoc_id >= 0:
        return tokenizer.eoc_id
    return tokenizer.id(tokenizer.markers.end_of_chunk)


def tokenise_page(
    page: InterleavedPage, tokenizer: Tokenizer
) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "T"]]:
    """Tokenises the texts and images of a page.

    Raises:
        CorruptRecord: the page has more <image> tags than images.
    """
    try:
        return tokenise([p if isinstance(p, str) else IMAGE for p in page.parts], tokenizer)
    except TagInText as error:
        raise CorruptRecord(
            f"A text of the page contains {IMAGE_TAG!r}: it has more <image> tags than images."
        ) from error


def tokenise_text(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "T"]:
    """Returns `<BOS>{text}<EOS>` as int32[T]: a document, or a caption for the text encoder."""
    return np.asarray([*tokenizer.start_ids, *tokenizer.encode(text), tokenizer.eos_id], np.int32)


def attend_next(phi: Int[np.ndarray, "T"], tag_length: int) -> Int[np.ndarray, "T"]:
    """Changes phi from "attend the previous image" to "attend the next image".

    The text before an image then attends this image. The tag attends its own image in both modes.
    Text after the last image has no next image, and the paper does not say what it attends: here it
    attends nothing (phi = 0).

    Args:
        phi: int32[T] as `tokenise` returns it, or a window of it that starts again at 0.
        tag_length: tokens of one tag from where phi increases: `len(tag_of(tokenizer).own)`.
    """
    starts = np.flatnonzero(np.diff(phi, prepend=0) > 0)
    in_tag = np.zeros(len(phi) + tag_length, bool)  # a tag may be cut off at the end of the window
    in_tag[starts[:, None] + np.arange(tag_length)[None]] = True
    following = np.where(phi < len(starts), phi + 1, 0)
    return np.where(in_tag[: len(phi)], phi, following).astype(np.int32)


class Window(NamedTuple):
    """A piece of a page.

    Attributes:
        tokens: int32[l].
        phi: int32[l], counted from the first image of the piece.
        first_image: number of this image in the page, from 0.
        num_images: images of the page that the piece attends.
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
    """Draws a window of at most `length` tokens with at most N images from a page.

    The paper takes a random subsequence of L = 256 tokens with up to the first N = 5 of its images
    (section 2.4), and draws once per page whether text attends the previous or the next image
    (A.3.2). It leaves two things open:

    - Where the window starts. Here a page that fits starts at its <BOS>. In a longer page every
      start with an <image> tag in its window is equally likely (if there is no tag, every start).
      Tokens before the first tag of the window attend nothing.
    - Where the window ends. Here before its (N + 1)-th tag, because the text from there on has no
      image.

    Args:
        tokens: int32[T] of the whole page.
        phi: int32[T] of the whole page.
        length: L.
        max_images: N.
        p_next: probability that text attends the next image.
        tag_length: tokens of one tag from where phi increases.
        rng: draws the start and the direction; always two draws.
    """
    where, direction = rng.random(2)
    start = 0
    if len(tokens) > length:
        # For each window: its last token, and the number of images before its first token.
        last = np.minimum(np.arange(len(tokens) - length + 1) + length, len(tokens)) - 1
        before = np.concatenate([[0], phi])[: len(last)]
        starts = np.flatnonzero(phi[last] > before)
        starts = starts if len(starts) else np.arange(len(last))
        start = int(starts[int(where * len(starts))])
    first_image = int(phi[start - 1]) if start else 0
    tokens, phi = tokens[start : start + length], phi[start : start + length] - first_image
    end = int(np.searchsorted(phi, max_images, side="right"))  # the (N + 1)-th tag
    tokens, phi = tokens[:end], phi[:end]
    num_images = int(phi[-1]) if end else 0
    if direction < p_next:
        phi = attend_next(phi, tag_length)
    return Window(tokens, phi, first_image, num_images)
