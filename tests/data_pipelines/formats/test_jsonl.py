"""JSON lines: parts that cover every line, compressed files in several streams, and all damage."""

import gzip
import io
import itertools
import json
import tempfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.formats import compressed, jsonl
from data_pipelines.formats.jsonl import Lines, parts, rows
from data_pipelines.page import Reject

zstandard = pytest.importorskip("zstandard")


def write(path, data):
    path.write_bytes(data)
    return str(path)


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def read(path, size=jsonl.PART):
    return [row for part in parts(path, size) for row in rows(part)]


def reasons(path):
    found = read(path)
    assert all(row.broken for row in found if isinstance(row, Reject))
    return [row.reason if isinstance(row, Reject) else row for row in found]


ZSTD = zstandard.ZstdCompressor()


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docs_no_face_shard_0_v2.jsonl", data)
    return buffer.getvalue()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": ZSTD.compress, ".zip": zipped}
CHECKED = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
VALUES = [{"text": "Bär\u2028 😀" * number, "n": number} for number in range(200)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_values_come_back_in_order(suffix, tmp_path):
    path = write(tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](lines(*VALUES)))
    assert read(path) == VALUES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_streams_and_padding(suffix, tmp_path):
    streams = [COMPRESS[suffix](lines(value)) for value in VALUES[:3]]
    path = write(tmp_path / f"a.jsonl{suffix}", b"".join(streams) + b"\0" * 5000)
    assert read(path) == VALUES[:3]


def test_blank_lines_a_byte_order_mark_and_a_missing_last_newline(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}')
    assert read(path) == [{"a": 1}, {"b": 2}]
    assert read(write(tmp_path / "empty.jsonl", b"")) == []


@given(st.lists(st.text(max_size=9), max_size=12), st.integers(1, 40), st.booleans())
def test_parts_cover_every_line(texts, size, newline):
    data = lines(*({"text": text} for text in texts))
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/a.jsonl"
        with open(path, "wb") as file:
            file.write(data if newline else data.rstrip(b"\n"))
        assert read(path, size) == [{"text": text} for text in texts]


def test_a_part_has_the_lines_that_start_in_it(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(*range(10)))  # two bytes each
    assert [reason.detail[-4:] for reason in rows(Lines(path, 4, 8))] == ["b'2'", "b'3'"]
    assert [reason.detail[-4:] for reason in rows(Lines(path, 5, 8))] == ["b'3'"]
    assert [part.start for part in parts(path, 8)] == [0, 8, 16]


def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path):
    bad = [b"\xff\xfe", b'{"a": ', b"[1]", b"null", b"[" * 100_000, b"1" * 5000, b"\0"]
    path = write(tmp_path / "a.jsonl", b"\n".join([b'{"a": 1}', *bad, b'{"b": 2}']))
    assert reasons(path) == [
        {"a": 1},
        "broken_text",
        "not_json",
        "not_an_object",
        "not_an_object",
        "not_json",
        "not_json",
        "not_json",
        {"b": 2},
    ]


def test_a_line_that_is_too_long_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 100)
    monkeypatch.setattr(jsonl, "PIECE", 64)
    at, beyond = json.dumps({"a": "x" * 91}), json.dumps({"a": "x" * 92})
    assert len(at) == 100
    content = "\n".join([at, beyond, "x" * 10_000, '{"b": 2}', "y" * 500])
    path = write(tmp_path / "a.jsonl", content.encode())
    assert reasons(path) == [
        {"a": "x" * 91},
        "line_too_long",
        "line_too_long",
        {"b": 2},
        "line_too_long",
    ]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_and_damaged_compression(suffix, tmp_path):
    first, second = (COMPRESS[suffix](lines(*VALUES[part : part + 100])) for part in (0, 100))
    path = write(tmp_path / f"a.jsonl{suffix}", first + second[: len(second) // 2])
    found = reasons(path)
    assert found[:100] == VALUES[:100]
    assert found[-1] == "truncated_file"
    path = write(tmp_path / f"b.jsonl{suffix}", first + b"garbage" + second)
    assert reasons(path) == [*VALUES[:100], "damaged_part", *VALUES[100:]]
    path = write(tmp_path / f"d.jsonl{suffix}", first + b"garbage")
    assert reasons(path) == [*VALUES[:100], "truncated_file"]
    for content in (b"", b"nothing of the kind"):
        assert reasons(write(tmp_path / f"c.jsonl{suffix}", content)) == ["truncated_file"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_behind_a_damaged_member_reading_goes_on(suffix, tmp_path):
    """Lines at the gap are incomplete; the loss is counted once."""
    pack = (
        gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    )
    whole = lines(*VALUES)
    cuts = [0, len(whole) // 3, 2 * len(whole) // 3, len(whole)]
    packed = [pack(whole[start:stop]) for start, stop in itertools.pairwise(cuts)]
    middle = bytearray(packed[1])
    middle[40:48] = bytes(byte ^ 0x55 for byte in middle[40:48])
    found = reasons(write(tmp_path / f"a.jsonl{suffix}", packed[0] + bytes(middle) + packed[2]))
    assert found.count("damaged_part") == 1
    good = [each for each in found if isinstance(each, dict)]
    first, last = whole[: cuts[1]].count(b"\n"), whole[: cuts[2]].count(b"\n") + 1
    assert good[:first] == VALUES[:first]
    assert good[-(200 - last) :] == VALUES[last:]


@pytest.mark.parametrize("where", ["bits", "checksum"])
def test_a_small_file_of_gzip_keeps_what_is_before_the_damage(where, tmp_path):
    """A file that is unpacked in one step loses no more than a large one does."""
    noise = np.random.default_rng(0).integers(0, 1 << 62, (300, 8))
    values = [{"a": [int(number) for number in row]} for row in noise]
    whole = lines(*values)
    packed = bytearray(gzip.compress(whole, mtime=0))
    assert 16_000 < len(packed) < 1 << 16
    at = len(packed) // 2 if where == "bits" else len(packed) - 6
    packed[at : at + 2] = bytes(byte ^ 0x55 for byte in packed[at : at + 2])
    second = {"second": "member"}
    path = write(tmp_path / "a.jsonl.gz", bytes(packed) + gzip.compress(lines(second)))
    found = reasons(path)
    num_sound = int(300 * (at - (1 << 12) - 512) / len(packed)) - 2
    assert found[:num_sound] == values[:num_sound]
    assert found.count("damaged_part") == 1
    assert found[-1] == second


def test_the_first_bytes_say_how_a_file_is_packed(tmp_path):
    for suffix, pack in COMPRESS.items():
        for name in ("", ".gz", ".zst", ".GZ"):
            path = write(tmp_path / f"{len(suffix)}.jsonl{name}", pack(lines(*VALUES)))
            assert read(path) == VALUES, (suffix, name)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip"])
def test_a_compression_bomb_is_read_in_bounded_memory(suffix, tmp_path, monkeypatch):
    """What a packed file unpacks to comes in small pieces, also if it is many short lines."""
    monkeypatch.setattr(jsonl, "MAX_LINE", 1 << 16)
    sizes = []
    split = jsonl._split

    def counted(chunks):
        for chunk in chunks:
            sizes.append(len(chunk))
            yield chunk

    monkeypatch.setattr(jsonl, "_split", lambda chunks: split(counted(chunks)))
    bomb = b" " * (1 << 24) + b"\n" * (1 << 18) + b'{"a": 1}\n'
    assert reasons(write(tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix](bomb))) == [
        "line_too_long",
        {"a": 1},
    ]
    assert 1 << 24 <= sum(sizes) < len(bomb) - (1 << 17)  # most blank lines are skipped at once
    assert max(sizes) <= compressed.PIECE


def test_a_frame_that_needs_much_memory_is_refused(tmp_path, monkeypatch):
    """Of a frame that states no size, the window can fill. The next frame is read."""
    monkeypatch.setattr(compressed, "MAX_WINDOW", 1 << 20)

    def streamed(window_log):
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        return packer.compress(lines({"a": window_log})) + packer.flush()

    path = write(tmp_path / "a.jsonl.zst", streamed(20) + streamed(21) + streamed(19))
    found = list(rows(Lines(path)))
    assert [row for row in found if isinstance(row, dict)] == [{"a": 20}, {"a": 19}]
    assert found[1].reason == "damaged_part"
    assert "needs 2 MiB of memory, more than 1; pack it again" in found[1].detail


@pytest.mark.parametrize("many", [b"{},", b"[],", b"1,", b'{"a":[', b'"a":1,'])
def test_json_of_very_many_values_is_not_parsed(many, tmp_path, monkeypatch):
    """The objects of a line take up to 30 times its bytes. Text is not limited so."""
    monkeypatch.setattr(jsonl, "MAX_VALUES", 3000)
    monkeypatch.setattr(jsonl, "MAX_OBJECTS", 1000)
    bomb = b'{"a": [' + many * 4000 + b"]}\n"
    assert reasons(write(tmp_path / "a.jsonl", bomb + b'{"b": 2}')) == ["too_many_values", {"b": 2}]
    text = {"a": "one word, " * 2000, "b": list(range(900))}
    assert reasons(write(tmp_path / "a.jsonl", lines(text))) == [text]


def test_missing_file(tmp_path):
    (reject,) = rows(Lines(str(tmp_path / "none.jsonl")))
    assert (reject.reason, reject.broken) == ("unreadable_file", True)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[: len(data) // 2], ["truncated_file"]),
        (lambda data: b"", ["truncated_file"]),
        (lambda data: b"in front" + data, VALUES),  # an archive is read from its end
    ],
)
def test_a_damaged_zip_is_reported(tmp_path, damage, expected):
    assert reasons(write(tmp_path / "a.jsonl.zip", damage(zipped(lines(*VALUES))))) == expected


def test_members_of_a_zip(tmp_path, monkeypatch):
    """A damaged member costs itself; what macOS adds is no member; a huge list is not read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(["a.jsonl", "b.jsonl", "__MACOSX/._a.jsonl", "c.jsonl"]):
            archive.writestr(name, lines(*VALUES[number * 10 : number * 10 + 9]))
        damaged = archive.getinfo("b.jsonl").header_offset + 60
    content = bytearray(buffer.getvalue())
    content[damaged : damaged + 8] = b"\xff" * 8
    path = write(tmp_path / "a.jsonl.zip", bytes(content))
    assert reasons(path) == [*VALUES[:9], "damaged_part", *VALUES[30:39]]
    monkeypatch.setattr(jsonl, "_MAX_DIRECTORY", 100)
    (reject,) = rows(Lines(path))
    assert (reject.reason, "list of members" in reject.detail) == ("truncated_file", True)
