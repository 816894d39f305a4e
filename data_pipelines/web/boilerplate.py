"""Recognises elements of a web page that are not its content, by tag, role, style, class and id."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping


class ElementKind(enum.IntEnum):
    """What the opening tag of an element says about it."""

    PLAIN = 0
    # Named like boilerplate. Kept if it has most of the page: some themes name whole pages so.
    SUSPECT = 1
    FOREIGN = 2  # text by other people: reader comments
    HIDDEN = 3


# Their text and images are not read. <form> is not one of them, since some servers wrap a whole
# page in one.
SKIPPED_TAGS = frozenset(
    "script style template iframe object embed applet video audio canvas svg math map button "
    "select textarea nav footer aside dialog menu meter progress datalist frameset noframes head "
    "rp".split()
)
SKIPPED_ROLES = frozenset(
    "navigation banner contentinfo complementary search menu menubar dialog alertdialog toolbar "
    "tablist".split()
)

_SUSPECT = (
    "ad ads advert adverts advertisement advertising adsense breadcrumb breadcrumbs byline consent "
    "cookie cookies copyright disclaimer footer gdpr login masthead menu modal nav navbar "
    "navigation newsletter outbrain pagination pager paywall popup promo promotion recommended "
    "recommendations related share sharing sharedaddy shareaholic sidebar signup social sponsor "
    "sponsored subscribe subscription taboola tags toc toolbar topbar tracking trending"
)
_FOREIGN = frozenset(
    "comments comment-list commentlist comments-area comments-section comment-section disqus "
    "disqus_thread respond comment-respond".split()
)
_HIDDEN = frozenset(
    "hidden hide sr-only visually-hidden visuallyhidden screen-reader-text screen-reader "
    "d-none".split()
)
_NO_DISPLAY = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)


def _as_word(words: str) -> re.Pattern[str]:
    """Matches a word as a part of a name.

    For example in "site-footer", "footer_2" and "siteFooter", but not in "goalfooterless" or
    "shared".
    """
    lower, title = "|".join(words.split()), "|".join(word.capitalize() for word in words.split())
    upper = "|".join(word.upper() for word in words.split())
    return re.compile(f"(?:(?<![a-zA-Z])(?:{lower}|{upper})|(?<![A-Z])(?:{title}))(?![a-z])")


_SUSPECT_NAME = _as_word(_SUSPECT)


def kind_of(attributes: Mapping[str, str | None], *, is_block: bool) -> ElementKind:
    """Judges an element.

    Args:
      attributes: of its tag; None: an attribute without a value.
      is_block: True for an element that is more than a span of text; only blocks are judged by
        name.
    """
    if not attributes:
        return ElementKind.PLAIN
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return ElementKind.HIDDEN
    if (style := attributes.get("style")) and _NO_DISPLAY.search(style):
        return ElementKind.HIDDEN
    classes = attributes.get("class") or ""
    names = classes.split()
    if not _HIDDEN.isdisjoint(names):
        return ElementKind.HIDDEN
    if not is_block:
        return ElementKind.PLAIN
    if attributes.get("role") in SKIPPED_ROLES:
        return ElementKind.SUSPECT
    identity = attributes.get("id") or ""
    if identity in _FOREIGN or not _FOREIGN.isdisjoint(names):
        return ElementKind.FOREIGN
    if (classes and _SUSPECT_NAME.search(classes)) or (identity and _SUSPECT_NAME.search(identity)):
        return ElementKind.SUSPECT
    return ElementKind.PLAIN
