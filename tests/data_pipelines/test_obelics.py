"""OBELICS: its parquet, with images by URL or inside; several documents in a row; damage."""

import collections
import hashlib
import json

import pytest
from etils import epath

from data_pipelines import obelics
from data_pipelines.collect import Found
from data_pipelines.obelics import END_OF_DOCUMENT, ObelicsRequest, read_file, read_row
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.sources import Source
from tests.data_pipelines.test_mmc4 import picture

pyarrow = pytest.importorskip("pyarrow")
pyarrow.parquet = pytest.importorskip("pyarrow.parquet")

A, B = picture(10), picture(60)
ADDRESSES = pyarrow.list_(pyarrow.string())
INSIDE = pyarrow.list_(pyarrow.binary())
HUGGING_FACE = pyarrow.list_(
    pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
)


def row(images, texts, url="https://a.org/page"):
    general = {
        "url": url,
        "warc_filename": "x.warc.gz",
        "warc_record_offset": 1,
        "warc_record_length": 2,
    }
    metadata = [None if image is None else {"src": str(image)} for image in images]
    return {
        "images": images,
        "texts": texts,
        "metadata": json.dumps(metadata, default=str),
        "general_metadata": json.dumps(general),
    }


def write(path, rows, images=ADDRESSES, **options):
    schema = pyarrow.schema(
        [
            ("images", images),
            ("texts", pyarrow.list_(pyarrow.string())),
            ("metadata", pyarrow.string()),
            ("general_metadata", pyarrow.string()),
        ]
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, **options)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for url, data in {"https://img.org/a.png": A, "https://img.org/b.png": B}.items():
        (directory / (hashlib.sha256(url.encode()).hexdigest() + ".png")).write_bytes(data)
    return str(directory)


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else "found" for item in items
    )


def pages(items):
    return [item.record.parts for item in items if isinstance(item, Found)]


def test_parquet_with_images_in_a_folder(tmp_path, folder):
    rows = [
        row(
            [None, "https://img.org/a.png", None, "https://img.org/b.png"],
            ["One.", None, " Two.\n\nThree. ", None],
        ),
        row(
            ["https://img.org/a.png", None, "https://img.org/none.png", None],
            [None, "x", None, "y"],
            "https://a.org/2",
        ),
    ]
    items = list(read_file(ObelicsRequest(images=folder), write(tmp_path / "o.parquet", rows)))
    assert pages(items) == [("One.", A, "Two.\n\nThree.", B), (A, "x\ny")]
    assert reasons(items) == {"found": 2, "missing_image": 1}
    assert items[0].keys[0] == "url:https://a.org/page"
    assert json.loads(items[0].record.metadata) == {"url": "https://a.org/page"}


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [(INSIDE, bytes), (HUGGING_FACE, lambda data: {"bytes": data, "path": "a.png"})],
)
def test_parquet_with_images_inside(tmp_path, kind, wrap):
    rows = [row([wrap(A), None, wrap(B)], [None, "text", None])]
    path = write(tmp_path / "o.parquet", rows, kind)
    assert pages(read_file(ObelicsRequest(), path)) == [(A, "text", B)]


def test_row_groups_are_read_one_after_the_other(tmp_path):
    rows = [row([A, None], [None, f"text {k}"], f"https://a.org/{k}") for k in range(100)]
    path = write(tmp_path / "o.parquet", rows, INSIDE, row_group_size=7)
    assert pages(read_file(ObelicsRequest(), path)) == [(A, f"text {k}") for k in range(100)]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_text_that_is_not_utf8_costs_its_page(tmp_path, folder, encoded):
    """Also in a dictionary. It once cost the rest of the file."""
    urls = [f"https://a.org/{k}" for k in range(9)]
    rows = [row([None, "https://img.org/a.png"], [url, None], url) for url in urls]
    path = write(tmp_path / "a.parquet", rows)
    table = pyarrow.parquet.read_table(path)
    texts = [text for url in urls for text in (url.encode(), None)]
    texts[6] = b"caf\xe9"
    values = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    if encoded:
        found = values.dictionary_encode()
        indices = found.indices.cast(pyarrow.int8())
        values = pyarrow.DictionaryArray.from_arrays(indices, found.dictionary)
    column = pyarrow.ListArray.from_arrays(list(range(0, 19, 2)), values)
    pyarrow.parquet.write_table(table.set_column(1, "texts", column), path)
    items = list(read_file(ObelicsRequest(images=str(folder)), path))
    assert reasons(items) == {"found": 8, "broken_text": 1}
    (reject,) = (item for item in items if isinstance(item, Reject))
    assert "https://a.org/3" in reject.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("café".encode(), ["café"]),
        (b"caf\xe9", ["broken_text"]),
        (7, ["not_obelics"]),
        (["x"], ["not_obelics"]),
    ],
    ids=str,
)
def test_texts_that_are_bytes_are_texts(text, expected):
    """They once became texts such as "b'caf...'"."""
    items = read_row(row([A, None], [None, text]), ObelicsRequest())
    found = [i.reason if isinstance(i, Reject) else i.record.parts[1] for i in items]
    assert found == expected


def test_documents_of_one_row_become_separate_pages():
    """No text attends an image of the document before it.

    Pages with the same URL are not duplicates of each other.
    """
    texts = [
        None,
        f"one {END_OF_DOCUMENT} two",
        None,
        f"{END_OF_DOCUMENT}three",
        f"four{END_OF_DOCUMENT}",
    ]
    items = list(read_row(row([A, None, B, None, None], texts), ObelicsRequest()))
    assert pages(items) == [(A, "one"), ("two", B)]
    assert reasons(items) == {"found": 2, "no_image_left": 1}
    assert not set(items[0].keys) & set(items[1].keys)


def test_markers_are_taken_out():
    items = read_row(row([A, None], [None, "an <image> tag"]), ObelicsRequest())
    assert pages(items) == [(A, "an image tag")]


def test_images_that_web_pages_lose_are_lost_here():
    images = [picture(10, (63, 80)), None, b"no image", None]
    items = list(read_row(row(images, [None, "a", None, "b"]), ObelicsRequest()))
    assert reasons(items) == {"image_too_small": 1, "not_an_image": 1, "no_image_left": 1}
    assert [item.unit for item in items] == ["image", "image", "record"]


@pytest.mark.parametrize(
    ("images", "texts", "reason"),
    [
        ([A], [None, "a"], "not_obelics"),
        ([A, A], [None, "a"], "not_obelics"),
        ([A, None], [None, None], "not_obelics"),
        (None, ["a"], "not_obelics"),
        ([A], [None], "no_text"),
        ([], [], "no_text"),
        ([None], ["a"], "no_image_left"),
    ],
)
def test_bad_rows_have_their_reason(images, texts, reason):
    made = row(images or [], texts) | {"images": images}
    assert [item.reason for item in read_row(made, ObelicsRequest())] == [reason]


@pytest.mark.parametrize("general", [None, "{", "[]", "{}"])
def test_pages_without_address(general):
    without = row([A, None], [None, "a"]) | {"general_metadata": general}
    (found,) = read_row(without, ObelicsRequest())
    assert [key.partition(":")[0] for key in found.keys] == ["text"]


def test_damaged_files(tmp_path):
    rows = [row([A, None], [None, f"text {k}"]) for k in range(200)]
    options = {"row_group_size": 50, "compression": "none", "use_dictionary": False}
    good = epath.Path(write(tmp_path / "o.parquet", rows, INSIDE, **options))
    content = good.read_bytes()
    broken = bytearray(content)
    broken[len(content) // 2 : len(content) // 2 + 60_000] = b"\xff" * 60_000
    table = pyarrow.table({"text": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "other.parquet")
    for name, bad, expected in (
        ("cut.parquet", content[: len(content) // 2], "unreadable_file"),
        ("empty.parquet", b"", "unreadable_file"),
        ("text.parquet", b"no parquet", "unreadable_file"),
        ("broken.parquet", bytes(broken), "truncated_file"),
        ("other.parquet", (tmp_path / "other.parquet").read_bytes(), "not_obelics"),
    ):
        (tmp_path / name).write_bytes(bad)
        items = list(read_file(ObelicsRequest(), str(tmp_path / name)))
        assert (items[-1].reason, items[-1].broken) == (expected, True), name
    (missing,) = read_file(ObelicsRequest(), str(tmp_path / "none.parquet"))
    assert missing.reason == "unreadable_file"


def test_dataset(tmp_path):
    rows = [
        row([A, None], [None, "a"], "https://a.org/1"),
        row([B, None], [None, "b"], "https://a.org/2"),
    ]
    write(tmp_path / "o.parquet", rows, INSIDE)
    output = epath.Path(tmp_path / "set")
    output.mkdir()
    counts = obelics.build(ObelicsRequest(input=str(tmp_path)), output, Execution(num_workers=1))
    assert counts == {"in": 2, "out: train": 2}
    assert Source(output)[1].parts == (B, "b")
