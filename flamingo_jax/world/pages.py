"""The synthetic world's pages.

Pictures and text in turn, from which a Flamingo learns to learn in context.

    binding  image "this is a dax" image "this is a blick" image "this is a dax" ...       names for the values of an attribute, fresh on each page
    format   image "output : red" image "output : green" ...                               which attribute is asked for is only in the context
    qa       image "question : what colour is the circle ? answer : red" image ...         two objects

The loader puts `<image>` before each text and `<EOC>` after it. Only the 48 seen names occur here:
the twelve new ones are for evaluation.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from flamingo_jax.core.seeds import generator
from flamingo_jax.data.schema import InterleavedPage
from flamingo_jax.world import scenes, text
from flamingo_jax.world.scenes import COLOUR, SHAPE, VALUES

BIND_PROMPT, FORMAT_PROMPT = "this is a", "output :"
# 8 * 6 + 2 tokens; a question is 13 tokens long: 4 * 13 + 2
PICTURES_PER_PAGE = {"binding": 8, "format": 8, "qa": 4}


@dataclasses.dataclass(frozen=True)
class PageMix:
    """Shares of the kinds of pages."""

    binding: float = 0.6
    format: float = 0.2
    qa: float = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Album:
    """Encoded pictures, to be looked up by what they show.

    Attributes:
      attributes: int[M, O, 3] indices into COLOURS, SHAPES and SIZES.
      images: the encoded pictures, in the same order.
    """

    attributes: Int[np.ndarray, "M O 3"]
    images: tuple[bytes, ...]

    @classmethod
    def draw(cls, seed: int, pool: str, num: int) -> Album:
        """The first `num` pictures of a pool of `synthetic.POOLS`."""
        attributes, images = zip(*scenes.iterate(seed, pool, num), strict=True)
        return cls(np.stack(attributes), images)

    def having(self, attribute: int, value: int) -> Int[np.ndarray, "k"]:
        """Indices of the pictures whose (first) object has this value."""
        return self._index[attribute][value]

    @functools.cached_property
    def _index(self) -> list[list[np.ndarray]]:
        index = [
            [np.flatnonzero(self.attributes[:, 0, a] == v) for v in range(len(VALUES[a]))]
            for a in range(len(VALUES))
        ]
        missing = [
            VALUES[a][v]
            for a, rows in enumerate(index)
            for v, row in enumerate(rows)
            if not len(row)
        ]
        if missing:
            raise ValueError(
                f"An album of {len(self.images)} pictures shows no {missing[0]!r}, expected each "
                "value at least once: draw more pictures."
            )
        return index


def page(
    seed: int, stream: str, index: int, *, one: Album, two: Album, mix: PageMix
) -> InterleavedPage:
    """Page `index` of a stream.

    Args:
      seed: the world's seed.
      stream: names the split; pages of different streams are independent.
      index: which page.
      one: pictures of one object, for binding and format pages.
      two: pictures of two objects, for question pages.
      mix: how often each kind of page occurs.
    """
    rng = generator(seed, f"{stream}/pages", index)
    kind = text.choose_kind(rng, mix)
    num = PICTURES_PER_PAGE[kind]
    if kind == "binding":
        parts = _binding(rng, one, num)
    elif kind == "format":
        parts = _format(rng, one, num)
    else:
        parts = _qa(rng, two, num)
    return InterleavedPage(tuple(part for pair in parts for part in pair))


Parts = list[tuple[bytes, str]]


def _binding(rng: np.random.Generator, album: Album, num: int) -> Parts:
    attribute, ways = (COLOUR, SHAPE)[rng.integers(2)], int(rng.integers(2, 5))
    values = rng.permutation(len(VALUES[attribute]))[:ways]
    names = rng.permutation(text.SEEN_NAMES)[:ways]
    parts = []
    for way in rng.integers(ways, size=num):
        rows = album.having(attribute, int(values[way]))
        parts.append((album.images[rows[rng.integers(len(rows))]], f"{BIND_PROMPT} {names[way]}"))
    return parts


def _format(rng: np.random.Generator, album: Album, num: int) -> Parts:
    attribute = text.draw_attribute(rng)
    rows = rng.integers(len(album.images), size=num)
    return [
        (
            album.images[row],
            f"{FORMAT_PROMPT} {VALUES[attribute][album.attributes[row, 0, attribute]]}",
        )
        for row in rows
    ]


def _qa(rng: np.random.Generator, album: Album, num: int) -> Parts:
    rows = rng.integers(len(album.images), size=num)
    return [
        (album.images[row], " ".join(text.question(rng, album.attributes[row]))) for row in rows
    ]
