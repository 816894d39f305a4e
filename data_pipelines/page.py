"""A web page before it becomes a record, and the reason why a page or an image is left out.

    HTML
      --html_to_pages-->  Page (Pictures named by their URL)
      --page_images-->    Page (Pictures with bytes)
      --filters-->        InterleavedPage

A filter is a pure function Page -> Page | Reject.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a page.

    Attributes:
      source: absolute URL of the image.
      data: the encoded image; b"" = not found yet.
      alt: alternative text of the page for it. Filters can use it; it is not part of the record's
        text.
      others: the same image at other URLs, the best first. The first that is found and kept is
        taken.
    """

    source: str
    data: bytes = b""
    alt: str = ""
    others: tuple[Picture, ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """One web page: its texts and pictures in document order (paper, A.3.1).

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
        """All texts in order, separated by newlines."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclasses.dataclass(frozen=True)
class Reject:
    """Why something was left out.

    Attributes:
      reason: what it is counted as: lower case words joined by "_", for example "too_few_words".
      detail: what was found. The report shows it for the first few of each reason.
      unit: what was left out: a whole record; an image of a record that is kept without it; or a
        file that is no part of any record, with its suffix or media type as the reason.
      broken: True if the input was damaged (truncated, not decodable, missing), not only unwanted.
        Too large a share of damaged records stops a run.
    """

    reason: str
    detail: str = ""
    unit: Literal["record", "image", "file"] = "record"
    broken: bool = False
