"""Decodes the bytes of a web page to text that is safe to parse.

Rejects pages that would be too expensive. On some inputs the time or memory
of an HTML parser grows with the square of the input: many nested blocks, many open formatting
elements (each paragraph opens all of them again), many attributes of one element. So the cost of a
page is estimated first, in one pass over its tags.
"""

from __future__ import annotations

import dataclasses
import re

from data_pipelines.page import Reject
from data_pipelines.web.charsets import charset_of, decode

_TAG = re.compile(r"<(/?[a-zA-Z][^\s/>]{0,30})")
_LONG_TAG = re.compile(r"<[a-zA-Z][^<]{16384,}")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_NEVER_DEEP = frozenset(  # void, closed by the next element, or drawings that close themselves
    "area base br col embed hr img input link meta param source track wbr frame keygen html head "
    "body p li dt dd tr td th thead tbody tfoot option optgroup colgroup rb rt rp path circle rect "
    "line use polygon polyline ellipse stop image animate".split()
)
_FORMATTING = frozenset("b big code em font i s small strike strong tt u".split())
_STACK_PER_DEPTH = 4  # elements that close themselves with "/>" are counted as open


@dataclasses.dataclass(frozen=True)
class HtmlLimits:
    """Limits of a page.

    Attributes:
      max_bytes: of the page as the server sent it, unpacked.
      max_depth: of nested elements.
      max_nodes: elements of the page.
      max_attributes: of one element.
      max_broken: largest share of characters that are not in the charset; a few are common.
    """

    max_bytes: int = 10_000_000
    max_depth: int = 1_000
    max_nodes: int = 200_000
    max_attributes: int = 1_000
    max_broken: float = 0.01


def decode_html(body: bytes, charset: str = "", limits: HtmlLimits = HtmlLimits()) -> str | Reject:
    """Decodes a page, and rejects pages that would be too expensive to parse.

    `charset_of` says which charset it is read in.

    Args:
      body: the page as the server sent it, unpacked.
      charset: as the server or the archive states it; an unknown one is ignored.
      limits: of size and structure.

    Returns:
      The text, or a Reject for html_too_large, html_too_deep or broken_text.
    """
    if len(body) > limits.max_bytes:
        return Reject("html_too_large", f"{len(body)} bytes or more, at most {limits.max_bytes}")
    text = decode(body, charset_of(body, charset))
    broken = text.count("\ufffd")
    if broken > limits.max_broken * len(text):
        detail = f"{broken} of {len(text)} characters are not in the page's charset {charset!r}"
        return Reject("broken_text", detail, broken=True)
    return _bomb(text, limits) or text


def _bomb(text: str, limits: HtmlLimits) -> Reject | None:
    tags = _TAG.findall(text)
    if len(tags) > 2 * limits.max_nodes:
        return Reject("html_too_large", f"{len(tags)} tags, at most {2 * limits.max_nodes}")
    depth = formatting = nodes = 0
    deepest = _STACK_PER_DEPTH * limits.max_depth
    for tag in tags:
        name = tag.lower()
        if name[0] != "/":
            nodes += 1 + formatting
            if name in _NEVER_DEEP:
                continue
            depth += 1
            formatting += name in _FORMATTING
            if depth > deepest:
                return Reject("html_too_deep", f"more than {deepest} elements are open at once")
        elif name[1:] not in _NEVER_DEEP:
            depth -= depth > 0
            formatting -= formatting > 0 and name[1:] in _FORMATTING
    if nodes > limits.max_nodes:
        return Reject("html_too_large", f"about {nodes} elements, at most {limits.max_nodes}")
    for long_tag in _LONG_TAG.finditer(text):
        inside = _QUOTED.sub(" ", long_tag.group()).partition(">")[0]
        if (count := len(inside.replace("/", " ").split())) > limits.max_attributes:
            detail = f"an element with {count} attributes, at most {limits.max_attributes}"
            return Reject("html_too_large", detail)
    return None
