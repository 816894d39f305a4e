"""Interleaved pages of emoji, from which a Flamingo learns to learn in context.

    binding  image "this is a dax" image "this is a blick" image "this is a dax" ...
             Made-up words for 2 to 5 concepts; each page draws other words. A concept is shown in
             all its trained styles.
    format   image "output : red apple" image "output : mailbox" ...
             or image "output : food" image "output : object" ...
             Only the context says whether the name or the category is asked for.

The loader puts `<image>` before each text and `<EOC>` after it. Only the 48 seen words are used.

A page has 8 pictures. Where pages may have more, each draws its own number.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from data_pipelines.emoji.concepts import Concept
from data_pipelines.emoji.emoji_texts import MAX_WAYS, answers_of
from flamingo_jax.core.seeds import generator
from flamingo_jax.data.schema import InterleavedPage
from flamingo_jax.world import text as world_text
from flamingo_jax.world.pages import BIND_PROMPT, FORMAT_PROMPT

LEAST_PICTURES = 8


@dataclasses.dataclass(frozen=True)
class EmojiPageMix:
    """Shares of the kinds of pages."""

    binding: float = 0.7
    format: float = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiAlbum:
    """Encoded pictures of training concepts.

    Attributes:
      concepts: what the pictures show, in the same order.
      styles: who drew what they show.
      images: the encoded pictures.
    """

    concepts: Sequence[Concept]
    styles: Sequence[str]
    images: Sequence[bytes]

    def draw(self, rng: np.random.Generator, concept: Concept) -> bytes:
        """Draws a picture of a concept, of any style."""
        rows = self._rows[concept.code]
        return self.images[rows[rng.integers(len(rows))]]

    @functools.cached_property
    def distinct(self) -> list[Concept]:
        """Each concept once."""
        return list({concept.code: concept for concept in self.concepts}.values())

    @functools.cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, concept in enumerate(self.concepts):
            rows.setdefault(concept.code, []).append(row)
        return rows


def page(
    seed: int,
    stream: str,
    index: int,
    *,
    album: EmojiAlbum,
    mix: EmojiPageMix,
    most: int = LEAST_PICTURES,
) -> InterleavedPage:
    """Returns page `index` of a stream; pages of different streams are independent.

    Args:
      seed: of the records.
      stream: name of the split.
      index: number of the page.
      album: the pictures.
      mix: the share of each kind of page.
      most: the most pictures of a page, at least 8; with more, the number is uniform from 8 on.
    """
    rng = generator(seed, f"{stream}/pages", index)
    kind = world_text.choose_kind(rng, mix)
    num = LEAST_PICTURES
    if most > LEAST_PICTURES:
        num = int(rng.integers(LEAST_PICTURES, most + 1))
    parts = (_binding if kind == "binding" else _format)(rng, album, num)
    return InterleavedPage(tuple(part for pair in parts for part in pair))


Parts = list[tuple[bytes, str]]


def _binding(rng: np.random.Generator, album: EmojiAlbum, num: int) -> Parts:
    ways = int(rng.integers(2, MAX_WAYS + 1))
    chosen = rng.choice(len(album.distinct), size=ways, replace=False).tolist()
    concepts = [album.distinct[i] for i in chosen]
    names = rng.permutation(world_text.SEEN_NAMES)[:ways]
    return [
        (album.draw(rng, concepts[way]), f"{BIND_PROMPT} {names[way]}")
        for way in rng.integers(ways, size=num)
    ]


def _format(rng: np.random.Generator, album: EmojiAlbum, num: int) -> Parts:
    asked = ("name", "category")[rng.integers(2)]
    rows = rng.integers(len(album.images), size=num)
    return [
        (album.images[row], f"{FORMAT_PROMPT} {answers_of(album.concepts[row])[asked]}")
        for row in rows.tolist()
    ]
