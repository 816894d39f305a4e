"""The page of samples as HTML: each token on the colour of the image that it attends.

    +-- row 17 ------------------------- attends the next image -- 2 images -- 61 of 256 tokens --+
    |  [1: red frame]  [2: blue frame]                                                            |
    |  <BOS>| 1 A dog in the| ... |<EOC>| 2 <image>| ...                      + 195 of padding    |
    +---------------------------------------------------------------------------------------------+

Whatever the page shows lies beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from flamingo_jax.core.html_page import template

# Of the images of a row, in order; text on a tint of them stays readable. Rows of more images go
# round the colour circle.
_HUES = (352, 210, 130, 36, 276)
# Pixels: smaller images are shown this large, larger ones this small; a click shows them as they
# are.
_SMALL, _LARGE = 96, 200
_FRAME = 96  # pixels: each frame of a video


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of a row.

    Attributes:
      text: what it stands for.
      phi: the image that it attends, from 1 on; 0 = none.
      weight: of predicting it.
      segment: the document that it belongs to, from 1 on.
      is_new: whether it is one of <BOS>, <EOS> and the new tokens, whose text is their name.
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
      title: what it is called.
      notes: what else there is to say of it.
      tokens: without the padding.
      visuals: number k of `Token.phi` is visuals[k - 1].
      padding: how many tokens of padding follow.
      attends: which image the texts of a page attend; "" = the row does not tell.
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
    is_small: bool  # enlarged
    attended: int  # by this many tokens


def render(title: str, made: str, facts: Mapping[str, str], samples: Sequence[SampleRow]) -> str:
    """Returns the whole page.

    Args:
      title: its headline.
      made: one line on where the samples come from.
      facts: name -> value, shown on top.
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
    """The colour of the `number`-th image of a row (from 1 on), in degrees of the colour circle."""
    return _HUES[number - 1] if number <= len(_HUES) else round(number * 137.508 % 360, 1)


def _figures(sample: SampleRow) -> list[_Figure]:
    figures = []
    for number, visual in enumerate(sample.visuals, start=1):
        attended = sum(token.phi == number for token in sample.tokens)
        side = _FRAME if len(visual.frames) > 1 else min(max(visual.side, _SMALL), _LARGE)
        figures.append(_Figure(visual.frames, side, visual.side < side, attended))
    return figures


def _tokens(tokens: Sequence[Token]) -> Iterator[tuple[Token, bool, bool]]:
    """Yields each token, whether another document begins with it, and whether it attends another image than the one before."""
    phi, segment = -1, 1
    for token in tokens:
        yield token, token.segment != segment, token.phi != phi
        phi, segment = token.phi, token.segment
