"""Reading annotation files: errors say what is missing, its source, and the expected layout."""

import re

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks import annotations
from flamingo_jax.evaluation.benchmarks.annotations import (
    AnnotationError,
    Files,
    most_common,
    one_line,
    records,
)
from flamingo_jax.evaluation.task import TaskError


@pytest.fixture
def files(tmp_path):
    return Files(
        str(tmp_path), "zoo", "zoo.org/download (v1)", "\nval.json\nimages/\n  0.jpg, ...\n"
    )


def test_a_missing_file_is_named_with_its_source_and_the_layout(files, tmp_path):
    with pytest.raises(TaskError) as caught:
        files.json("val.json", "annotations/val.json")
    assert str(caught.value) == (
        f"the benchmark 'zoo' needs {tmp_path}/val.json, and it is not there. Get it from "
        f"zoo.org/download (v1). Expected in the directory of zoo, {tmp_path}:\n"
        "    val.json\n"
        "    images/\n"
        "      0.jpg, ..."
    )


def test_the_first_existing_place_is_taken(files, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.jpg").write_bytes(b"x")
    (tmp_path / "1.jpg").write_bytes(b"x")
    assert files.path("a", "b") == epath.Path(tmp_path / "b")
    assert files.folder("a", "b", of="0.jpg") == epath.Path(tmp_path / "b")
    assert files.folder("a", "", of="1.jpg") == epath.Path(tmp_path)
    assert files.folder("a", "", of="b/0.jpg") == epath.Path(tmp_path)
    assert files.has("b/0.jpg") and not files.has("a/0.jpg")
    with pytest.raises(AnnotationError, match="needs .*/a/2.jpg, and it is not there"):
        files.folder("a", "b", of="2.jpg")


def json_file(files):
    return files.json("x")


def text_file(files):
    return files.text("x")


def json_lines(files):
    return files.json_lines("x")


def csv_of_a(files):
    return files.csv("x", columns=("a",))


def csv_of_a_and_b(files):
    return files.csv("x", columns=("a", "b"))


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        (b'{"a": [1, 2', json_file, "x is not valid JSON: .*It is cut off or damaged.*zoo.org"),
        (b"\xff\xfe", text_file, "cannot read .*x: .*Expected a text file in UTF-8"),
        (b"\xff\xfe", json_file, "Cannot read .*x: "),
        (b'{"a": 1}\n\n{"a": ', json_lines, "line 3 of .*x is not JSON .*zoo.org"),
        (b"a,c\n1,2\n", csv_of_a_and_b, "x lacks the columns b; got the header 'a,c'"),
        (b"", csv_of_a_and_b, "x lacks the columns a, b; got the header ''"),
        (b"a,b\n1,2\n1,2,3\n", csv_of_a, "x holds a row 1 of too many fields, expected rows of 2"),
        (b"a,b\n1,2\n1", csv_of_a_and_b, "x holds a row 1 of too few fields, expected rows of 2"),
        (b'a,b\n1,"what?\n2,who\n', csv_of_a_and_b, "x holds no CSV in line . .unexpected end"),
        (b'a,b\n1,"what?\n2,"who"\n', csv_of_a_and_b, "x holds no CSV in line . .*expected after"),
        (b"a,b,a\n1,2,3\n", csv_of_a, "x holds the column a twice, expected each column once"),
        (b"[" + b"9" * 5000 + b"]", json_file, "x is not valid JSON: Exceeds the limit"),
        (b"[" * 100_000, json_file, "x is not valid JSON: .* nested too deeply"),
        (b"[1]\n" + b"9" * 5000, json_lines, "line 2 of .*x is not JSON .Exceeds the limit"),
        (b"[" * 100_000, json_lines, "line 1 of .*x is not JSON .*nested too deeply"),
    ],
)
def test_damaged_files_are_one_error(files, tmp_path, content, read, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(AnnotationError, match=message):
        read(files)


def test_a_field_has_a_largest_size(files, tmp_path, monkeypatch):
    """Pictures in base64 are read (MMBench); a file that is one endless field is one error."""
    (tmp_path / "x").write_bytes(b'a\n"' + b"x" * 140_000 + b'"\n')
    assert len(csv_of_a(files)[0]["a"]) == 140_000
    monkeypatch.setattr(annotations, "_LARGEST_FIELD", 100_000)
    with pytest.raises(AnnotationError, match="x holds no CSV in line 1 .field larger"):
        csv_of_a(files)


def test_files_are_read_as_they_are_written_in_the_wild(files, tmp_path):
    """Byte order marks, carriage returns, commas and line breaks in quotes."""
    (tmp_path / "x.csv").write_bytes('\ufeffid,text\r\n1,"a, ""b""\nc"\r\n2,\r\n3\r\n'.encode())
    rows = files.csv("x.csv", columns=("id",))
    assert rows == [
        {"id": "1", "text": 'a, "b"\nc'},
        {"id": "2", "text": ""},
        {"id": "3", "text": ""},
    ]
    (tmp_path / "x.jsonl").write_bytes('\ufeff{"a": "b\u2028c"}\r\n\r\n[2]'.encode())
    assert files.json_lines("x.jsonl") == [{"a": "b\u2028c"}, [2]]
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert files.json("x.json") == [1]


def test_half_a_surrogate_pair_is_no_text(files, tmp_path):
    """A whole pair is one character; a backslash before the u is only a backslash."""
    (tmp_path / "x").write_bytes(rb'["\ud83d", {"\udc00": "a\uDE00"}, "\ud83d\ude00", "\\ud83d"]')
    expected = ["\ufffd", {"\ufffd": "a\ufffd"}, "\U0001f600", "\\ud83d"]
    assert files.json("x") == expected and files.json_lines("x") == [expected]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "f.json: expected a list of records, got dict. It is not the official file"),
        ([], "f.json: expected a list of records, got an empty one"),
        ([{"a": 1}, 7], "f.json: record 1 is int, expected an object with a"),
        ([{"a": 1}, {"b": 2}], r"f.json: record 1 should have 'a' \(int or str\), got only b"),
        ([{"a": [3]}], r"f.json: record 0 should have 'a' \(int or str\), got \[3\]"),
    ],
)
def test_records_are_checked(value, message):
    with pytest.raises(AnnotationError, match=message):
        records(value, {"a": (int, str)}, "f.json")


def test_records_may_have_more_fields():
    value = [{"a": 1, "b": 2}]
    assert records(value, {"a": int}, "f.json") is value


def test_text_of_prompts():
    assert one_line("  A man\n on\ta bike. ") == "A man on a bike."
    assert most_common(["b", "a", "a", "b"]) == "b"  # the first of equally frequent ones
    assert most_common(["b", "a", "a"]) == "a"
    assert most_common([]) == ""


def test_another_file_is_an_error_that_says_both(files):
    error = files.wrong("/d/val.json", "the split 'train'", "the split 'val'")
    assert re.search(
        "'zoo': /d/val.json holds the split 'train', expected the split 'val'. Put the official "
        ".*zoo.org",
        str(error),
    )
