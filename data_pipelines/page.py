"""A web page on its way to a record, and what a step says of a page or an image that it cannot use.

    HTML  --html_to_pages-->  Page (Pictures named by their URL)  --page_images-->  Page (with bytes)  --filters-->  InterleavedPage

A filter is a pure function Page -> Page | Reject.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a page.

    Attributes:
      source: absolute URL that the page refers to.
      data: the encoded image; b"" = not found yet.
      alt: the text that the page gives for it; kept for filters, no part of the record's text.
    """

    source: str
    data: bytes = b""
    alt: str = ""


@dataclasses.dataclass(frozen=True)
class Page:
    """One web page: its texts and pictures in document order (paper: A.3.1).

    Attributes:
      url: where it was found.
      parts: texts (str, paragraphs separated by newlines) and pictures.
      language: ISO 639-1 code, as the server or the page states it; "" = not stated.
    """

    url: str
    parts: tuple[str | Picture, ...]
    language: str = ""

    @property
    def text(self) -> str:
        """All texts, one after the other, each on lines of its own."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures alone, in order."""
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclasses.dataclass(frozen=True)
class Reject:
    """Why something was left out.

    Attributes:
      reason: what it is counted under: lower case words joined by "_", such as "too_few_words".
      detail: what was found, for the first few of each reason in the report.
      unit: what was left out: a whole record, or an image of a record that goes on without it.
      broken: whether the input was damaged (truncated, not decodable, missing), not merely
          unwanted. Too large a share of damaged records stops a run.
    """

    reason: str
    detail: str = ""
    unit: Literal["record", "image"] = "record"
    broken: bool = False
