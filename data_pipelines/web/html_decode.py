"""Decodes the bytes of a web page to text that is safe to parse.

Finds the charset, and rejects pages that would be too expensive. On some inputs the time or memory
of an HTML parser grows with the square of the input: many nested blocks, many open formatting
elements (each paragraph opens all of them again), many attributes of one element. So the cost of a
page is estimated first, in one pass over its tags.

Labels of charsets are Python's, not the WHATWG's (webencodings), which lack names such as cp932,
latin_1 and mac-greek.
"""

from __future__ import annotations

import codecs
import dataclasses
import re

from data_pipelines.page import Reject

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META = re.compile(rb"<meta\s[^>]{0,500}?charset\s*=\s*(?:[\"']\s*)?([\w.:-]{1,40})", re.IGNORECASE)
_META_WITHIN = 4096  # bytes; browsers search 1,024, but some pages put it after scripts
# Where servers state Latin-1 or Shift JIS, browsers read the larger set of Windows, and pages rely
# on this.
_READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
}
_FAMILIES = (
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "koi8",
    "iso8859",
    "cp125",
    "cp874",
    "mac-",
    "big5",
    "euc_",
)
_CODECS = (*_FAMILIES, "shift_jis", "cp932", "cp949", "gb18030", "iso2022_jp")

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

    The charset is that of a byte order mark, else `charset`, else that of a <meta>, else UTF-8 if
    the page is valid UTF-8, else windows-1252.

    Args:
      body: the page as the server sent it, unpacked.
      charset: as the server or the archive states it; an unknown one is ignored.
      limits: of size and structure.

    Returns:
      The text, or a Reject for html_too_large, html_too_deep or broken_text.
    """
    if len(body) > limits.max_bytes:
        return Reject("html_too_large", f"{len(body)} bytes or more, at most {limits.max_bytes}")
    text = _decode(body, charset)
    broken = text.count("\ufffd")
    if broken > limits.max_broken * len(text):
        detail = f"{broken} of {len(text)} characters are not in the page's charset {charset!r}"
        return Reject("broken_text", detail, broken=True)
    return _bomb(text, limits) or text


def _decode(body: bytes, charset: str) -> str:
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    meta = _META.search(body, 0, _META_WITHIN)
    for label in (charset, meta.group(1).decode("ascii", "replace") if meta else ""):
        if name := _codec(label):
            # A page with a <meta> that can be read as ASCII is not in UTF-16, whatever it states.
            return body.decode("utf-8" if meta and name.startswith("utf-16") else name, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        # Text that is UTF-8 up to a cut or damaged character is UTF-8, not Latin-1.
        is_mostly_utf8 = not body[: error.start].isascii()
        return body.decode("utf-8" if is_mostly_utf8 else "cp1252", "replace")


def _codec(label: str) -> str:
    """Returns Python's name of a charset, or "" for an unknown one or one that no page is read in.

    Some of Python's codecs decompress, or take very long.
    """
    try:
        name = codecs.lookup(label.strip().strip("\"'")).name if label else ""
    except (LookupError, ValueError):
        return ""
    name = _READ_AS.get(name, name)
    return name if name.startswith(_CODECS) else ""


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
