"""WARC files: finding and reading records by random access, undamaged and damaged."""

import gzip
import io

import hypothesis
import hypothesis.strategies as st
import pytest

pytest.importorskip("warcio")

from data_pipelines.page import Reject
from data_pipelines.web import warc
from data_pipelines.web.warc_index import WarcIndex, build_index
from tests.data_pipelines import crawl

PAGE = crawl.article("Title", [f"<p>{crawl.prose(0)}</p>"])
JPEG = crawl.jpeg()
RESPONSES = [
    ("https://example.org/", "text/html; charset=UTF-8", PAGE),
    ("https://example.org/a.jpg", "image/jpeg", JPEG),
    ("https://example.org/b.webp", "application/octet-stream", crawl.webp()),
    ("https://example.org/x", "application/xhtml+xml", PAGE),
]


def entries(path):
    return list(warc.index(str(path)))


def body(entry):
    found = warc.read(entry.place, 1_000_000)
    return found if isinstance(found, Reject) else found.body


@pytest.mark.parametrize("packed", [True, False])
def test_pages_and_images_are_found_and_read(packed, tmp_path):
    places = crawl.make_warc(tmp_path / "a.warc.gz", RESPONSES, gzip=packed)
    found = entries(tmp_path / "a.warc.gz")
    assert [(entry.place.offset, entry.place.length) for entry in found] == places
    assert [(entry.url, entry.is_html, entry.is_image) for entry in found] == [
        ("https://example.org/", True, False),
        ("https://example.org/a.jpg", False, True),
        ("https://example.org/b.webp", False, True),
        ("https://example.org/x", True, False),
    ]
    assert [body(entry) for entry in found] == [PAGE.encode(), JPEG, crawl.webp(), PAGE.encode()]
    with open(tmp_path / "a.warc.gz", "rb") as file:
        assert warc.read(found[1].place, 1_000_000, file).body == JPEG


def test_charset_is_that_of_the_archive_then_of_the_server(tmp_path):
    identified = {"warc_headers": {"WARC-Identified-Content-Charset": "shift_jis"}}
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            ("https://example.org/1", "text/html; charset=utf-8", PAGE, identified),
            ("https://example.org/2", 'text/html;CHARSET="iso-8859-1"', PAGE),
            ("https://example.org/3", "text/html", PAGE),
        ],
    )
    found = [warc.read(entry.place, 1_000_000).charset for entry in entries(tmp_path / "a.warc.gz")]
    assert found == ["shift_jis", "iso-8859-1", ""]


def test_other_records_are_skipped(tmp_path):
    url = "https://example.org/"
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            (url, "text/html", PAGE, {"status": "404 Not Found"}),
            (url, "text/html", PAGE, {"status": "301 Moved"}),
            (url, "text/html", PAGE, {"record_type": "revisit"}),
            (url, "text/html", PAGE, {"record_type": "resource"}),
            (url, "application/pdf", b"%PDF"),
            (url, "image/svg+xml", b"<svg/>"),
            (f"{url}file", "application/octet-stream", b"?"),
            (f"{url}film.mp4", "video/mp4", b"\0\0\0 ftypisom"),
            (url, "text/html", "<p>the one", {"status": "200 Fine"}),
        ],
    )
    (found,) = entries(tmp_path / "a.warc.gz")
    assert body(found) == b"<p>the one"


def test_encodings_of_the_transfer_are_undone(tmp_path):
    chunked = b"5\r\n<p>on\r\n3\r\ne.\n\r\n0\r\n\r\n"
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            (
                "https://e.org/1",
                "text/html",
                gzip.compress(PAGE.encode()),
                {"headers": [("Content-Encoding", "gzip")]},
            ),
            (
                "https://e.org/2",
                "text/html",
                chunked,
                {"headers": [("Transfer-Encoding", "chunked")]},
            ),
            ("https://e.org/3", "text/html", b"?", {"headers": [("Content-Encoding", "rot13")]}),
        ],
    )
    packed, in_chunks, unknown = map(body, entries(tmp_path / "a.warc.gz"))
    assert packed == PAGE.encode()
    assert in_chunks == b"<p>one.\n"
    assert (unknown.reason, unknown.broken) == ("unknown_encoding", True)


@pytest.mark.parametrize("headers", [[], [("Content-Encoding", "gzip")]])
def test_a_body_is_read_up_to_the_limit(headers, tmp_path):
    page = b"<p>" + b"x" * 5_000_000
    sent = gzip.compress(page) if headers else page
    response = ("https://example.org/", "text/html", sent, {"headers": headers})
    crawl.make_warc(tmp_path / "a.warc.gz", [response])
    (entry,) = entries(tmp_path / "a.warc.gz")
    assert warc.read(entry.place, 1_000).body == page[:1_001]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("missing", [1, 5, 300])
def test_truncated_file_gives_its_complete_records(packed, missing, tmp_path):
    path = tmp_path / "a.warc.gz"
    crawl.make_warc(path, RESPONSES, gzip=packed)
    path.write_bytes(path.read_bytes()[:-missing])
    *whole, last = entries(path)
    assert [body(entry) for entry in whole] == [PAGE.encode(), JPEG, crawl.webp()]
    assert (last.reason, last.broken) == ("truncated_file", True)
    assert str(path) in last.detail


@pytest.mark.parametrize("where", [0, 4, 12, 100, -6])
def test_only_the_damaged_member_is_lost(where, tmp_path):
    path = tmp_path / "a.warc.gz"
    places = crawl.make_warc(path, RESPONSES)
    data = bytearray(path.read_bytes())
    offset = places[1][0] + where % places[1][1]
    data[offset : offset + 4] = bytes(value ^ 0xFF for value in data[offset : offset + 4])
    path.write_bytes(data)
    found = entries(path)
    rejects = [entry for entry in found if isinstance(entry, Reject)]
    urls = [entry.url for entry in found if not isinstance(entry, Reject)]
    if where == 4:  # the time stamp of the gzip header, which is not read
        assert not rejects
        assert len(urls) == 4
        return
    assert urls == [RESPONSES[0][0], RESPONSES[2][0], RESPONSES[3][0]]
    (reject,) = rejects
    assert (reject.reason, reject.broken) == ("damaged_record", True)


def test_padding_after_the_last_record_is_damage(tmp_path):
    path = tmp_path / "a.warc.gz"
    crawl.make_warc(path, RESPONSES[:2])
    path.write_bytes(path.read_bytes() + bytes(1000))
    *whole, last = entries(path)
    assert len(whole) == 2
    assert last.reason == "damaged_record"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 zip", b"WARC", gzip.compress(b"no archive", mtime=0)],
    ids=["empty", "zip", "cut", "gzip"],
)
def test_what_is_no_warc_file(content, tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(content)
    (found,) = entries(tmp_path / "a.warc.gz")
    assert found.reason in ("unreadable_file", "damaged_record")
    assert found.broken
    (missing,) = entries(tmp_path / "missing.warc.gz")
    assert missing.reason == "unreadable_file"
    assert "missing.warc.gz" in missing.detail


def test_archive_in_one_gzip_stream_is_reported(tmp_path):
    """Its records cannot be read by random access: only the first one is found."""
    plain = tmp_path / "plain.warc"
    crawl.make_warc(plain, RESPONSES, gzip=False)
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(plain.read_bytes()))
    *_, last = entries(tmp_path / "a.warc.gz")
    assert last.reason == "unreadable_file"
    assert "one gzip member per record" in last.detail


def test_damaged_place(tmp_path):
    crawl.make_warc(tmp_path / "a.warc.gz", RESPONSES)
    for place in (
        warc.Place(str(tmp_path / "a.warc.gz"), 7, 100),
        warc.Place(str(tmp_path / "none"), 0, 9),
    ):
        assert warc.read(place, 1000).broken


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    st.booleans(),
    st.integers(0, 4000),
)
def test_any_damage_gives_entries_or_rejects(tmp_path_factory, changes, packed, cut):
    path = tmp_path_factory.getbasetemp() / "fuzzed.warc.gz"
    crawl.make_warc(path, RESPONSES, gzip=packed)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data[: len(data) - min(cut, len(data))])
    for entry in entries(path):
        if not isinstance(entry, Reject):
            assert isinstance(warc.read(entry.place, 1000), Reject | warc.Response)


def test_index_of_images_in_several_files(tmp_path):
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.warc.gz"))
        images = [
            (f"http://example.org/{number}.png", "image/png", crawl.png(number)),
            ("https://example.org/same", "image/png", crawl.png(10 + number)),
        ]
        crawl.make_warc(files[-1], [("https://example.org/", "text/html", PAGE), *images])
    # The index skips damage. It is counted when the pages of the file are read.
    (tmp_path / "1.warc.gz").write_bytes((tmp_path / "1.warc.gz").read_bytes()[:-9])
    assert build_index(files, tmp_path / "index") == 4
    with WarcIndex.opened(str(tmp_path / "index")) as index:
        found = {
            url: index.find(f"https://example.org/{url}")
            for url in ("0.png", "1.png", "2.png", "same", "none")
        }
        assert found.pop("none") is None
        read = {url: warc.read(place, 10**6).body for url, place in found.items()}
        assert read == {
            "0.png": crawl.png(0),
            "1.png": crawl.png(1),
            "2.png": crawl.png(2),
            "same": crawl.png(10),
        }


def test_warc_is_one_that_warcio_reads(tmp_path):
    """The files that the tests make have the standard format."""
    from warcio.archiveiterator import ArchiveIterator

    crawl.make_warc(tmp_path / "a.warc.gz", RESPONSES)
    with open(tmp_path / "a.warc.gz", "rb") as file:
        found = [
            (record.rec_headers["WARC-Target-URI"], record.content_stream().read())
            for record in ArchiveIterator(io.BytesIO(file.read()))
        ]
    assert [url for url, _ in found] == [url for url, *_ in RESPONSES]
    assert found[1][1] == JPEG
