"""Parquet: a bad cell costs a cell, at any depth; what a few bytes unpack to is bounded."""

import io

import pytest
from etils import epath

from data_pipelines.formats import parquet
from data_pipelines.formats.parquet import BrokenText, RowGroups, parts, rows
from data_pipelines.page import Reject

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

BAD = b"caf\xe9"


def strings(kind="string"):
    """Returns the texts "a", one that is not UTF-8, and null, of a type of Arrow."""
    if kind == "string_view":
        views = pa.array([b"a", BAD, None], pa.binary_view())
        return pa.Array.from_buffers(pa.string_view(), 3, views.buffers())
    binary = {"string": pa.binary(), "large_string": pa.large_binary()}[kind]
    return pa.array([b"a", BAD, None], binary).view(getattr(pa, kind)())


def dictionary():
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), strings()[:2])


@pytest.fixture
def written(tmp_path):
    def written(columns, name="a.parquet", **options):
        path = str(tmp_path / name)
        pq.write_table(pa.table(columns), path, **options)
        return path

    return written


NESTED = {
    "string": (lambda: strings(), ["a", BAD, None]),
    "large_string": (lambda: strings("large_string"), ["a", BAD, None]),
    "string_view": (lambda: strings("string_view"), ["a", BAD, None]),
    "dictionary": (dictionary, ["a", BAD, None]),
    "list": (
        lambda: pa.ListArray.from_arrays([0, 2, 2, 3], strings()),
        [["a", BAD], [], [None]],
    ),
    "large_list": (
        lambda: pa.LargeListArray.from_arrays([0, 2, 2, 3], strings("large_string")),
        [["a", BAD], [], [None]],
    ),
    "list of dictionary": (
        lambda: pa.ListArray.from_arrays([0, 2, 2, 3], dictionary()),
        [["a", BAD], [], [None]],
    ),
    "struct": (
        lambda: pa.StructArray.from_arrays(
            [strings(), pa.array([BAD, None, b""], pa.binary())], ["path", "bytes"]
        ),
        [
            {"path": "a", "bytes": BAD},
            {"path": BAD, "bytes": None},
            {"path": None, "bytes": b""},
        ],
    ),
    "map": (
        lambda: pa.MapArray.from_arrays([0, 1, 1, 1], strings()[:1], strings()[1:2]),
        [[("a", BAD)], [], []],
    ),
}


def flat(cell):
    if isinstance(cell, dict):
        cell = list(cell.values())
    return (
        [leaf for each in cell for leaf in flat(each)] if isinstance(cell, list | tuple) else [cell]
    )


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("with_schema", [True, False])
def test_a_text_that_is_not_utf8_costs_a_cell(written, kind, with_schema):
    make, expected = NESTED[kind]
    path = written({"text": make(), "number": [1, 2, 3]}, store_schema=with_schema)
    found = list(rows(RowGroups(path), ("text",), ("number",), missing="none"))
    assert [row["number"] for row in found] == [1, 2, 3]
    cells = [row["text"] for row in found]
    assert cells == expected
    broken = [leaf for cell in cells for leaf in flat(cell) if isinstance(leaf, BrokenText)]
    assert broken == [BAD]


def test_missing_columns_and_files(written, tmp_path):
    path = written({"a": [1], "b": [2]})
    (missing,) = rows(RowGroups(path), ("a", "c"), missing="no_text_field")
    assert (missing.reason, missing.broken) == ("no_text_field", True)
    assert "columns a, b, not c" in missing.detail
    assert list(rows(RowGroups(path), ("a",), ("c",), missing="none")) == [{"a": 1}]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for name in ("bad", "none"):
        (part,) = parts(str(tmp_path / f"{name}.parquet"))
        assert [row.reason for row in rows(part, ("a",), missing="none")] == ["unreadable_file"]


def test_a_damaged_row_group_costs_a_row_group(written):
    texts = [f"text {k} " * 50 for k in range(30)]
    path = written({"a": texts}, row_group_size=10, compression="none", use_dictionary=False)
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(epath.Path(path).read_bytes())
    content[at : at + 20] = b"\xff" * 20
    epath.Path(path).write_bytes(bytes(content))
    found = list(rows(RowGroups(path), ("a",), missing="none"))
    assert [row["a"] for row in found if isinstance(row, dict)] == texts[:10] + texts[20:]
    (reject,) = [row for row in found if isinstance(row, Reject)]
    assert reject.reason == "truncated_file"
    assert "row group 1, after 0 rows" in reject.detail


def rows_of_batches(monkeypatch):
    sizes = []
    read = parquet._batch_rows
    monkeypatch.setattr(
        parquet, "_batch_rows", lambda batch: sizes.append(batch.num_rows) or read(batch)
    )
    return sizes


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_large_cells_are_decoded_a_few_at_once(written, monkeypatch, dictionary, nested):
    """Four megabytes of text in each row of a file of a few kilobytes."""
    monkeypatch.setattr(parquet, "_MEMORY", 16 << 20)
    sizes = rows_of_batches(monkeypatch)
    text = "a" * (1 << 22)
    cells = [[text, None, None, text]] * 12 if nested else [text] * 12
    path = written({"text": cells}, compression="zstd", use_dictionary=dictionary)
    assert epath.Path(path).stat().length < 20_000
    assert [row["text"] for row in rows(RowGroups(path), ("text",), missing="none")] == cells
    assert max(sizes) <= (1 if nested else 4)


def test_small_cells_are_decoded_many_at_once(written, monkeypatch):
    sizes = rows_of_batches(monkeypatch)
    path = written({"text": [f"a text of some words {k}" for k in range(1000)]})
    assert len(list(rows(RowGroups(path), ("text",), missing="none"))) == 1000
    assert max(sizes) == parquet._MOST_ROWS


def test_a_row_group_that_needs_too_much_memory_is_left_out(written, monkeypatch):
    monkeypatch.setattr(parquet, "_MAX_PAGE", 1 << 20)
    path = written({"a": ["x", "y" * (1 << 21), "z"]}, row_group_size=1, compression="zstd")
    first, second, third = rows(RowGroups(path), ("a",), missing="none")
    assert (first, third) == ({"a": "x"}, {"a": "z"})
    assert (second.reason, second.broken) == ("row_group_too_large", True)
    assert "row group 1: 1 rows" in second.detail


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("statistics", [True, False])
def test_pages_are_measured(written, version, statistics):
    """The sizes are those in the headers, whatever else the headers contain."""
    texts = [f"{k % 7} " * 900 for k in range(2000)]
    path = written(
        {"a": texts, "b": [[k, None, k] for k in range(2000)]},
        data_page_version=version,
        write_statistics=statistics,
        write_page_checksum=True,
        data_page_size=20_000,
        use_dictionary=["a"],
    )
    group = pq.ParquetFile(path).metadata.row_group(0)
    with epath.Path(path).open("rb") as raw:
        pages = [parquet._largest_page(group.column(number), raw) for number in range(2)]
        assert parquet._largest_page(group.column(0), io.BytesIO(b"\xff" * 50_000)) is None
    assert 7 * 1800 <= pages[0] <= 20_000
    assert 10_000 < pages[1] < 100_000


@pytest.mark.parametrize("kind", [b"\xf1", b"\xf7", b"\xf9"])  # a list of booleans, doubles, lists
def test_a_damaged_count_in_the_header_of_a_page_takes_no_time(kind):
    count = b"\xff" * 7 + b"\x7f"  # 2^56 values
    with pytest.raises(IndexError):
        parquet._struct(b"\x19" + kind + count + bytes(100), 0)
    with pytest.raises(IndexError):
        parquet._struct(b"\x16" + b"\xff" * 5000, 0)
