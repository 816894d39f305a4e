"""The time of each function that reads untrusted text, for texts of n and 2n characters.

A function with a first argument of type str or bytes in one of MODULES must be in CASES, so that a
new one is not forgotten. tests/test_growth.py times the regular expressions.
"""

import contextlib
import gzip
import importlib
import inspect
import pathlib
import pkgutil

import pytest

pytest.importorskip("selectolax")

import data_pipelines.web
from data_pipelines import filters, keys, marker_removal, near_duplicates, pairs
from data_pipelines.web import (
    boilerplate,
    charsets,
    html_decode,
    html_pictures,
    html_to_pages,
    http_message,
    media_types,
    urls,
    warc,
)
from flamingo_jax.core import html_page
from flamingo_jax.evaluation.metrics import exact_match, required, vqa_accuracy, wups
from tests.growth import grows_too_fast

MODULES = [
    *(
        importlib.import_module(f"data_pipelines.web.{name}")
        for name in (module.name for module in pkgutil.iter_modules(data_pipelines.web.__path__))
    ),
    *(filters, keys, marker_removal, near_duplicates, pairs),
]
NO_TEXT = {
    "keep_image": "reads an image; the decoder has limits of its own",
    "stored_image": "reads an image; the decoder has limits of its own",
    "as_stored": "reads an image; the decoder has limits of its own",
    "is_public": "reads an address of the resolver",
    "resolve": "of image_fetcher: asks the resolver; urls.resolve is in CASES",
    "fetch": "asks a server, with limits of bytes and seconds",
    "index": "reads a file, see test_time_of_archives_is_linear",
    "records": "reads a file, see test_time_of_archives_is_linear",
    "is_alike": "compares two sketches, of one length",
    "is_generic": "looks a type up",
    "is_told_by_start": "looks a type up",
    "content_of": "looks a type up, and reads 1,024 bytes",
}
URL = "https://e.example/"
WORDS = "the of and a cat sat on mat "


def page(html):
    return html_to_pages.html_to_page(html.encode(), URL)


def repeated(*pieces):
    """Returns length -> the pieces repeated to this length, for each piece."""
    return [lambda size, piece=piece: piece * (size // len(piece)) for piece in pieces]


def in_bytes(*pieces):
    return [lambda size, make=make: make(size).encode("latin-1") for make in repeated(*pieces)]


HTML = [
    *repeated(
        *("<p>&lt;", "&lt;", "&amp", "<!--", "<picture>", "<source><img>", "<img data-src=a/b>"),
        *("<td>a", "<table><tr><td>", "<select><option>", "<svg><title>", "<button>", "<pre>\n "),
        *("<p>x", "<br>", "<li>a", "</p>", "<b>x</b>", "<a href=x>y</a>", "\n \t", "]]>", "<", "é"),
    ),
    lambda size: "<p>x<picture>" + "<source srcset='a 1x'><img>" * (size // 27),
    lambda size: "<p>x<picture>" + "<source srcset=a>" * (size // 17) + "<img>",
    lambda size: f"<p>x<img srcset='{'a/b.jpg 1x, ' * (size // 12)}'>",
    lambda size: f"<p>x<img src='data:image/png;base64,{'A' * size}'>",
    lambda size: f"<p>x<img src='{'../' * (size // 3)}'>",
    lambda size: f"<p class='{'ad ' * (size // 3)}'>x",
    lambda size: f"<title>{'x ' * (size // 2)}</title><p>x",
]
TEXT = [
    *repeated(WORDS, "a ", "a", "a b ", "a\n", "\n", " ", "<", "<image>", "<EOC", ". ", "."),
    *repeated("\n \n", "#", "...", "'", "1,2", "Answer :", "\0", "é", "日本"),
]
REFERENCES = repeated(
    *(
        "../",
        "%",
        "%2e%2e/",
        "\\",
        "//",
        "[",
        ":",
        "@",
        "?",
        " ",
        "\t",
        "é",
        "http:",
        "a|b",
        "\ud800",
    ),
    *("http://é.", "http://0x7f.", "http://[::", "http://a@b:", "file:///C|/", "x:"),
)
BYTES = in_bytes(
    *("<meta charset=", "<meta ", "<!--", "<", "a=b ", "\xe6\x97", "\xe9", "\0", "\0a", "\xff"),
    *("\x1b$B", "\x1b(I1", "\x80", "\xa1", "<?xml encoding='", '"', "="),
)
CASES = {
    boilerplate.kind_of: None,
    charsets.codec_of: TEXT,
    charsets.label_in: [*TEXT, *repeated("charset=", "charset", "charset ='")],
    charsets.charset_of: BYTES,
    charsets.decode: [
        lambda size, make=make, name=name: (make(size), name)
        for make in BYTES
        for name in ("utf-8", "cp1252", "euc_jp", "iso2022_jp", "gb18030", "cp1255")
    ],
    html_decode.decode_html: [
        lambda size, make=make: make(size).encode("utf-8", "replace") for make in HTML
    ],
    html_to_pages.html_to_page: [
        lambda size, make=make: (make(size).encode("utf-8", "replace"), URL) for make in HTML
    ],
    http_message.split: in_bytes("\r\n", "\n", "a:\r\n", "\r", "\xe9"),
    http_message.response: in_bytes("HTTP/1.1 200\r\n", "HTTP/1.1 200 a:\r\n ", " ", "\r\n"),
    media_types.essence: [*TEXT, *repeated("a/b,", "a/", ";", "a/b;")],
    media_types.is_image: in_bytes("BM", "RIFF", "\xff\xd8"),
    urls.resolve: [lambda size, make=make: (make(size), URL) for make in REFERENCES],
    urls.same_url: [*REFERENCES, *repeated("http://a.b/%7e", "http://a.b/x?'")],
    filters.quality: TEXT,
    filters.repetition: TEXT,
    keys.url_key: REFERENCES,
    keys.text_key: TEXT,
    marker_removal.without_markers: TEXT,
    near_duplicates.fingerprint: TEXT,
    pairs.caption: [lambda size, make=make: (make(size), 1 << 30) for make in TEXT],
    html_page.visible: TEXT,
    exact_match.normalise: TEXT,
    required.trim: TEXT,
    vqa_accuracy.normalise: TEXT,
    wups.sentences: repeated(".", "a", "a.a", " ", "?!"),
}


def public(module):
    """Yields the public functions of a module with a first argument of text."""
    for name, function in vars(module).items():
        if (
            inspect.isfunction(function)
            and function.__module__ == module.__name__
            and name[0] != "_"
        ):
            first = next(iter(inspect.signature(function).parameters.values()), None)
            if first is not None and str(first.annotation).split(" ")[0] in ("str", "bytes"):
                yield function


def test_no_function_is_forgotten():
    functions = {each for module in MODULES for each in public(module)}
    missing = {each.__qualname__ for each in functions if each not in CASES}
    assert not missing - set(NO_TEXT), "add them to CASES"
    assert not set(NO_TEXT) - missing, "they read no text any more"


@pytest.mark.parametrize(
    ("function", "makes"),
    [entry for entry in CASES.items() if entry[1]],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_time_is_linear(function, makes):
    def call(value):
        with contextlib.suppress(ValueError):
            function(*value) if isinstance(value, tuple) else function(value)

    times = [(make(24), grows_too_fast(call, make, 8_000)) for make in makes]
    assert not [entry for entry in times if entry[1]]


def test_time_of_attributes_is_linear():
    for name in ("style", "class", "id"):
        for piece in ("display", "ad", "display:", " ", "hidden", "aD"):
            make = lambda size, name=name, piece=piece: {name: piece * (size // len(piece))}
            kind = lambda attributes: boilerplate.kind_of(attributes, is_block=True)
            assert not grows_too_fast(kind, make, 8_000)
    for piece in ("a ", "a,", ",", " ", "a 1x,", "data:a ", "a/b"):
        make = lambda size, piece=piece: {"srcset": piece * (size // len(piece))}
        found = lambda attributes: html_pictures.picture_of(attributes, [], str)
        assert not grows_too_fast(found, make, 8_000)


def test_time_of_bodies_is_linear():
    for coding in ("gzip", "deflate", "br", "zstd", "chunked"):
        for piece in (b"1\r\na\r\n", gzip.compress(b"a", mtime=0), b"\x28\xb5\x2f\xfd", b"\x8b"):
            head = http_message.Head(f"Content-Encoding: {coding}\nTransfer-Encoding: {coding}")

            def unpacked(block, head=head):
                with contextlib.suppress(ValueError):
                    http_message.unpacked(http_message.Message(200, head, block), 1 << 20)

            make = lambda size, piece=piece: piece * (size // len(piece))
            assert not grows_too_fast(unpacked, make, 16_000)


RECORD = (
    b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.org/\r\nContent-Length: %d"
    b"\r\n\r\n"
)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (RECORD % 0, b"WARC/1.0\r\nWARC-Type: response\r\n\r\n"),
        (RECORD % 0, b"WARC/1.0\r\nWARC-Type"),
        (RECORD % 9, b"WARC/"),
        (RECORD % 0, b"\r\n"),
        (RECORD % 0, bytes(99)),
        (RECORD % 10**9, RECORD % 10**9),
        (gzip.compress(RECORD % 0, mtime=0), b"\x1f\x8b\x08"),
        (gzip.compress(RECORD % 0, mtime=0), b"\x1f\x8b\x08\x08aaaaaa"),
        (gzip.compress(RECORD % 0, mtime=0), gzip.compress(b"", mtime=0)),
        (gzip.compress(RECORD % 0, mtime=0), gzip.compress(RECORD % 0, mtime=0)[:-9]),
        (gzip.compress(RECORD % 0, mtime=0), bytes(99)),
    ],
)
def test_time_of_archives_is_linear(start, piece, tmp_path):
    def make(size):
        path: pathlib.Path = tmp_path / f"{size}.warc.gz"
        path.write_bytes(start + piece * (size // len(piece)))
        return str(path)

    assert not grows_too_fast(lambda path: list(warc.index(path)), make, 100_000)
