"""Interleaved pages of the synthetic world, from which a Flamingo learns to learn in context.

    binding  image "this is a dax" image "this is a blick" image "this is a dax" ...
             Made-up names for the values of an attribute; each page draws other names.
    format   image "output : red" image "output : green" ...
             The attribute that is asked for is known only from the context.
    qa       image "question : what colour is the circle ? answer : red" image ...
             Each picture shows two objects.

The loader puts `<image>` before each text and `<EOC>` after it. Only the 48 seen names are used:
the twelve new names are for evaluation.

A page has 8 pictures, one with questions 4. Where pages may have more, each draws its own number,
so that a model learns from few examples and from many.
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
# 8 * 6 + 2 tokens. A question has 13 tokens: 4 * 13 + 2.
PICTURES_PER_PAGE = {"binding": 8, "format": 8, "qa": 4}
LEAST_PICTURES = 8


@dataclasses.dataclass(frozen=True)
class PageMix:
    """Shares of the kinds of pages."""

    binding: float = 0.6
    format: float = 0.2
    qa: float = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Album:
    """Encoded pictures, indexed by what they show.

    Attributes:
      attributes: int[M, O, 3] indices into COLOURS, SHAPES and SIZES.
      images: the encoded pictures, in the same order.
    """

    attributes: Int[np.ndarray, "M O 3"]
    images: tuple[bytes, ...]

    @classmethod
    def draw(cls, seed: int, pool: str, num: int) -> Album:
        """Returns the first `num` pictures of a pool of `scenes.POOLS`."""
        attributes, images = zip(*scenes.iterate(seed, pool, num), strict=True)
        return cls(np.stack(attributes), images)

    def having(self, attribute: int, value: int) -> Int[np.ndarray, "k"]:
        """Returns the indices of the pictures with this value in their (first) object."""
        return self._index[attribute][value]

    @functools.cached_property
    def _index(self) -> list[list[np.ndarray]]:
        index: list[list[np.ndarray]] = []
        for attribute, values in enumerate(VALUES):
            shown = self.attributes[:, 0, attribute]
            index.append([np.flatnonzero(shown == value) for value in range(len(values))])
            missing = [name for name, rows in zip(values, index[-1], strict=True) if not len(rows)]
            if missing:
                raise ValueError(
                    f"An album of {len(self.images)} pictures shows no {missing[0]!r}, expected "
                    "each value at least once: draw more pictures."
                )
        return index


def page(
    seed: int,
    stream: str,
    index: int,
    *,
    one: Album,
    two: Album,
    mix: PageMix,
    most: int = LEAST_PICTURES,
) -> InterleavedPage:
    """Returns page `index` of a stream.

    Args:
      seed: of the world.
      stream: name of the split; pages of different streams are independent.
      index: number of the page.
      one: pictures of one object, for binding and format pages.
      two: pictures of two objects, for question pages.
      mix: the share of each kind of page.
      most: the most pictures of a page, at least 8. With more, the number of each page is uniform
          from 8 to `most`, and half of that (rounded down) for questions, which are longer.
    """
    rng = generator(seed, f"{stream}/pages", index)
    kind = text.choose_kind(rng, mix)
    num = PICTURES_PER_PAGE[kind]
    if most > LEAST_PICTURES:
        drawn = int(rng.integers(LEAST_PICTURES, most + 1))
        num = drawn * num // LEAST_PICTURES
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
    answers = [VALUES[attribute][album.attributes[row, 0, attribute]] for row in rows]
    return [
        (album.images[row], f"{FORMAT_PROMPT} {answer}")
        for row, answer in zip(rows, answers, strict=True)
    ]


def _qa(rng: np.random.Generator, album: Album, num: int) -> Parts:
    rows = rng.integers(len(album.images), size=num)
    questions = [" ".join(text.question(rng, album.attributes[row])) for row in rows]
    return [(album.images[row], question) for row, question in zip(rows, questions, strict=True)]
