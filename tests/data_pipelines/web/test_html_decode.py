"""Decoding the bytes of a page: charsets, damage and bombs."""

import codecs

import pytest

from data_pipelines.page import Reject
from data_pipelines.web.html_decode import HtmlLimits, decode_html

JAPANESE = "<p>日本語の文章です。港は二つの丘の間にあります。</p>"
FRENCH = "<p>Le café près de la forêt où l’été dure – « déjà »</p>"


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        (JAPANESE.encode(), ""),
        (JAPANESE.encode(), "UTF-8"),
        (codecs.BOM_UTF8 + JAPANESE.encode(), "iso-8859-1"),
        (JAPANESE.encode("shift_jis"), "Shift_JIS"),
        (JAPANESE.encode("euc_jp"), "EUC-JP"),
        (JAPANESE.encode("iso2022_jp"), "iso-2022-jp"),
        (codecs.BOM_UTF16_LE + JAPANESE.encode("utf-16-le"), ""),
        (codecs.BOM_UTF16_BE + JAPANESE.encode("utf-16-be"), ""),
        (JAPANESE.encode(), "no-such-charset"),
        (JAPANESE.encode(), "zlib"),
        (JAPANESE.encode(), "unicode_escape"),
        (JAPANESE.encode(), "utf-8\0"),
    ],
)
def test_charset_of_the_server_or_the_content(body, charset):
    assert decode_html(body, charset) == JAPANESE


@pytest.mark.parametrize(
    "meta",
    [
        '<meta charset="{}">',
        "<META CHARSET={}>",
        '<meta http-equiv="Content-Type" content="text/html; charset={}">',
        "<meta http-equiv=content-type content='text/html;charset={}'/>",
    ],
)
@pytest.mark.parametrize("charset", ["Shift_JIS", "euc-jp", "utf-8", "gb18030"])
def test_charset_of_the_page(meta, charset):
    html = f"<head>{meta.format(charset)}</head>{JAPANESE}"
    assert decode_html(html.encode(charset)) == html


def test_server_goes_before_the_page():
    html = f'<meta charset="iso-8859-1">{JAPANESE}'
    assert decode_html(html.encode(), "utf-8") == html


@pytest.mark.parametrize("charset", ["", "iso-8859-1", "latin1", "ascii", "windows-1252"])
def test_latin_1_is_read_as_windows_1252(charset):
    assert decode_html(FRENCH.encode("cp1252"), charset) == FRENCH


def test_page_that_says_utf_16_in_ascii_is_not():
    html = '<meta charset="utf-16"><p>plain</p>'
    assert decode_html(html.encode()) == html


def test_a_few_broken_characters_are_accepted():
    body = b"<p>" + b"word " * 100 + "\u65e5".encode() + b"\xe6\x97</p>"
    assert decode_html(body).count("\ufffd") == 1


def test_broken_utf_8_is_damage():
    damaged = JAPANESE.encode().replace(b"\xe3\x81", b"\xe3")
    for charset in ("utf-8", ""):
        found = decode_html(damaged, charset)
        assert isinstance(found, Reject)
        assert (found.reason, found.broken) == ("broken_text", True)


def test_share_of_broken_characters_at_the_limit():
    limits = HtmlLimits(max_broken=0.1)
    assert decode_html(b"123456789\xff", "utf-8", limits) == "123456789\ufffd"
    assert decode_html(b"12345678\xff", "utf-8", limits).reason == "broken_text"


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<div>" * 100_000, "html_too_deep"),
        ("<DIV class=x>" * 100_000, "html_too_deep"),
        ("<x-y>" * 100_000 + "</x-z>" * 100_000, "html_too_deep"),
        ("<br>" * 200_001, "html_too_large"),
        ("</p>" * 500_000, "html_too_large"),
        # A parser would make 9 million elements of it.
        ("".join(f"<b a={i}><p>" for i in range(3_000)), "html_too_large"),
        ("<div " + " ".join(f"a{i}" for i in range(100_000)) + ">", "html_too_large"),
        ("<div " + "/".join(f"a{i}='>'" for i in range(100_000)), "html_too_large"),
        ("x" * 10_000_001, "html_too_large"),
    ],
    ids=[
        "div",
        "DIV",
        "end tags",
        "void",
        "closing",
        "formatting",
        "attributes",
        "quoted",
        "bytes",
    ],
)
def test_bombs_are_rejected_before_parsing(html, reason):
    found = decode_html(html.encode(), "utf-8")
    assert isinstance(found, Reject)
    assert (found.reason, found.broken) == (reason, False)


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 900 + "</div>" * 900,
        "<p>" * 50_000,
        "<tr><td>" * 20_000,
        "<b>x</b>" * 50_000,
        "<svg>" + "<path d='M0'/>" * 50_000 + "</svg>",
        "<img src='data:image/png;base64," + "iVBO/Rw0" * 100_000 + "'>",
        "<pre>" + "don't stop " * 100_000,
        "x" * 10_000_000,
    ],
    ids=["deep", "paragraphs", "rows", "formatting", "drawing", "inline image", "text", "bytes"],
)
def test_large_pages_that_are_cheap_to_parse_are_decoded(html):
    assert decode_html(html.encode()) == html
