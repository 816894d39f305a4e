"""core.paths: files are complete or absent, and errors name the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathError


def test_make_directory_is_idempotent_and_refuses_a_file(tmp_path):
    made = paths.make_directory(tmp_path / "a" / "b")
    assert made.is_dir()
    assert paths.make_directory(made) == made
    (tmp_path / "file").write_text("x")
    with pytest.raises(PathError, match=r"Cannot make the directory .*file/inner"):
        paths.make_directory(tmp_path / "file" / "inner")
    with pytest.raises(PathError, match="Give a writable place"):
        paths.make_directory(tmp_path / "file")


def test_unwritable_place_is_a_clear_error():
    with pytest.raises(PathError, match=r"/proc/nowhere.*Give a writable place"):
        paths.make_directory("/proc/nowhere")  # refuses the user root too
    with pytest.raises(PathError, match="/proc/nowhere"):
        paths.write_atomically("/proc/nowhere/file", "x")


@pytest.mark.parametrize("data", ["text ü", b"\x00\xff"])
def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path, data):
    target = tmp_path / "deep" / "file"
    paths.write_atomically(target, "a much longer text than the next")
    paths.write_atomically(target, data)
    assert (
        target.read_bytes() if isinstance(data, bytes) else target.read_text(encoding="utf-8")
    ) == data
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = paths.write_atomically(tmp_path / "file", "old")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(target), "write_bytes", full)
    with pytest.raises(PathError, match="No space left on device"):
        paths.write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_json_round_trip_and_errors(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"c": "ü"}}
    file = paths.write_json(tmp_path / "x.json", value)
    assert paths.read_json(file) == value
    assert list(paths.read_json(file)) == ["b", "a"]
    file.write_text(file.read_text()[:10])
    with pytest.raises(PathError, match=r"x\.json is not valid JSON.*cut off or damaged"):
        paths.read_json(file)
    with pytest.raises(PathError, match="There is no file"):
        paths.read_json(tmp_path / "none.json")
    with pytest.raises(PathError, match="Cannot read"):
        paths.read_json(tmp_path)


def test_is_local():
    assert paths.is_local("/a/b") and paths.is_local("a") and paths.is_local(Path("a"))
    assert not paths.is_local("gs://bucket/a") and not paths.is_local(Path("gs://bucket/a"))


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.absolute("a/b") == Path(tmp_path) / "a" / "b"
    assert str(paths.absolute("gs://bucket/a")) == "gs://bucket/a"


def test_temporary_siblings_differ_and_stay_in_the_directory():
    one, two = (paths.temporary_sibling("/a/export") for _ in range(2))
    assert one != two
    assert one.parent == Path("/a") and one.name.startswith(".export.")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    place = tmp_path / "a.json"
    make(place)
    for read in (paths.regular, paths.read_json, lambda path: list(paths.blocks(path))):
        with pytest.raises(
            paths.NotAFileError, match="Cannot read .*a.json: it is a .*, expected a file"
        ):
            read(place)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    paths.flush(tmp_path / "a")
    with pytest.raises(OSError, match="No such device"):
        paths.append(tmp_path / "a", b"a line")


def test_blocks_are_the_content(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)) * (20 << 10))
    found = list(paths.blocks(tmp_path / "a"))
    assert [len(block) for block in found] == [4 << 20, 1 << 20]
    assert b"".join(found) == (tmp_path / "a").read_bytes()


def test_a_text_that_utf_8_does_not_have_is_written_as_an_escape(tmp_path):
    """JSON reads it back; a whole pair is one character."""
    text = "caf\xe9 \ud83d \U0001f600"
    paths.write_atomically(tmp_path / "a", json.dumps([text], ensure_ascii=False))
    assert json.loads((tmp_path / "a").read_bytes()) == [text]
    assert paths.whole_characters(text) == "caf\xe9 \ufffd \U0001f600"


def test_a_directory_has_one_writer(tmp_path):
    """Also in one process; the next one may write when the first has ended."""
    refused = pytest.raises(PathError, match="Another run writes to .*/a now. Wait until")
    one, other = (paths.only_writer(tmp_path / name) for name in "ab")
    with one, other, refused, paths.only_writer(tmp_path / "a"):
        pass
    with paths.only_writer(tmp_path / "a"):
        assert not list((tmp_path / "a").iterdir())


def test_a_writer_that_is_killed_leaves_no_lock(tmp_path):
    program = (
        "import sys, os, signal; from flamingo_jax.core import paths\n"
        "with paths.only_writer(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "a"], check=False)
    with paths.only_writer(tmp_path / "a"):
        pass
