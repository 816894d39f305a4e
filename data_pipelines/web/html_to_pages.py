"""Converts a web page in HTML to its texts and images in document order.

Keeps the title and the main body, and drops boilerplate (paper, A.3.1, after MassiveWeb).

    bytes  --html_decode-->  text  --parser-->  tree
      --one walk-->                         runs of text and pictures + spans of blocks
      --drop blocks, choose the main body-->  Page

The paper takes the text as MassiveWeb does, from groups of text at the same level of the tree, and
the images of that level. It states no rule for finding the level. Here it is the deepest element
that contains most of the text left after boilerplate is removed. An image outside of it (for
example a banner above the article) belongs to another level. An <article> or <main> on the way down
and a heading <h1> are kept whole.

Newlines separate blocks: a blank line separates paragraphs, headings, lists and tables; one newline
separates lines and items. Items start with "- " or their number, " | " separates cells, and <pre>
keeps its lines and spaces. All other white space becomes one space.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from data_pipelines.marker_removal import without_markers
from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.boilerplate import SKIPPED_TAGS, ElementKind, kind_of
from data_pipelines.web.charsets import charset_of
from data_pipelines.web.html_decode import HtmlLimits, decode_html
from data_pipelines.web.html_pictures import Attributes, picture_of
from data_pipelines.web.urls import resolve

_SEPARATORS = ("", " ", " | ", "\n", "\n\n")  # from the weakest to the strongest
_SPACE, _CELL, _LINE, _PARAGRAPH = range(1, 5)

_PARAGRAPHS = (
    "p h1 h2 h3 h4 h5 h6 ul ol dl pre blockquote table figure hr fieldset details address".split()
)
_LINES = (
    "body div section article main li dt dd tr center form header summary caption figcaption "
    "legend hgroup noscript".split()
)
# The separator of a block from its surroundings.
_BLOCKS = (
    dict.fromkeys(_PARAGRAPHS, _PARAGRAPH)
    | dict.fromkeys(_LINES, _LINE)
    | dict.fromkeys(("td", "th"), _CELL)
)
# The walk counts how many of them are open.
_STATEFUL = frozenset("a pre noscript article main li ul ol".split())
# They are never the main body, however long. Tables can be: they lay out whole pages.
_UNITS = frozenset(_PARAGRAPHS) - {"table"}
_WHOLE = frozenset("body main article".split())  # never cut for their name or their links

_MAIN_SHARE = 0.7  # smallest share of the text that the main body contains
_HEADING_GROWTH = 1.5  # largest factor by which the main body grows to include the heading
_FORM_TEXT = 500  # characters; a <form> with less is made of controls
_FEWEST_LINKS = 3  # of a block that is dropped because most of its text is in links

# They replace the spaces and newlines of <pre> while all other white space is normalised.
_PRE_SPACE, _PRE_LINE = "\ue000", "\ue001"
_TO_PRE = str.maketrans(
    {" ": _PRE_SPACE, "\n": _PRE_LINE, "\t": _PRE_SPACE * 4, "\r": None, "\f": None}
)
_FROM_PRE = str.maketrans({_PRE_SPACE: " ", _PRE_LINE: "\n"})
# Invisible characters: controls, soft hyphens, zero-width spaces, byte order marks, icons of
# private fonts. Joiners are kept, because scripts and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069"
    "\ue002-\uf8ff\ufeff\ufff9-\ufffb]"
)
_BLANK_LINES = re.compile("\n(?: *\n){2,}")


@dataclasses.dataclass
class _Block:
    """The span of runs inside one block element."""

    kind: ElementKind
    tag: str
    parent: int
    start: int
    end: int = 0


class _Image(NamedTuple):
    """An <img>. Its picture is looked up only if it is kept."""

    attributes: Attributes
    sources: Sequence[Attributes]


class _Runs:
    """What the walk has found, as flat lists in document order."""

    def __init__(self) -> None:
        self.parts: list[str | _Image] = []
        self.separators: list[int] = []  # before each part, an index of _SEPARATORS
        self.plain: list[int] = []  # characters of each part outside of links
        self.linked: list[int] = []  # and in links
        self.blocks: list[_Block] = []
        self._pending = 0  # separator before the next text
        self._prefix = ""  # "- " of an item that has no text yet

    def text(self, data: str, *, is_link: bool) -> None:
        words = data.split()
        if not words:
            self.separate(_SPACE)
            return
        if data[0].isspace():
            self.separate(_SPACE)
        text = self._prefix + " ".join(words)
        self._prefix = ""
        self._add(text, 0 if is_link else len(text), len(text) if is_link else 0)
        self._pending = _SPACE if data[-1].isspace() else 0

    def verbatim(self, data: str) -> None:
        self._add(data.translate(_TO_PRE), 0 if data.isspace() else len(data), 0)
        self._pending = 0

    def image(self, attributes: Attributes, sources: Sequence[Attributes]) -> None:
        self._add(_Image(attributes, sources), 0, 0)

    def separate(self, separator: int) -> None:
        """Requests a separator before the next text. The strongest one wins."""
        self._pending = max(self._pending, separator)

    def item(self, prefix: str) -> None:
        self._prefix = prefix

    def _add(self, part: str | _Image, plain: int, linked: int) -> None:
        self.parts.append(part)
        self.separators.append(self._pending)
        self.plain.append(plain)
        self.linked.append(linked)


def html_to_page(
    body: bytes,
    url: str,
    charset: str = "",
    limits: HtmlLimits = HtmlLimits(),  # noqa: B008
) -> Page | Reject:
    """Extracts the texts and pictures of a page.

    Args:
      body: HTML as the server sent it, unpacked; any bytes.
      url: where it was found. References are relative to it, if there is no <base>.
      charset: as the server or the archive states it; "" = not stated.
      limits: a page beyond them is rejected.

    Returns:
      The page. Its pictures have no bytes yet, except those inside the page (data: URLs). Or a
      Reject: html_too_large, html_too_deep, broken_text, or no_text for a page without text.
    """
    from selectolax.lexbor import LexborHTMLParser

    html = decode_html(body, charset, limits)
    if isinstance(html, Reject):
        return html
    parser = LexborHTMLParser(html)
    root = parser.body
    if root is None:  # a <frameset>
        return Reject("no_text", url)
    title, base = _head(parser.head)
    runs = _walk(root, limits)
    if isinstance(runs, Reject):
        return runs
    reference = functools.partial(
        resolve, base=resolve(base, url) or url, charset=charset_of(body, charset)
    )
    parts = _parts(_main_body(runs), title, reference)
    if not any(isinstance(part, str) for part in parts):
        return Reject("no_text", url)
    language = (parser.root.attributes.get("lang") or "") if parser.root else ""
    return Page(url, parts, re.split("[-_]", language.strip().lower())[0][:3])


def _head(head: Any) -> tuple[str, str]:
    """Returns the title and the href of the first <base>."""
    title = base = ""
    node = head.child if head else None
    while node is not None:
        if node.tag == "title" and not title:
            title = " ".join((node.text() or "").split())
        elif node.tag == "base" and not base:
            base = node.attributes.get("href") or ""
        node = node.next
    return title, base


def _walk(body: Any, limits: HtmlLimits) -> _Runs | Reject:
    """Walks the tree with an explicit stack: pages are deeper than Python's recursion limit."""
    runs = _Runs()
    runs.blocks.append(_Block(ElementKind.PLAIN, "body", -1, 0))
    # For each open element: its tag, its block (-1: no block), and the node that follows it.
    stack: list[tuple[str, int, Any]] = []
    node, block = body.child, 0
    links = preformatted = noscript = articles = 0
    # For each open list: the number of its last item, or -1 for a list without numbers.
    counters: list[int] = []
    sources: list[Attributes] = []  # of the open <picture>, before its <img>
    num_nodes = 0
    while True:
        if node is None:
            if not stack:
                runs.blocks[0].end = len(runs.parts)
                return runs
            tag, closed, node = stack.pop()
            if closed >= 0:
                runs.separate(_BLOCKS[tag])
                runs.blocks[closed].end = len(runs.parts)
                block = runs.blocks[closed].parent
            if tag in _STATEFUL:
                links -= tag == "a"
                preformatted -= tag == "pre"
                noscript -= tag == "noscript"
                articles -= tag in ("article", "main")
                if tag == "li":
                    runs.item("")
                elif tag in ("ul", "ol"):
                    counters.pop()
            continue
        num_nodes += 1
        if num_nodes > 4 * limits.max_nodes:
            return Reject("html_too_large", f"more than {4 * limits.max_nodes} nodes")
        tag, current, node = node.tag, node, node.next
        if tag == "-text":
            if not noscript:  # its text asks for a browser with scripts
                data = current.text_content or ""
                runs.verbatim(data) if preformatted else runs.text(data, is_link=links > 0)
            continue
        if tag == "br":
            runs.separate(_LINE)
            continue
        # A comment ("-comment") or an instruction such as <?xml ?> (no tag) is no element.
        if not tag or tag[0] == "-" or tag in SKIPPED_TAGS or (tag == "header" and not articles):
            continue
        attributes = current.attributes
        is_block = tag in _BLOCKS
        kind = kind_of(attributes, is_block=is_block)
        if kind is ElementKind.HIDDEN:
            continue
        if tag in ("picture", "source", "img"):
            inside = tag == "picture" or (current.parent and current.parent.tag == "picture")
            if tag == "source" and inside:
                sources.append(attributes)
                continue
            if tag == "img":
                runs.image(attributes, sources if inside else ())
            sources = []
            if tag != "picture":
                continue
        if tag == "a" and "href" not in attributes:
            tag = "span"  # an anchor, not a link
        opened = -1
        if is_block:
            runs.separate(_BLOCKS[tag])
            runs.blocks.append(_Block(kind, tag, block, len(runs.parts)))
            opened = block = len(runs.blocks) - 1
        if tag in _STATEFUL:
            links += tag == "a"
            preformatted += tag == "pre"
            noscript += tag == "noscript"
            articles += tag in ("article", "main")
            if tag == "li":
                is_numbered = bool(counters) and counters[-1] >= 0
                counters[-1:] = [counters[-1] + 1] if is_numbered else counters[-1:]
                runs.item(f"{counters[-1]}. " if is_numbered else "- ")
            elif tag in ("ul", "ol"):
                counters.append(0 if tag == "ol" else -1)
        stack.append((tag, opened, node))
        if len(stack) > limits.max_depth:
            detail = f"more than {limits.max_depth} elements inside each other"
            return Reject("html_too_deep", detail)
        node = current.child


def _main_body(runs: _Runs) -> list[tuple[int, str | _Image]]:
    """Cuts boilerplate and returns what is left of the main body, as (separator, part)."""
    # Of each part: characters outside of links, characters in links, whether it is in a link.
    counts = (runs.plain, runs.linked, [size > 0 for size in runs.linked])
    before = [list(itertools.accumulate(each, initial=0)) for each in counts]
    most = before[0][-1] // 2
    is_cut = bytearray(len(runs.parts))
    # Inner blocks are judged first: text cut from them no longer counts for the outer ones. In the
    # list a block comes before the blocks inside it.
    cut_inside = [(0, 0, 0)] * len(runs.blocks)
    for index in range(len(runs.blocks) - 1, 0, -1):
        block = runs.blocks[index]
        start, end = block.start, block.end
        plain, linked, links = (sums[end] - sums[start] for sums in before)
        cut_plain, cut_linked, cut_links = cut_inside[index]
        left = (plain - cut_plain, linked - cut_linked, links - cut_links)
        if start < end and _is_boilerplate(block, *left, most=most):
            is_cut[start:end] = b"\1" * (end - start)
            cut_plain, cut_linked, cut_links = plain, linked, links
        outer = cut_inside[block.parent]
        cut_inside[block.parent] = (
            outer[0] + cut_plain,
            outer[1] + cut_linked,
            outer[2] + cut_links,
        )
    kept = [0 if cut else size for cut, size in zip(is_cut, runs.plain, strict=True)]
    main = _level(runs.blocks, list(itertools.accumulate(kept, initial=0)))
    return [
        (runs.separators[i], runs.parts[i]) for i in range(main.start, main.end) if not is_cut[i]
    ]


def _is_boilerplate(block: _Block, plain: int, linked: int, num_links: int, *, most: int) -> bool:
    """Returns True if a block is to be cut.

    Args:
      block: the block.
      plain: its characters outside of links.
      linked: its characters in links.
      num_links: number of its links.
      most: half of the page's characters. A suspect block with more is kept.
    """
    if block.kind is ElementKind.FOREIGN:
        return True
    if block.tag in _WHOLE:
        return False
    if block.kind is ElementKind.SUSPECT and plain <= most:
        return True
    if block.tag == "form" and plain < _FORM_TEXT:
        return True
    return num_links >= _FEWEST_LINKS and linked > plain


def _level(blocks: list[_Block], sizes: list[int]) -> _Block:
    """Returns the main body.

    Args:
      blocks: all blocks, in document order.
      sizes: sizes[i] is the number of plain characters that are left before part i.
    """

    def size(block: _Block) -> int:
        return sizes[block.end] - sizes[block.start]

    main = heading = 0
    for index, block in enumerate(blocks[1:], 1):
        if not heading and block.tag == "h1" and size(block):
            heading = index
        is_next = (
            block.parent == main
            and (not main or blocks[main].tag not in _WHOLE)
            and block.tag not in _UNITS
        )
        if is_next and 0 < _MAIN_SHARE * sizes[-1] <= size(block):
            main = index
    wider = main
    while heading and not blocks[wider].start <= blocks[heading].start < blocks[wider].end:
        wider = blocks[wider].parent
        if size(blocks[wider]) > _HEADING_GROWTH * size(blocks[main]):
            return blocks[main]
    return blocks[wider]


def _parts(
    body: list[tuple[int, str | _Image]], title: str, resolve: Callable[[str], str]
) -> tuple[str | Picture, ...]:
    """Joins everything between two pictures to one text, and puts the title before the first."""
    parts: list[str | Picture] = []
    runs: list[str] = []

    def close() -> None:
        text = _finished("".join(runs))
        runs.clear()
        if text:
            parts.append(text)

    for separator, part in body:
        if isinstance(part, _Image):
            if picture := picture_of(part.attributes, part.sources, resolve):
                close()
                parts.append(picture)
        else:
            runs.append(_SEPARATORS[separator] + part if runs else part)
    close()
    title = _finished(title)
    first = parts[0] if parts and isinstance(parts[0], str) else ""
    heading = first.partition("\n")[0]
    # Often the heading is the title, with or without the name of the site.
    if not title or (heading in title and 3 * len(heading) >= len(title)):
        return tuple(parts)
    if first:
        return (f"{title}\n\n{first}", *parts[1:])
    return (title, *parts) if parts else ()


def _finished(text: str) -> str:
    text = _UNSEEN.sub("", text)
    text = text.translate(_FROM_PRE) if _PRE_SPACE in text or _PRE_LINE in text else text
    return without_markers(_BLANK_LINES.sub("\n\n", text).strip())
