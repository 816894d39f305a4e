"""WARC files: finding and reading records by random access, undamaged and damaged."""

import contextlib
import gzip
import io

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

pytest.importorskip("warcio")

from data_pipelines.page import Reject
from data_pipelines.web import warc, warc_records
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


def test_other_responses_are_counted_by_type_and_other_records_are_skipped(tmp_path):
    url = "https://example.org/"
    crawl.make_warc(
        tmp_path / "a.warc.gz",
        [
            (url, "text/html", PAGE, {"status": "404 Not Found"}),
            (url, "application/pdf", b"%PDF", {"status": "404 Not Found"}),
            (url, "application/pdf; version=1.7", b"%PDF"),
            (url, "Application/PDF", b"%PDF"),
            (url, "image/svg+xml", b"<svg/>"),
            (f"{url}file", "application/octet-stream", b"?"),
            (f"{url}film.mp4", "video/mp4", b"\0\0\0 ftypisom"),
            (url, "", b"\0?"),
            (url, "text/html", "<p>the one", {"status": "200 Fine"}),
        ],
    )
    *others, found = entries(tmp_path / "a.warc.gz")
    assert body(found) == b"<p>the one"
    assert {each.unit for each in others} == {"file"}
    assert not any(each.broken for each in others)
    assert [each.reason for each in others] == [
        *["application/pdf"] * 2,
        *("image/svg+xml", "application/octet-stream", "video/mp4", "no type"),
    ]


def test_number_of_types_that_are_counted_is_limited(tmp_path):
    responses = [(f"https://e.org/{i}", f"x/t{i % 150}", b"?") for i in range(300)]
    crawl.make_warc(tmp_path / "a.warc.gz", responses)
    reasons = [entry.reason for entry in entries(tmp_path / "a.warc.gz")]
    assert (len(reasons), len(set(reasons)), reasons.count("other types")) == (300, 101, 100)


@pytest.mark.parametrize("headers", [[], [("Content-Encoding", "gzip")]])
def test_a_body_is_read_up_to_the_limit(headers, tmp_path):
    page = b"<p>" + b"x" * 5_000_000
    sent = gzip.compress(page) if headers else page
    response = ("https://example.org/", "text/html", sent, {"headers": headers})
    crawl.make_warc(tmp_path / "a.warc.gz", [response])
    (entry,) = entries(tmp_path / "a.warc.gz")
    assert warc.read(entry.place, 1_000).body == page[:1_001]


@pytest.mark.parametrize(
    ("packed", "missing"), [(True, 1), (True, 5), (True, 300), (False, 5), (False, 300)]
)
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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x1f\x8b\x08\x1f" * 40])
def test_only_zeros_between_and_after_records_are_no_damage(packed, garbage, tmp_path):
    path = tmp_path / "a.warc.gz"
    crawl.make_warc(path, RESPONSES[:2], gzip=packed)
    records = path.read_bytes()
    path.write_bytes(records + bytes(70_000) + garbage + records + garbage + bytes(1000))
    found = entries(path)
    rejects = [entry for entry in found if isinstance(entry, Reject)]
    whole = [body(entry) for entry in found if not isinstance(entry, Reject)]
    assert whole == [PAGE.encode(), JPEG] * 2
    assert [each.reason for each in rejects] == ["damaged_record"] * (2 if garbage else 0)


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


def made(url, block, *, kind="response", length=None, end=b"\r\n\r\n", headers=()):
    """Returns a record with a length that can be wrong, or "" for none."""
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", *headers]
    if length != "":
        lines.append(f"Content-Length: {len(block) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + end


def http(content, content_type="text/html", status="HTTP/1.1 200 OK", headers=()):
    lines = [status, *headers] + ([f"Content-Type: {content_type}"] if content_type else [])
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def page(number):
    return f"<p>page {number}".encode()


def three(second, *, packed, **options):
    """Returns three pages, one member each if packed, of which the second is special."""
    records = [made(f"https://e.org/{i}", http(page(i))) for i in (1, 2, 3)]
    records[1] = second or made("https://e.org/2", http(page(2)), **options)
    return b"".join(gzip.compress(record, mtime=0) if packed else record for record in records)


def bodies(path, content):
    """Returns the bodies of a file, and the reasons of its rejects."""
    path.write_bytes(content)
    found = entries(path)
    whole = [body(entry) for entry in found if not isinstance(entry, Reject)]
    return whole, [entry.reason for entry in found if isinstance(entry, Reject)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"length": ""},
        {"length": "x"},
        {"length": 3},
        {"length": 99_999},
        {"length": 10**14},
        {"length": "", "end": b""},
        {"end": b""},
        {"end": b"\n"},
        {"end": b"\r\n\r\n\r\n\r\n"},
    ],
    ids=str,
)
def test_a_length_that_is_missing_or_wrong_costs_nothing(packed, options, tmp_path):
    whole, reasons = bodies(tmp_path / "a.warc", three(None, packed=packed, **options))
    assert whole == [page(1), page(2), page(3)]
    assert reasons == []


@pytest.mark.parametrize(
    "damaged",
    [
        b"WARX/1.0\r\nWARC-Type: response\r\nContent-Length: 9\r\n\r\n123456789\r\n\r\n",
        b"\0" * 100 + b"x" * 100_000,
        b"WARC/1.0\r\nWARC-Type: response\r\nno end of the headers",
    ],
    ids=["name", "hole", "headers"],
)
def test_a_damaged_record_of_a_plain_file_costs_itself(damaged, tmp_path):
    whole, reasons = bodies(tmp_path / "a.warc", three(damaged, packed=False))
    assert page(1) in whole
    assert page(3) in whole
    assert reasons == ["damaged_record"]


def test_plain_file_with_a_mark_before_it_and_unix_line_ends(tmp_path):
    content = b"\xef\xbb\xbf" + three(None, packed=False).replace(b"\r\n", b"\n")
    content = content.replace(b"Content-Length: ", b"X: ")
    assert bodies(tmp_path / "a.warc", content) == ([page(1), page(2), page(3)], [])


@pytest.mark.parametrize("in_memory", [1 << 25, 100])
def test_records_of_a_gzip_member_with_several_records(in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(warc_records, "_IN_MEMORY", in_memory)
    several, one = three(None, packed=False), three(None, packed=True)
    content = gzip.compress(several) + one + gzip.compress(several)
    whole, reasons = bodies(tmp_path / "a.warc.gz", content)
    assert whole == [page(1), page(2), page(3)] * 3
    assert reasons == []
    warc_records._members.content.close()
    warc_records._members.key = None


def test_damage_in_a_gzip_member_with_several_records(tmp_path):
    several = three(b"WARX" + bytes(50), packed=False)
    assert bodies(tmp_path / "a.warc.gz", gzip.compress(several)) == (
        [page(1), page(3)],
        ["damaged_record"],
    )


@pytest.mark.parametrize("damage", ["cut", "bits", "checksum"])
def test_records_before_the_damage_of_a_member_are_read(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (40, 300), np.uint8)
    pages = [f"<html>{row.tobytes().hex()}</html>".encode() for row in noise]
    several = b"".join(made(f"https://e.org/{i}", http(body)) for i, body in enumerate(pages))
    packed = bytearray(gzip.compress(several, mtime=0))
    half = len(packed) // 2
    if damage == "cut":
        content = bytes(packed[:half])
    else:
        packed[half if damage == "bits" else -6] ^= 0x55
        content = bytes(packed) + three(None, packed=True)
    found, reasons = bodies(tmp_path / "a.warc.gz", content)
    least = {"cut": 18, "bits": 5, "checksum": 25}[damage]
    assert found[:least] == pages[:least]
    if damage == "cut":
        assert reasons == ["truncated_file"]
    else:
        assert found[-3:] == [page(1), page(2), page(3)]
        assert reasons == ["damaged_record"]


def test_index_on_disk_finds_images_in_members_with_several_records(tmp_path):
    images = [made(f"https://e.org/{i}", http(crawl.png(i), "image/png")) for i in (1, 2)]
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(b"".join(images)))
    build_index([str(tmp_path / "a.warc.gz")], tmp_path / "index")
    with WarcIndex.opened(str(tmp_path / "index")) as index:
        assert warc.read(index.find("https://e.org/2"), 10**6).body == crawl.png(2)


def test_kinds_of_records(tmp_path):
    url = "https://e.org/"
    records = [
        made(f"{url}1", page(1), kind="resource", headers=["Content-Type: text/html"]),
        made(f"{url}2", JPEG, kind="resource", headers=["Content-Type: image/jpeg"]),
        made("urn:screenshot:x", JPEG, kind="resource", headers=["Content-Type: image/jpeg"]),
        made("dns:e.org", b"127.0.0.1", headers=["Content-Type: text/dns"]),
        made(f"{url}3", b"GET / HTTP/1.1\r\n\r\n", kind="request"),
        made(f"<{url}4>", http(page(4))).replace(b"WARC-Type", b"warc-type"),
        made(f"{url}5", b"no HTTP"),
    ]
    whole, reasons = bodies(tmp_path / "a.warc", b"".join(records))
    assert whole == [page(1), JPEG, page(4)]
    assert reasons == ["damaged_record"]


@pytest.mark.parametrize("on_disk", [True, False])
def test_redirects_and_revisits_lead_to_images(on_disk, tmp_path):
    url = "https://e.org/"
    digest = ["WARC-Payload-Digest: sha1:ABC"]
    moved = lambda status, target: http(
        b"", None, f"HTTP/1.1 {status} Moved", [f"Location: {target}"]
    )
    refers = f"WARC-Refers-To-Target-URI: {url}stored.png"
    records = [
        made(f"{url}old.png", moved(301, "/new.png")),
        made(f"{url}new.png", moved(308, "https://E.org:443/stored.png")),
        made(f"{url}again.png", http(b"", "image/png"), kind="revisit", headers=[refers]),
        made(f"{url}bare.png", b"", kind="revisit", headers=digest),
        made(f"{url}loop.png", moved(302, "loop2.png")),
        made(f"{url}loop2.png", moved(307, "loop.png")),
        made(f"{url}nowhere.png", moved(302, "http://[")),
        made(f"{url}stored.png", http(crawl.png(1), "image/png"), headers=digest),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    if on_disk:
        build_index([str(tmp_path / "a.warc")], tmp_path / "index")
        opened = WarcIndex.opened(str(tmp_path / "index"))
    else:
        images = warc.ImagePlaces()
        for entry in entries(tmp_path / "a.warc"):
            images.add(entry)
        opened = contextlib.nullcontext(images)
    with opened as places:
        find = lambda name: places.find(f"{url}{name}.png")
        for name in ("stored", "old", "new", "again", *([] if on_disk else ["bare"])):
            assert warc.read(find(name), 10**6).body == crawl.png(1), name
        assert find("loop") is find("nowhere") is find("none") is None


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (http(PAGE.encode(), None), "page"),
        (http(PAGE.encode(), "application/octet-stream"), "page"),
        (http(b" \n<!-- x --><DIV>a", "unknown/unknown"), "page"),
        (http(PAGE.encode(), "text/html, text/html; charset=utf-8"), "page"),
        (http(b"<?xml?><html xmlns='x'>", "application/xml"), "page"),
        (http(b"<rss>", "text/xml"), "file"),
        (http(b"<p>not shown as a page", "text/plain"), "file"),
        (http(gzip.compress(PAGE.encode()), None, headers=["Content-Encoding: gzip"]), "page"),
        (http(b"4\r\n<p>x\r\n0\r\n\r\n", "", headers=["Transfer-Encoding: chunked"]), "page"),
        (http(JPEG, "binary/octet-stream"), "image"),
        (http(JPEG, "text/html"), "image"),
        (http(JPEG, "text/plain"), "image"),
        (http(crawl.webp(), None), "image"),
        (http(crawl.encoded(crawl.picture(), "AVIF"), ""), "image"),
        (http(crawl.encoded(crawl.picture(), "BMP"), ""), "image"),
        (http(b"BM is a word", ""), "file"),
        (http(b"RIFF1234WAVE", ""), "file"),
        (http(b"<html>gone</html>", "image/jpeg"), "image"),
        (http(page(1), status="HTTP/2 200"), "page"),
        (http(page(1), status="http/1.1 200"), "page"),
        (http(page(1), status="HTTP/3 200 OK"), "page"),
        (http(page(1), status="ICY 200 OK"), "page"),
        (http(page(1), status="HTTP/1.0  203 Elsewhere"), "page"),
        (http(page(1), status="HTTP/1.1 2000 OK"), "damaged"),
        (http(page(1), "text/html;\r\n charset=utf-8"), "page"),
        (http(page(1), headers=["Set-Cookie: \xb3\xd2"]), "page"),
        (http(page(1)).replace(b"\r\n", b"\n"), "page"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_response_is(block, found, tmp_path):
    (tmp_path / "a.warc").write_bytes(made("https://e.org/", block))
    (entry,) = entries(tmp_path / "a.warc")
    if isinstance(entry, Reject):
        assert found == ("file" if entry.unit == "file" else "damaged")
    else:
        assert found == ("page" if entry.is_html else "image")


def test_type_that_the_archive_identified_counts_if_the_server_states_a_general_one(tmp_path):
    identified = ["WARC-Identified-Payload-Type: text/html"]
    for stated, count in (("text/plain", 1), (None, 1), ("application/pdf", 0)):
        record = made("https://e.org/", http(page(1), stated), headers=identified)
        whole, _ = bodies(tmp_path / "a.warc", record)
        assert len(whole) == count


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
