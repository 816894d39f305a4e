"""Bytes of a web page to text that is safe to parse: the right charset, and no bomb.

A parser of HTML takes time or memory that grows with the square of its input on some inputs: many
nested blocks, many open formatting elements (each paragraph opens them all again), many attributes
of one element. So what a page would cost is estimated first, in one pass over its tags.

Labels of charsets are Python's, not the WHATWG's (webencodings): those lack names such as cp932,
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
_META = re.compile(rb"<meta\s[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_META_WITHIN = 4096  # bytes; browsers look at 1,024, but pages put it behind scripts
# What servers call Latin-1 or Shift JIS, browsers read as the larger set that Windows made of it,
# and pages count on it.
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
_NEVER_DEEP = frozenset(  # void, closed by what follows, or drawings that close themselves
    "area base br col embed hr img input link meta param source track wbr frame keygen html head "
    "body p li dt dd tr td th thead tbody tfoot option optgroup colgroup rb rt rp path circle rect "
    "line use polygon polyline ellipse stop image animate".split()
)
_FORMATTING = frozenset("b big code em font i s small strike strong tt u".split())
_STACK_PER_DEPTH = 4  # elements that close themselves with "/>" are counted as open


@dataclasses.dataclass(frozen=True)
class HtmlLimits:
    """What a page may cost.

    Attributes:
      max_bytes: of the page as it was sent, unpacked.
      max_depth: of nested elements.
      max_nodes: elements of the page.
      max_attributes: of one element.
      max_broken: largest share of characters that the charset does not know; a few are common.
    """

    max_bytes: int = 10_000_000
    max_depth: int = 1_000
    max_nodes: int = 200_000
    max_attributes: int = 1_000
    max_broken: float = 0.01


def decode_html(body: bytes, charset: str = "", limits: HtmlLimits = HtmlLimits()) -> str | Reject:
    """Decodes a page and refuses bombs.

    The charset is that of a byte order mark, else `charset`, else what a <meta> says, else UTF-8 if
    the page is that, else windows-1252.

    Args:
      body: the page as it was sent, unpacked.
      charset: what the server or the archive says; one that is unknown counts as none.
      limits: of size and structure.

    Returns:
      The text, or a Reject for html_too_large, html_too_deep or broken_text.
    """
    if len(body) > limits.max_bytes:
        return Reject("html_too_large", f"{len(body)} bytes or more, at most {limits.max_bytes}")
    text = _decode(body, charset)
    broken = text.count("\ufffd")
    if broken > limits.max_broken * len(text):
        return Reject(
            "broken_text",
            f"{broken} of {len(text)} characters are not in the page's charset {charset!r}",
            broken=True,
        )
    return _bomb(text, limits) or text


def _decode(body: bytes, charset: str) -> str:
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    meta = _META.search(body, 0, _META_WITHIN)
    for label in (charset, meta.group(1).decode("ascii", "replace") if meta else ""):
        if name := _codec(label):
            # A page whose meta can be read byte by byte is not in UTF-16, whatever it says.
            return body.decode("utf-8" if meta and name.startswith("utf-16") else name, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        # A cut or damaged character in text that is UTF-8 up to there does not make it Latin-1.
        is_mostly_utf8 = not body[: error.start].isascii()
        return body.decode("utf-8" if is_mostly_utf8 else "cp1252", "replace")


def _codec(label: str) -> str:
    """Python's name of a charset; "" for one that is unknown, or that no page should be read in.

    There are codecs that unpack, or take forever.
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
            return Reject(
                "html_too_large",
                f"an element with {count} attributes, at most {limits.max_attributes}",
            )
    return None
