"""WORKDIR/run.json: who has a workdir, and who had it before."""

import json
import os

import pytest
from etils import epath

from flamingo_jax.core import paths
from flamingo_jax.training import run_id

RECORD = {"seed": 0}


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


def in_file(workdir):
    return json.loads((workdir / "run.json").read_text())


def test_the_file_names_the_run(workdir):
    run = run_id.claim(workdir, RECORD, locked=True)
    found = in_file(workdir)
    assert set(found) == {"id", "host", "pid", "process", "started", "config"}
    assert found["id"] == run.id and found["config"] == run_id.hash_of(RECORD)
    run.check()


def test_a_later_start_takes_over_and_the_earlier_run_ends_in_one_line(workdir):
    first = run_id.claim(workdir, RECORD, locked=True)
    second = run_id.claim(workdir, {"seed": 5}, locked=True)
    second.check()
    theirs = in_file(workdir)
    with pytest.raises(run_id.WorkdirTaken) as caught:
        first.check()
    (line,) = str(caught.value).splitlines()
    assert f"{workdir} belongs to another run now: process {theirs['pid']} on " in line
    assert f"{theirs['host']}, started {theirs['started']}, took it over" in line
    assert "ends without saving" in line


def test_a_start_without_a_lock_waits_until_the_run_before_has_checked(workdir, clock_of):
    waits = []
    clock_of(run_id, sleep=waits.append)
    run_id.claim(workdir, RECORD, locked=False)
    assert not waits  # there was no run before
    run_id.claim(workdir, RECORD, locked=True)
    assert not waits
    run_id.claim(workdir, RECORD, locked=False)
    assert waits == [run_id._SETTLE_SECONDS]


def test_a_start_that_may_not_use_the_workdir_gives_it_back(workdir):
    first = run_id.claim(workdir, RECORD, locked=True)
    second = run_id.claim(workdir, {"seed": 5}, locked=True)
    with pytest.raises(LookupError), second.given_back_after_an_error():
        raise LookupError
    first.check()
    with second.given_back_after_an_error():
        pass
    first.check()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": 3}', "\0\0"])
def test_a_file_that_is_damaged_or_gone_ends_no_run(workdir, content):
    run = run_id.claim(workdir, RECORD, locked=True)
    (workdir / "run.json").write_text(content)
    run.check()
    run_id.claim(workdir, RECORD, locked=True).check()
    (workdir / "run.json").unlink()
    run.check()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named_at_once(workdir, clock_of, make):
    clock_of(run_id, sleep=lambda seconds: pytest.fail("tried again"))
    make(workdir / "run.json")
    with pytest.raises(paths.PathError, match=r"^Cannot read .*run\.json: it is a .*, expected"):
        run_id.claim(workdir, RECORD, locked=True)


def test_of_two_writers_one_creates_a_file(workdir):
    assert paths.create(workdir / "a", "first")
    assert not paths.create(workdir / "a", "second")
    assert (workdir / "a").read_text() == "first"
    with pytest.raises(paths.PathError, match="Cannot write .*nowhere/a"):
        paths.create(workdir / "nowhere" / "a", "")


def test_on_an_object_store_the_file_is_read_from_the_store_itself(monkeypatch):
    """A library may still have the size of the file before in its list of the directory."""
    asked = []
    monkeypatch.setattr(
        run_id.object_store, "read", lambda url: asked.append(url) or b'{"id": "x"}'
    )
    run = run_id.RunId("mine", paths.Path("gs://bucket/run"))
    with pytest.raises(run_id.WorkdirTaken, match="gs://bucket/run belongs to another run"):
        run.check()
    assert asked == ["gs://bucket/run/run.json"]
