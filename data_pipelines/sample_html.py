"""The page of samples as HTML: each token has the colour of the image that it attends.

    +-- row 17 ------------------------- attends the next image -- 2 images -- 61 of 256 tokens --+
    |  [1: red frame]  [2: blue frame]                                                            |
    |  <BOS>| 1 A dog in the| ... |<EOC>| 2 <image>| ...                      + 195 of padding    |
    +---------------------------------------------------------------------------------------------+

The files that the page shows are in folders next to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from flamingo_jax.core.html_page import template

# Colours of the images of a row, in order. Text on a tint of them is readable. Rows with more
# images continue around the colour circle.
_HUES = (352, 210, 130, 36, 276)
# Pixels: smaller images are enlarged to the first, larger ones are reduced to the second. A click
# shows an image at its size.
_SMALL, _LARGE = 96, 200
_FRAME = 96  # pixels: each frame of a video


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of a row.

    Attributes:
      text: the text of the token.
      phi: number of the image that it attends, from 1; 0 = no image.
      weight: loss weight of predicting it.
      segment: number of its document, from 1.
      is_new: True for <BOS>, <EOS> and the new tokens, which are shown by name.
    """

    text: str
    phi: int
    weight: float
    segment: int
    is_new: bool


@dataclasses.dataclass(frozen=True)
class Visual:
    """One visual input of a row.

    Attributes:
      frames: the files of its frames, relative to the page.
      side: of the square frames, in pixels.
    """

    frames: tuple[str, ...]
    side: int


@dataclasses.dataclass(frozen=True)
class SampleRow:
    """One row of a batch, ready to be shown.

    Attributes:
      title: name of the row.
      notes: further remarks.
      tokens: without the padding.
      visuals: visuals[k - 1] is image number k of `Token.phi`.
      padding: number of padding tokens that follow.
      attends: which image the texts of a page attend; "" = the row does not show it.
      metadata: of the record.
    """

    title: str
    notes: tuple[str, ...]
    tokens: tuple[Token, ...]
    visuals: tuple[Visual, ...]
    padding: int
    attends: Literal["", "previous", "next"] = ""
    metadata: str = ""


class _Figure(NamedTuple):
    frames: tuple[str, ...]
    side: int  # pixels, as shown
    is_small: bool  # shown enlarged
    attended: int  # number of tokens that attend it


def render(title: str, made: str, facts: Mapping[str, str], samples: Sequence[SampleRow]) -> str:
    """Returns the whole page.

    Args:
      title: headline.
      made: one line on where the samples come from.
      facts: name -> value, shown at the top.
      samples: the rows.
    """
    images = max([len(sample.visuals) for sample in samples], default=0)
    return template(__file__).render(
        title=title,
        made=made,
        facts=facts,
        articles=[(sample, _figures(sample), _tokens(sample.tokens)) for sample in samples],
        hues=[hue(number) for number in range(1, images + 1)],
    )


def hue(number: int) -> float:
    """Returns the colour of image `number` of a row (from 1), in degrees of the colour circle."""
    return _HUES[number - 1] if number <= len(_HUES) else round(number * 137.508 % 360, 1)


def _figures(sample: SampleRow) -> list[_Figure]:
    figures = []
    for number, visual in enumerate(sample.visuals, start=1):
        attended = sum(token.phi == number for token in sample.tokens)
        side = _FRAME if len(visual.frames) > 1 else min(max(visual.side, _SMALL), _LARGE)
        figures.append(_Figure(visual.frames, side, visual.side < side, attended))
    return figures


def _tokens(tokens: Sequence[Token]) -> Iterator[tuple[Token, bool, bool]]:
    """Yields (token, whether it begins another document, whether it attends another image)."""
    phi, segment = -1, 1
    for token in tokens:
        yield token, token.segment != segment, token.phi != phi
        phi, segment = token.phi, token.segment
