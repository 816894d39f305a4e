"""Bodies of HTTP responses in every coding, also where the headers state another one."""

import gzip
import zlib

import hypothesis
import hypothesis.strategies as st
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("zstandard")

import pyarrow
import zstandard

from data_pipelines.web import http_message

BODY = b"<html><p>" + b"plain words and more of them. " * 300
MOST = 1 << 20


def raw_deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def chunked(data, size=700):
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def brotli(data):
    return pyarrow.compress(data, codec="brotli", asbytes=True)


zstd = zstandard.ZstdCompressor().compress


def unpacked(headers, block, most=MOST):
    message = http_message.response(
        "\r\n".join(["HTTP/1.1 200 OK", *headers]).encode() + b"\r\n\r\n" + block
    )
    return http_message.unpacked(message, most)


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        *(("gzip", gzip.compress), ("X-GZip", gzip.compress), ("GZIP,", gzip.compress)),
        *(("deflate", zlib.compress), ("deflate", raw_deflate), ("deflate", gzip.compress)),
        *(("br", brotli), ("zstd", zstd)),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("deflate, br, gzip", lambda data: gzip.compress(brotli(zlib.compress(data)))),
        ("identity, gzip", gzip.compress),
        ("gzip, utf-8", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
        ("zstd", lambda data: zstd(data[:99]) + zstd(data[99:])),
        ("gzip", lambda data: gzip.compress(data) + b"garbage"),
    ],
)
def test_codings_are_undone(coding, pack):
    assert unpacked([f"Content-Encoding: {coding}"], pack(BODY)) == (BODY, False)
    assert unpacked([f"Transfer-Encoding: {coding}, Chunked"], chunked(pack(BODY))) == (BODY, False)
    whole, is_cut = unpacked([f"content-encoding:{coding}"], pack(BODY), 100)
    assert (whole, is_cut) == (BODY[:100], False)


@pytest.mark.parametrize(
    "coding",
    "utf-8 UTF-8 none identity binary 8bit chunked iso-8859-1 text/html compress gzip x-gzip "
    "deflate br zstd x".split(),
)
def test_a_body_without_the_coding_that_is_stated_is_as_it_is(coding):
    for body in (BODY, b"", b"x"):
        assert unpacked([f"Content-Encoding: {coding}"], body) == (body, False)


def test_a_coding_that_is_stated_twice_and_done_once():
    headers = ["Content-Encoding: gzip", "Content-Encoding: gzip"]
    assert unpacked(headers, gzip.compress(BODY)) == (BODY, False)


@pytest.mark.parametrize(
    "block",
    [
        chunked(BODY),
        chunked(BODY, 1),
        chunked(BODY)[:-5],
        chunked(BODY)[:-7],
        b"%X;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(BODY), BODY),
        BODY,
    ],
)
def test_chunks_are_joined(block):
    assert unpacked(["transfer-encoding:CHUNKED"], block) == (BODY, False)


def test_a_text_that_begins_like_a_chunk_is_no_chunk():
    assert unpacked(["Transfer-Encoding: chunked"], b"2\r\ntext" + BODY)[0] == b"2\r\ntext" + BODY


@pytest.mark.parametrize(
    ("header", "pack"),
    [
        ("Content-Encoding: gzip", gzip.compress),
        ("Content-Encoding: deflate", zlib.compress),
        ("Content-Encoding: br", lambda data: brotli(bytes(range(256)) + data)),
        ("Content-Encoding: zstd", zstd),
        ("Transfer-Encoding: chunked", chunked),
    ],
)
def test_a_body_that_is_cut_off_is_known_to_be(header, pack):
    packed = pack(BODY)
    part, is_cut = unpacked([header], packed[: len(packed) - 9])
    assert is_cut
    assert len(part) < len(BODY) + 256


def test_a_damaged_body_is_an_error():
    packed = bytearray(gzip.compress(bytes(range(256)) * 9, mtime=0))
    packed[30:60] = bytes(30)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpacked(["Content-Encoding: gzip"], bytes(packed))


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, brotli, zstd])
def test_a_bomb_is_unpacked_up_to_the_limit(pack):
    coding = {gzip.compress: "gzip", zlib.compress: "deflate", brotli: "br", zstd: "zstd"}[pack]
    packed = pack(bytes(1 << 24))
    assert unpacked([f"Content-Encoding: {coding}"], packed, 1000) == (bytes(1000), False)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        *((b"HTTP/1.1 200 OK", 200), (b"HTTP/2 404", 404), (b"h2 301", 301), (b"ICY 200", 200)),
        *((b"HTTP 200", 200), (b"\r\nHTTP/1.1 200", 200), (b"HTTP/1.1 20", None)),
        *((b"HTTP/1.1 2000", None), (b"<html> 200", None), (b"", None)),
    ],
)
def test_status_lines(start, status):
    found = http_message.response(start + b"\r\nA: b\r\n\r\nbody")
    assert (found and (found.status, found.head.first("a"), found.block)) == (
        (status, "b", b"body") if status else None
    )


@hypothesis.given(
    st.lists(st.sampled_from(["gzip", "br", "deflate", "zstd", "chunked", "x"]), max_size=3),
    st.binary(max_size=100) | st.binary(max_size=50).map(gzip.compress) | st.just(chunked(BODY)),
)
def test_any_body_is_unpacked_or_damaged(codings, block):
    headers = [f"Content-Encoding: {','.join(codings)}", "Transfer-Encoding: chunked"]
    try:
        body, _ = unpacked(headers, block)
    except ValueError:
        return
    assert isinstance(body, bytes)
