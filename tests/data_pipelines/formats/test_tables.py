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


ROWS = [f"{k}.jpg,picture {k}" for k in range(60)]


def found_rows(items):
    return [f"{row['path']},{row['caption']}" for row in items if isinstance(row, dict)]


@pytest.mark.parametrize(
    "bad",
    [
        {1: '1.jpg,"Look at number 1'},
        {1: '1.jpg,"Look', 40: '40.jpg,"Look'},
        {1: '1.jpg,"Look', 40: '40.jpg,a 5"'},
        {1: '1.jpg,"Look', 2: '2.jpg,"Look', 3: '3.jpg,"""'},
        {59: '59.jpg,"Look'},
        {30: '30.jpg,"Look ""here""'},
        {1: '"1.jpg,Look', 40: '"40.jpg",Look'},
    ],
)
@pytest.mark.parametrize("size", [50, 300, 1 << 20])
def test_a_quote_that_is_never_closed_costs_its_row(table, bad, size):
    """The rows that it would swallow are read, and it is counted."""
    lines = [bad.get(number, row) for number, row in enumerate(ROWS)]
    path = table(("path,caption\n" + "\n".join(lines) + "\n").encode())
    items = [row for part in parts(path, size) for row in rows(part)]
    assert len(items) == 60
    found = found_rows(items)
    assert [row for row in found if row in ROWS] == [
        row for number, row in enumerate(ROWS) if number not in bad
    ]
    lost = [item.reason for item in items if isinstance(item, Reject)]
    assert lost
    assert set(lost) == {"unclosed_quote"}


def test_fields_of_several_lines_are_no_open_quotes(table):
    texts = ["one\ntwo", "a, b\nc, d.", 'he said ""x""\n""y""', "\n\n", "see\nb.jpg\n"]
    content = "path,caption\n" + "".join(f'{k}.jpg,"{text}"\n' for k, text in enumerate(texts))
    found = list(rows(Part(table(content.encode()))))
    assert [row["caption"].replace('"', '""') for row in found] == texts
    columns = "caption,path\n" + "".join(f'"{text}",{k}.jpg\n' for k, text in enumerate(texts))
    assert len(list(rows(Part(table(columns.encode()))))) == len(texts)


def test_a_quote_in_a_table_with_tabs_is_a_letter(table):
    content = b'path\tcaption\n1.jpg\t"Look\n2.jpg\t5" pipe\n3.jpg\t"a ""b"""\n'
    path = table(content, "t.tsv")
    assert [row["caption"] for row in rows(Part(path))] == ['"Look', '5" pipe', '"a ""b"""']
    *_, last = rows(Part(path, quoted=True))
    assert last == {"path": "3.jpg", "caption": 'a "b"'}
    named = table(b'"path"\t"caption"\n"1.jpg"\t"a\tb"\n', "u.tsv")
    assert list(rows(Part(named))) == [{"path": "1.jpg", "caption": "a\tb"}]


@pytest.mark.parametrize("separator", [";", "|"])
def test_other_separators(table, separator):
    lines = ["path,caption", '1.jpg,"a;b|c"', "2.jpg,d"]
    content = "\r\n".join(line.replace(",", separator) for line in lines)
    assert [row["caption"] for row in rows(Part(table(content.encode())))] == ["a;b|c", "d"]


TABLE = "path,caption\n1.jpg,a\n2.jpg,b\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.encode("utf-16"), "in UTF-16 or UTF-32: save it as UTF-8"),
        (TABLE.encode("utf-16-le"), "in UTF-16 or UTF-32: save it as UTF-8"),
        (TABLE.encode("utf-32"), "in UTF-16 or UTF-32: save it as UTF-8"),
        (TABLE.replace("\n", "\r").encode(), "end in a carriage return alone"),
        (b"path,caption,path\n1.jpg,a,b\n", "1 names of columns occur twice, as 'path'"),
        (b'path,"caption\n1.jpg,a\n', "its first row has no names of columns"),
    ],
)
def test_what_is_no_table_is_one_clear_error(table, content, message):
    path = table(content)
    (part,) = parts(path, 1)
    (reject,) = rows(part)
    assert (reject.reason, reject.broken) == ("unreadable_file", True)
    assert message in reject.detail


def test_columns_without_a_name_and_odd_white_space(table):
    content = b"\n\npath, caption ,,\n1.jpg,a\rb,,\n2.jpg,\0,,\n3.jpg,c,d,e\n"
    first, second, third = rows(Part(table(content)))
    assert first == {"path": "1.jpg", "caption": "a b"}
    assert second.reason == "broken_text"
    assert third == {"path": "3.jpg", "caption": "c"}


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
    assert "If these are values, put a row of names before it, such as caption" in missing.detail
