"""Documents from each format, through the filters, to a dataset that the loader reads."""

import gzip
import json
import math
import pickle
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.documents import TextRequest, build, parts, read
from data_pipelines.formats import tfrecord
from data_pipelines.formats.parquet import RowGroups
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.sources import Source

pyarrow = pytest.importorskip("pyarrow")
pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

SYLLABLES = [f"{consonant}{vowel}" for consonant in "bdfgklmnprst" for vowel in "aeiou"]
WORDS = np.asarray([f"{first}{second}" for first in SYLLABLES for second in SYLLABLES])


def prose(seed, count=60):
    rng = np.random.default_rng(seed)
    return " ".join(["The", *rng.choice(WORDS, count, replace=False), "with"]) + "."


def collected(request):
    """Returns everything that is read, in order: texts, and reasons."""
    sent = (pickle.loads(pickle.dumps(part)) for part in parts(request))
    found = [item for part in sent for item in read(request, part)]
    return [item.reason if isinstance(item, Reject) else item.record.text for item in found]


def row(seed, **more):
    return {
        "text": prose(seed),
        "url": f"https://example.org/{seed}",
        "timestamp": "2019-04-25T12:57:54Z",
    } | more


ROWS = [row(seed) for seed in range(5)]
TEXTS = [row["text"] for row in ROWS]


def write_jsonl(path, rows):
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)


class C4(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's builder c4, on a few documents."""

    VERSION = tfds.core.Version("3.0.1")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]

    def _info(self):
        names = ("content-length", "content-type", "text", "timestamp", "url")
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, download_manager):
        return {
            "train": self._generate_examples(ROWS),
            "validation": self._generate_examples(ROWS[:1]),
        }

    def _generate_examples(self, rows):
        for number, one in enumerate(rows):
            yield number, one | {"content-type": "text/html", "content-length": "12"}


@pytest.fixture(scope="module")
def c4(tmp_path_factory):
    """DATA_DIR that contains c4/en/3.0.1 in ArrayRecord."""
    directory = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    C4(config="en", data_dir=str(directory), file_format="array_record").download_and_prepare()
    tfds.enable_progress_bar()
    return directory


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def frame(example):
    length = struct.pack("<Q", len(example))
    return length + struct.pack("<I", masked(length)) + example + struct.pack("<I", masked(example))


@pytest.fixture
def c4_tfrecord(c4, tmp_path):
    """The same dataset in TFRecord, the default of TFDS.

    (DATA_DIR, its training file, the framed examples).
    """
    directory = tmp_path / "c4" / "en" / "3.0.1"
    directory.mkdir(parents=True)
    source = c4 / "c4" / "en" / "3.0.1"
    (directory / "features.json").write_text((source / "features.json").read_text())
    info = (source / "dataset_info.json").read_text().replace("array_record", "tfrecord")
    (directory / "dataset_info.json").write_text(info)
    features = tfds.builder_from_directory(str(source)).info.features
    more = {"content-type": "text/html", "content-length": "12"}
    encoded = [features.encode_example(one | more) for one in ROWS]
    framed = [frame(features.serialize_example(example)) for example in encoded]
    file = directory / "c4-train.tfrecord-00000-of-00001"
    file.write_bytes(b"".join(framed))
    return tmp_path, file, framed


def test_crc32c_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283
    assert tfrecord._masked_crc32c(b"123456789") == masked(b"123456789")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst"])
def test_json_lines(name, tmp_path):
    write_jsonl(tmp_path / name, ROWS)
    assert collected(TextRequest(str(tmp_path / name))) == TEXTS
    assert collected(TextRequest(str(tmp_path))) == TEXTS


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_parquet(kind, tmp_path):
    content = pyarrow.array([text.encode() for text in TEXTS], pyarrow.binary()).cast(kind)
    urls = [one["url"] for one in ROWS]
    scores = [0.5, math.nan, *[0.5] * 3]
    table = pyarrow.table({"content": content, "url": urls, "score": scores})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2, compression="zstd")
    request = TextRequest(str(tmp_path), text_field="content", metadata_fields=("score",))
    assert parts(request) == [RowGroups(str(tmp_path / "a.parquet"), 0, 3)]
    assert collected(request) == TEXTS
    first, second, *_ = read(request, parts(request)[0])
    assert json.loads(first.record.metadata) == {"url": "https://example.org/0", "score": 0.5}
    assert second.record.metadata == json.dumps({"url": "https://example.org/1"})  # not NaN


def test_a_cell_that_is_not_utf8_costs_its_document(tmp_path):
    texts = pyarrow.array([text.encode() for text in TEXTS[:3]] + [b"caf\xe9"], pyarrow.binary())
    table = pyarrow.table({"text": texts.view(pyarrow.string()).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert collected(TextRequest(str(tmp_path))) == [*TEXTS[:3], "broken_text"]


def test_a_very_long_text_is_left_out_before_it_is_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.documents.MAX_CHARACTERS", len(TEXTS[0]))
    monkeypatch.setattr("data_pipelines.documents.without_markers", lambda text: text[:0])
    write_jsonl(tmp_path / "a.jsonl", [{"text": TEXTS[0] + "x"}, {"text": TEXTS[0]}])
    assert collected(TextRequest(str(tmp_path))) == ["text_too_long", "no_text"]


def test_row_groups_are_divided_into_parts(tmp_path, monkeypatch):
    table = pyarrow.table({"text": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    size = pyarrow.parquet.read_metadata(tmp_path / "a.parquet").row_group(0).total_byte_size
    monkeypatch.setattr("data_pipelines.formats.parquet.PART", 2 * size + 100)
    request = TextRequest(str(tmp_path))
    assert [(part.start, part.stop) for part in parts(request)] == [(0, 2), (2, 4), (4, 5)]
    assert collected(request) == TEXTS


def test_tfds_builder(c4):
    assert collected(TextRequest("tfds:c4/en:3.0.1", data_dir=str(c4))) == TEXTS
    request = TextRequest("tfds:c4/en:3.0.1", data_dir=str(c4), split="validation")
    assert collected(request) == TEXTS[:1]


def test_tfds_builder_in_tfrecord(c4_tfrecord):
    data_dir, file, framed = c4_tfrecord
    request = TextRequest("tfds:c4/en:3.0.1", data_dir=str(data_dir))
    assert collected(request) == TEXTS
    file.write_bytes(b"".join(framed)[:-100])
    assert collected(request) == [*TEXTS[:4], "truncated_file"]
    file.write_bytes(framed[0] + frame(b"\xff" * 20) + framed[1])
    assert collected(request) == [TEXTS[0], "corrupt_record", TEXTS[1]]
    file.write_bytes(framed[0] + b"\xff" * 12 + framed[1])
    assert collected(request) == [TEXTS[0], "truncated_file"]
    file.write_bytes(framed[0] + framed[1][:5])
    assert collected(request) == [TEXTS[0], "truncated_file"]
    file.unlink()
    assert collected(request) == ["unreadable_file"]


def test_damaged_array_record(c4, tmp_path):
    shutil.copytree(c4, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("c4-train*")
    data = bytearray(file.read_bytes())
    # Without padding, and without the index at the end.
    filled = [position for position, byte in enumerate(data) if byte][:-100]
    position = filled[len(filled) // 2]
    data[position : position + 8] = b"\xff" * 8
    file.write_bytes(data)
    request = TextRequest("tfds:c4/en:3.0.1", data_dir=str(tmp_path / "copy"))
    found = collected(request)
    assert set(found) - set(TEXTS) == {"corrupt_record"}
    assert len(found) == 5
    file.write_bytes(b"no such format")
    assert collected(request) == ["unreadable_file"]


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"input": "tfds:c4/en:3.0.1"}, "no dataset in .*c4/en/3.0.1 .*Prepare it with TFDS"),
        ({"input": "tfds:c4/en"}, "NAME:VERSION"),
        ({"input": "nowhere/*.jsonl"}, "no such file"),
        ({"input": ""}, "--input is missing"),
    ],
)
def test_missing_input_is_an_error(request_fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parts(TextRequest(data_dir=str(tmp_path), **request_fields))


def test_unknown_format_and_split_and_field_are_errors(tmp_path, c4):
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ValueError, match=r"a\.csv: expected the name of a file to end in \.jsonl"):
        parts(TextRequest(str(tmp_path / "a.csv")))
    with pytest.raises(ValueError, match=r"--split=test: .* has train, validation"):
        parts(TextRequest("tfds:c4/en:3.0.1", data_dir=str(c4), split="test"))
    with pytest.raises(ValueError, match="--text_field is empty"):
        TextRequest(text_field="")


def test_what_is_wrong_with_rows_is_counted(tmp_path):
    bad = [
        {"content": "x"},
        {"text": None},
        {"text": ["x"]},
        {"text": "half a pair \ud800"},
        {"text": " \n"},
    ]
    filtered = [{"text": "too short"}, {"text": f"{prose(9)}\n" * 4}]
    write_jsonl(tmp_path / "a.jsonl", [ROWS[0], *bad, *filtered, ROWS[1]])
    request = TextRequest(str(tmp_path))
    damaged = ["no_text_field"] * 3 + ["broken_text", "no_text"]
    expected = [*damaged, "too_few_words", "duplicate_lines"]
    assert collected(request) == [TEXTS[0], *expected, TEXTS[1]]
    off = TextRequest(str(tmp_path), quality_filter=False, repetition_filter=False)
    assert collected(off)[6:8] == ["too short", f"{prose(9)}\n" * 3 + prose(9)]
    rejects = [item for part in parts(request) for item in read(request, part)]
    assert [item.detail for item in rejects if isinstance(item, Reject)][:3] == [
        "fields content, not 'text'",
        "the field 'text' is null, not text",
        "the field 'text' is of type list, not text",
    ]


def test_what_is_wrong_with_parquet_is_counted(tmp_path):
    request = TextRequest(str(tmp_path))
    file = tmp_path / "a.parquet"
    offsets = pyarrow.py_buffer(np.asarray([0, 2, 4], np.int32))
    content = pyarrow.py_buffer(b"\xff\xfeab")
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, content])
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), file)
    assert collected(request) == ["broken_text", "too_few_words"]
    pyarrow.parquet.write_table(pyarrow.table({"content": TEXTS}), file)
    assert collected(request) == ["no_text_field"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), file)
    assert collected(request) == ["no_text_field"] * 2
    table = pyarrow.table({"text": TEXTS})
    pyarrow.parquet.write_table(table, file, row_group_size=3, compression="none")
    data = file.read_bytes()
    file.write_bytes(data[:-20])
    assert collected(request) == ["unreadable_file"]
    start = data.index(b"\x15")  # the header of the first page
    file.write_bytes(data[:start] + b"\xff" * 20 + data[start + 20 :])
    assert collected(request) == ["truncated_file", *TEXTS[3:]]


def test_markers_of_the_model_are_removed(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [row(0, text=f"{prose(0)} <image> and <EOC>")])
    assert collected(TextRequest(str(tmp_path))) == [f"{prose(0)} image and EOC"]


def test_keys(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [ROWS[0], row(1, url=None), row(2, url=7)])
    request = TextRequest(str(tmp_path), near_duplicates=True)
    found = list(read(request, parts(request)[0]))
    kinds = [[key.partition(":")[0] for key in item.keys] for item in found]
    assert kinds == [
        ["url", "text", *["text_alike"] * 16],
        ["text", *["text_alike"] * 16],
        ["text", *["text_alike"] * 16],
    ]


def test_one_command_makes_a_dataset(tmp_path):
    """Duplicates across files: the same URL, the same text, nearly the same text."""
    nearly = prose(1, 1000).split()
    changed = [*nearly[:500], "otherwise", *nearly[501:]]
    a = [ROWS[0], row(10, text=" ".join(nearly)), {"text": "short"}]
    b = [
        row(0, text=prose(7)),
        row(11, text=TEXTS[0].upper()),
        row(12, text=" ".join(changed)),
        ROWS[2],
    ]
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", a)
    write_jsonl(tmp_path / "in" / "b.jsonl.gz", b)
    output = epath.Path(tmp_path / "out")
    output.mkdir()
    request = TextRequest(str(tmp_path / "in"), near_duplicates=True)
    counts = build(request, output, Execution(num_workers=1))
    source = Source(output)
    assert source.kind == "document"
    assert [source[index].text for index in range(len(source))] == [
        TEXTS[0],
        " ".join(nearly),
        TEXTS[2],
    ]
    assert json.loads(source[0].metadata) == {
        "url": "https://example.org/0",
        "timestamp": "2019-04-25T12:57:54Z",
    }
    assert counts["in"] == 7
    assert counts["left out: duplicate_url"] == counts["left out: duplicate_text"] == 1
    assert counts["left out: duplicate_text_alike"] == counts["left out: too_few_words"] == 1
