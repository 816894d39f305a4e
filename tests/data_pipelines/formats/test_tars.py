"""Tar files of samples: what is one sample, and what is left out.

A hostile archive writes no files and uses little memory.
"""

import gzip
import io
import tarfile

import numpy as np
import pytest

from data_pipelines.formats import tars
from data_pipelines.formats.tars import TarSample, samples
from data_pipelines.page import Reject


def made(members, *, form=tarfile.USTAR_FORMAT) -> bytes:
    """Returns a tar of (name, content) or (TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content) if info.type in (tarfile.REGTYPE, b"S") else info.size
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.fixture
def read(tmp_path):
    def read(content: bytes, name="00000.tar"):
        file = tmp_path / name
        file.write_bytes(content)
        return list(samples(str(file)))

    return read


GOOD = [
    ("000000000.jpg", b"image"),
    ("000000000.txt", b"a dog"),
    ("000000000.json", b"{}"),
    ("000000001.jpg", b"2nd"),
]


def test_members_of_one_key_are_one_sample(read):
    expected = [
        TarSample("000000000", {"jpg": b"image", "txt": b"a dog", "json": b"{}"}),
        TarSample("000000001", {"jpg": b"2nd"}),
    ]
    assert read(made(GOOD)) == expected
    assert read(gzip.compress(made(GOOD)), "00000.tar.gz") == expected


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_directories(read, form):
    long = "part/" + "x" * 150
    folder = (special("part", tarfile.DIRTYPE), b"")
    content = made([folder, (f"{long}.JPG", b"i"), (f"{long}.txt", b"text")], form=form)
    found = read(content)
    assert found == [TarSample(long, {"jpg": b"i", "txt": b"text"})]


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.jpg", b"x"),
        ("a/../../evil.jpg", b"x"),
        ("/etc/evil.jpg", b"x"),
        (special("evil.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (special("evil.jpg", tarfile.LNKTYPE, linkname="000000000.jpg"), b""),
        (special("evil.jpg", tarfile.CHRTYPE), b""),
        (special("evil.jpg", tarfile.FIFOTYPE), b""),
        (special("evil.jpg", tarfile.GNUTYPE_SPARSE), b"x"),
    ],
)
def test_a_sample_with_a_bad_member_is_left_out(read, tmp_path, member):
    name = member[0].name if isinstance(member[0], tarfile.TarInfo) else member[0]
    found = read(made([*GOOD[:3], member, (name.replace(".jpg", ".txt"), b"caption"), GOOD[3]]))
    assert [type(item) for item in found] == [TarSample, Reject, TarSample]
    assert found[1].reason == "path_traversal"
    assert found[1].broken
    assert [path.name for path in tmp_path.iterdir()] == ["00000.tar"]


def test_sparse_attributes_are_left_out(read):
    info = special("evil.jpg", tarfile.REGTYPE, pax_headers={"GNU.sparse.realsize": "999999999999"})
    (found,) = read(made([(info, b"x")], form=tarfile.PAX_FORMAT))
    assert found.reason == "path_traversal"


def test_large_and_doubled_members_are_left_out(read, monkeypatch):
    monkeypatch.setattr(tars, "MAX_SAMPLE", 1000)
    members = [("a.jpg", b"x" * 999), ("b.jpg", b"x" * 600), ("b.txt", b"y" * 600)]
    found = read(made([*members, ("c.jpg", b"1"), ("c.jpg", b"2")]))
    assert found[0] == TarSample("a", {"jpg": b"x" * 999})
    assert [item.reason for item in found[1:]] == ["sample_too_large", "duplicate_member"]


@pytest.mark.parametrize("compress", [lambda content: content, gzip.compress])
def test_truncated_file_gives_its_complete_samples(read, compress):
    """The sample at the cut is left out too, since members of it can be missing."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 2, 100_000), np.uint8)
    images = [(f"{k}.jpg", noise[k, 0].tobytes()) for k in range(9)]
    texts = [(f"{k}.txt", noise[k, 1].tobytes()) for k in range(9)]
    members = [member for pair in zip(images, texts, strict=True) for member in pair]
    compressed = compress(made(members))
    found = read(compressed[: int(len(compressed) * 0.7)])
    assert isinstance(found[-1], Reject)
    assert (found[-1].reason, found[-1].broken) == ("truncated_file", True)
    assert found[:-1] == [
        TarSample(str(k), {"jpg": noise[k, 0].tobytes(), "txt": noise[k, 1].tobytes()})
        for k in range(6)
    ]


def test_damaged_header_ends_the_file(read):
    content = bytearray(made(GOOD))
    content[2048:2148] = b"\xff" * 100  # the place of a header
    found = read(bytes(content))
    assert [item.reason for item in found if isinstance(item, Reject)] == ["truncated_file"]


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b broken gzip"])
def test_what_is_no_tar_is_unreadable(read, content):
    assert [(item.reason, item.broken) for item in read(content)] == [("unreadable_file", True)]


def test_missing_file_is_unreadable(tmp_path):
    assert [item.reason for item in samples(str(tmp_path / "none.tar"))] == ["unreadable_file"]


def test_false_sizes_use_no_memory(read):
    """A member with a stated size of 8 GiB, or a name of 4 GiB, ends the file.

    Nothing of that size is allocated; if it were, pytest would be killed.
    """
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        header = special("a.jpg", kind, size=8 << 30).tobuf(tarfile.GNU_FORMAT)
        assert [item.reason for item in read(header + b"x" * 5000)] == ["truncated_file"]
