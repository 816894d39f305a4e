"""Tables: columns by name, parts that lose no row, and damage that affects only its row."""

import pytest

from data_pipelines.formats import tables
from data_pipelines.formats.tables import Part, column, parts, rows
from data_pipelines.page import Reject


@pytest.fixture
def table(tmp_path):
    def table(content: bytes, name="pairs.csv") -> str:
        file = tmp_path / name
        file.write_bytes(content)
        return str(file)

    return table


def reasons(items):
    return [item.reason if isinstance(item, Reject) else "row" for item in items]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_rows_by_column(table, mark, end):
    lines = [b"filepath,title", b'a.jpg,"one, ""two""\nthree"', b"", b"b.jpg,\xc3\xa9"]
    found = list(rows(Part(table(mark + end.join(lines)))))
    assert found == [
        {"filepath": "a.jpg", "title": 'one, "two"\nthree'},
        {"filepath": "b.jpg", "title": "é"},
    ]


def test_tabs_separate_columns_with_any_file_name(table):
    """The .csv files of OpenCLIP are separated by tabs."""
    assert list(rows(Part(table(b"filepath\ttitle\na.jpg\tone, two\n")))) == [
        {"filepath": "a.jpg", "title": "one, two"}
    ]


def test_only_damaged_rows_are_left_out(table):
    content = b"path,caption\na,1\nb\nc,3,3\nd,\xff\n" + b'e,"' + b"x" * 200_000 + b"\nf,6\n"
    found = list(rows(Part(table(content))))
    assert reasons(found) == ["row", "broken_row", "broken_row", "broken_text", "broken_row", "row"]
    assert all(item.broken for item in found if isinstance(item, Reject))
    assert found[-1] == {"path": "f", "caption": "6"}


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_parts_contain_every_row_once(table, size):
    """Also if a field contains newlines."""
    middle = b"".join(b'%d,"a\nb %d"\n' % (k, k) for k in range(30))
    content = b"path,caption\n" + middle + b"31,last"
    path = table(content)
    whole = list(rows(Part(path)))
    cut = parts(path, size)
    assert [row for part in cut for row in rows(part)] == whole
    assert len(whole) == 31
    assert (len(cut) > 1) == (size < len(content))


def test_empty_and_missing_files(table, tmp_path):
    for content in (b"", b"path,caption\n"):
        (part,) = parts(table(content), 10)
        assert list(rows(part)) == []
    (part,) = parts(str(tmp_path / "none.csv"), 10)
    assert reasons(rows(part)) == ["unreadable_file"]


def test_lines_without_end_cost_no_memory(table, monkeypatch):
    monkeypatch.setattr(tables, "_MAX_LINE", 1000)
    found = list(rows(Part(table(b"path,caption\na,1\n" + b"x" * 5000 + b"\nb,2\n"))))
    assert found[0] == {"path": "a", "caption": "1"}
    assert found[-1] == {"path": "b", "caption": "2"}
    assert set(reasons(found[1:-1])) == {"broken_row"}


def test_column_is_the_given_one_or_the_first_known():
    row = {"title": "t", "caption": "c", "mine": "m"}
    assert column(row, "", ("caption", "title"), flag="--text_column") == "c"
    assert column(row, "mine", ("caption",), flag="--text_column") == "m"
    missing = column(row, "none", ("caption",), flag="--text_column")
    assert isinstance(missing, Reject)
    assert missing.reason == "missing_column"
    assert missing.detail.endswith("name the right one by --text_column")
