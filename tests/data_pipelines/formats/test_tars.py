"""Tar files of samples: what is one sample, and what is left out.

A hostile archive writes no files and uses little memory.
"""

import collections
import gzip
import io
import tarfile

import numpy as np
import pytest

from data_pipelines.formats import tar_members, tars
from data_pipelines.formats.tars import TarSample, samples
from data_pipelines.page import Reject

zstandard = pytest.importorskip("zstandard")


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


def test_a_member_larger_than_the_limit_of_its_suffix_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "a.tar.gz"
    members = [("0.jpg", b"i"), ("0.txt", b"t" * 5000), ("1.jpg", b"i"), ("1.txt", b"t" * 50)]
    file.write_bytes(gzip.compress(made(members)))
    read = tar_members.Member.read
    sizes = []
    monkeypatch.setattr(
        tar_members.Member, "read", lambda self: sizes.append(self.size) or read(self)
    )
    first, second = samples(str(file), {"jpg": 9000, "txt": 50})
    assert (first.reason, first.broken, first.detail) == ("member_too_large", True, "0")
    assert second.key == "1"
    assert sizes == [1, 1, 50]


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


ALL = [TarSample(f"{k:03}", {"jpg": bytes([k]) * 700, "txt": b"%d" % k}) for k in range(30)]
END = bytes(10240)


def archive(few, *, end=END):
    """Returns an archive of samples of ALL; each has four blocks, of two headers and two texts."""
    members = [
        (f"{each.key}.{suffix}", content) for each in few for suffix, content in each.files.items()
    ]
    content = made(members)
    assert not content[BLOCKS * len(few) :].strip(b"\0")
    return content[: BLOCKS * len(few)] + end


BLOCKS = 5 * 512


def outcome(items):
    """Returns the samples, and the reasons of rejects that are no single file."""
    samples = [item for item in items if isinstance(item, TarSample)]
    return samples, [item.reason for item in items if isinstance(item, Reject)]


ZSTD = zstandard.ZstdCompressor(write_checksum=True)
PACK = {
    "plain": lambda *parts: b"".join(parts),
    "gzip": lambda *parts: gzip.compress(b"".join(parts)),
    "gzip members": lambda *parts: b"".join(map(gzip.compress, parts)),
    "zstd frames": lambda *parts: b"".join(map(ZSTD.compress, parts)),
}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("end", [END, bytes(1024), b""])
def test_archives_one_behind_the_other(read, pack, end):
    parts = archive(ALL[:9], end=end), archive(ALL[9:20], end=end), archive(ALL[20:])
    assert read(PACK[pack](*parts)) == ALL


@pytest.mark.parametrize("damage", [bytes, lambda size: b"\xff" * size, lambda size: b""])
@pytest.mark.parametrize("start", [10 * BLOCKS, 10 * BLOCKS + 512, 10 * BLOCKS + 700, 8 * BLOCKS])
@pytest.mark.parametrize("size", [512, 1300, 3 * BLOCKS, 3 * BLOCKS + 5])
def test_a_hole_costs_what_is_in_it(read, damage, start, size):
    """A part of the file is zeros, or noise, or is missing; the rest is read, the loss counted."""
    if not damage(9) and size % BLOCKS == 0:
        return  # whole samples are missing, and nothing shows it
    content = archive(ALL)
    found, reasons = outcome(read(content[:start] + damage(size) + content[start + size :]))
    keys = [each.key for each in found]
    first, last = start // BLOCKS, -(-(start + size) // BLOCKS)
    untouched = [each.key for each in ALL[:first] + ALL[last:]]
    assert [key for key in keys if key in untouched] == untouched
    in_hole = start % BLOCKS >= 512 and start % BLOCKS + size <= 1536  # in one image
    assert reasons or (in_hole and damage(9))
    assert set(reasons) <= {"damaged_part"}


@pytest.mark.parametrize("pack", ["gzip members", "zstd frames"])
@pytest.mark.parametrize("where", [0.02, 0.5, 0.98])
def test_a_damaged_member_of_the_compression_costs_its_part(read, pack, where):
    noise = np.random.default_rng(0).integers(0, 255, (9, 3000), np.uint8)
    few = [TarSample(f"{k}", {"jpg": noise[k].tobytes(), "txt": b"x"}) for k in range(9)]
    parts = []
    for k in (0, 3, 6):
        members = [(f"{e.key}.{s}", c) for e in few[k : k + 3] for s, c in e.files.items()]
        parts.append(PACK[pack](made(members)[: 3 * 9 * 512]))
    second = bytearray(parts[1])
    at = int(len(second) * where)
    second[at : at + 8] = bytes(byte ^ 0x55 for byte in second[at : at + 8])
    found, reasons = outcome(read(parts[0] + bytes(second) + parts[2]))
    assert found[:2] == few[:2]
    assert found[-3:] == few[6:]
    assert "damaged_part" in reasons
    cut, reasons = outcome(read(parts[0] + parts[1] + parts[2][: len(parts[2]) // 2]))
    assert cut[:6] == few[:6]
    assert reasons == ["truncated_file"]


def test_a_size_beyond_the_end_of_the_file_is_no_size(read):
    false = special("a.jpg", tarfile.REGTYPE, size=8 << 30).tobuf(tarfile.GNU_FORMAT)
    found, reasons = outcome(read(archive(ALL[:5], end=b"") + false + archive(ALL[5:])))
    assert found == ALL
    assert reasons == ["damaged_part"]


def test_the_map_of_a_sparse_file_is_no_member(read):
    header = bytearray(special("hole.jpg", b"S", size=512).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # a block with more of the map follows
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    content = bytes(header) + b"\1" * 504 + bytes(8) + b"x" * 512
    found, reasons = outcome(read(archive(ALL[:5], end=b"") + content + archive(ALL[5:])))
    assert (found, reasons) == (ALL, ["path_traversal"])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_that_is_lost_is_not_that_of_another_member(read, form):
    long = made([("x" * 150 + ".jpg", b"image")], form=form)
    (start,) = [at for at in range(0, len(long), 512) if long[at:].startswith(b"x" * 100)][-1:]
    damaged = long[:start] + b"\xff" * 512 + long[start + 512 : start + 1024]
    found, reasons = outcome(read(damaged + archive(ALL)))
    assert (found, reasons) == (ALL, ["damaged_part"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a.1.jpg a.1.txt a.2.jpg a.2.txt", {"a.1": "jpg txt", "a.2": "jpg txt"}),
        ("a.x.jpg a.x.txt a.y.jpg a.y.txt", {"a.x": "jpg txt", "a.y": "jpg txt"}),
        ("a-2.0.jpg a-2.0.txt", {"a-2.0": "jpg txt"}),
        ("a.1.jpg a.2.txt", {"a.1": "jpg", "a.2": "txt"}),
        ("a.input.jpg a.output.txt", {"a": "input.jpg output.txt"}),
        ("a.jpg a.mask.jpg a.txt", {"a": "jpg mask.jpg txt"}),
        ("a.mask.jpg a.jpg a.txt", {"a": "mask.jpg jpg txt"}),
        ("d.1/a.jpg d.1/a.txt d.2/a.jpg", {"d.1/a": "jpg txt", "d.2/a": "jpg"}),
        ("a.JPG a.Txt", {"a": "jpg txt"}),
    ],
)
def test_keys_with_dots(read, names, expected):
    found = read(made([(name, name.encode()) for name in names.split()]))
    assert {each.key: " ".join(each.files) for each in found} == expected


def test_one_member_with_a_longer_suffix_is_found():
    sample = TarSample("a", {"input.jpg": b"1", "output.txt": b"2", "l.png": b"3", "r.png": b"4"})
    assert sample.first("jpeg", "jpg") == b"1"
    assert sample.first("png") is None


def test_members_that_nobody_means_are_counted_by_suffix(tmp_path):
    members = [("._0.jpg", b""), ("0.jpg", b"i"), (".DS_Store", b""), ("0.txt", b"t")]
    members += [("__MACOSX/._0.jpg", b""), ("0.npy", b"n"), ("__meta__.json", b"{}")]
    file = tmp_path / "a.tar"
    file.write_bytes(made([*members, ("inner.tar", made(GOOD)), ("1.heic", b"h"), ("1.txt", b"t")]))
    found = list(samples(str(file), {"jpg": 9, "txt": 9, "json": 9}))
    expected = [
        TarSample("0", {"jpg": b"i", "txt": b"t"}, ("npy",)),
        TarSample("1", {"txt": b"t"}, ("heic",)),
    ]
    assert [item for item in found if isinstance(item, TarSample)] == expected
    rejects = [item for item in found if isinstance(item, Reject)]
    assert all(item.unit == "file" for item in rejects)
    counts = {".DS_Store": 1, "._*": 2, ".npy": 1, ".json": 1, ".tar": 1, ".heic": 1}
    assert collections.Counter(item.reason for item in rejects) == counts
    assert "heic, txt" in expected[1].described()


def test_bytes_behind_the_end_are_counted(read):
    found = read(archive(ALL) + b"x" * 600)
    assert found[:-1] == ALL
    assert (found[-1].reason, found[-1].unit) == ("behind the end", "file")
    found, reasons = outcome(read(archive(ALL[:20]) + bytes(2 << 20)))
    assert (found, reasons) == (ALL[:20], ["truncated_file"])


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
