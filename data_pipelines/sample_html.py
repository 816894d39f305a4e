"""The page of samples as HTML: each token on the colour of the image that it attends.

    +-- row 17 ------------------------- attends the next image -- 2 images -- 61 of 256 tokens --+
    |  [1: red frame]  [2: blue frame]                                                            |
    |  <BOS>| 1 A dog in the| ... |<EOC>| 2 <image>| ...                      + 195 of padding    |
    +---------------------------------------------------------------------------------------------+

Whatever the page shows lies beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from flamingo_jax.core.html_page import document, escape

# Of the images of a row, in order; text on a tint of them stays readable. Rows of more images go round the colour circle.
_HUES = (352, 210, 130, 36, 276)
_SMALL, _LARGE = (
    96,
    200,
)  # pixels: smaller images are shown this large, larger ones this small; a click shows them as they are
_FRAME = 96  # pixels: each frame of a video

_STYLE = """
.legend { margin: 0 0 22px; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 6px 18px; font-size: 13px; }
.media { display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 12px; }
figure { margin: 0; border: 3px solid; border-radius: 6px; overflow: hidden; max-width: 100%; }
figure .frames { display: flex; flex-wrap: wrap; gap: 2px; justify-content: center; }
figure img { display: block; }
figcaption { font-size: 12px; padding: 1px 7px; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }
.t { unicode-bidi: isolate; padding: 2px 0; border-right: 1px solid #fff; }
.new { font-weight: 600; }
.w0 { outline: 1px dashed #8795a1; outline-offset: -2px; opacity: .62; }
.phi, .segment { font-size: 11px; font-weight: 700; padding: 1px 5px; margin: 0 1px 0 3px; border-radius: 4px; color: #fff; }
.segment { background: #22303c; }
.weight, .padding { font-size: 11px; color: #5b6b78; }
.metadata { margin: 8px 0 0; font-size: 12px; color: #5b6b78; overflow-wrap: anywhere; }
.padding { margin-left: 10px; white-space: nowrap; }
""".strip()


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
class Sample:
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


def render(title: str, made: str, facts: Mapping[str, str], samples: Sequence[Sample]) -> str:
    """Returns the whole page.

    Args:
      title: its headline.
      made: one line on where the samples come from.
      facts: name -> value, shown on top.
      samples: the rows.
    """
    colours = max([len(sample.visuals) for sample in samples], default=0)
    body = "\n".join([_legend(colours), *map(_article, samples)])
    return document(title, made, facts, body, style=f"{_STYLE}\n{_colours(colours)}", images="'self' file:")


def hue(number: int) -> float:
    """The colour of the `number`-th image of a row (from 1 on), in degrees of the colour circle."""
    return _HUES[number - 1] if number <= len(_HUES) else round(number * 137.508 % 360, 1)


def _colours(num: int) -> str:
    """The rules of classes p0 (attends nothing) to p`num`: `.t` a tint, `.phi` and frames the colour itself."""
    rules = [".t.p0 { background: #e3e8ec; } .phi.p0 { background: #8795a1; }"]
    for number in range(1, num + 1):
        strong, tint = f"hsl({hue(number)} 62% 40%)", f"hsl({hue(number)} 80% 89%)"
        rules.append(
            f".t.p{number} {{ background: {tint}; }} .phi.p{number} {{ background: {strong}; }} "
            f"figure.p{number} {{ border-color: {strong}; }} figure.p{number} figcaption {{ background: {tint}; }}"
        )
    return "\n".join(rules)


def _legend(num: int) -> str:
    images = "".join(
        f'<li><span class="phi p{k}">{k}</span> <span class="t p{k}">attends image {k}</span></li>'
        for k in range(1, num + 1)
    )
    return (
        '<ul class="legend">'
        f'<li><span class="phi p0">0</span> <span class="t p0">attends no image</span></li>{images}'
        '<li><span class="t p0 w0">not predicted (loss weight 0)</span></li>'
        '<li><span class="t p0 new">&lt;BOS&gt;</span> one token by its name</li>'
        '<li><span class="segment">2</span> another document begins</li>'
        "<li>a white line parts two tokens; ↵ is a line break</li></ul>"
    )


def _article(sample: Sample) -> str:
    direction = (f"text attends the {sample.attends} image",) if sample.attends else ()
    notes = "".join(f"<span>{escape(note)}</span>" for note in (*sample.notes, *direction))
    media = "".join(_figure(k, visual, sample) for k, visual in enumerate(sample.visuals, start=1))
    padding = f'<span class="padding">+ {sample.padding} of padding</span>' if sample.padding else ""
    metadata = f'<div class="metadata">{escape(sample.metadata)}</div>\n' if sample.metadata else ""
    return (
        f"<article>\n<h2>{escape(sample.title)} {notes}</h2>\n"
        + (f'<div class="media">\n{media}</div>\n' if media else "")
        + f'<div class="tokens">{_tokens(sample.tokens)}{padding}</div>\n{metadata}</article>'
    )


def _figure(number: int, visual: Visual, sample: Sample) -> str:
    attended = sum(token.phi == number for token in sample.tokens)
    shown = _FRAME if len(visual.frames) > 1 else min(max(visual.side, _SMALL), _LARGE)
    small = ' class="small"' if visual.side < shown else ""
    frames = "".join(
        f'<a href="{escape(file)}"><img src="{escape(file)}" width="{shown}" height="{shown}"{small} '
        f'alt="image {number}, frame {place}"></a>'
        for place, file in enumerate(visual.frames, start=1)
    )
    length = f" · {len(visual.frames)} frames" if len(visual.frames) > 1 else ""
    caption = f"<b>{number}</b> · {attended} tokens{length}"
    return f'<figure class="p{number}"><div class="frames">{frames}</div><figcaption>{caption}</figcaption></figure>\n'


def _tokens(tokens: Sequence[Token]) -> str:
    written, phi, segment = [], -1, 1
    for token in tokens:
        if token.segment != segment:
            segment = token.segment
            written.append(f'<span class="segment">{segment}</span>')
        if token.phi != phi:
            phi = token.phi
            written.append(f'<span class="phi p{phi}">{phi}</span>')
        classes = f"t p{phi}" + (" new" if token.is_new else "") + (" w0" if token.weight == 0 else "")
        written.append(f'<span class="{classes}">{escape(token.text)}</span>')
        if token.weight not in (0, 1):
            written.append(f'<sub class="weight">{token.weight:g}</sub>')
    return "".join(written)
