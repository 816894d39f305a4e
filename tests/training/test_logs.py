"""Logs: files after a restart and after damage, disks that fail, and what a log never does."""

import json
import os
import threading

import pytest

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path
from flamingo_jax.training import logs
from flamingo_jax.training.logs import Logs, MetricsFile, all_logs


def metrics_file(path, restored_step=0, lines=None):
    return MetricsFile(path, restored_step, [].append if lines is None else lines.append)


@pytest.fixture
def path(tmp_path):
    return Path(tmp_path) / "metrics.jsonl"


@pytest.fixture
def bucket(monkeypatch):
    """Local paths count as those of an object store; yields the sizes of the uploads."""
    monkeypatch.setattr(paths, "is_local", lambda path: False)
    uploads, write = [], Path.write_bytes

    def count(self, data):
        uploads.append(len(data))
        return write(self, data)

    monkeypatch.setattr(type(Path("/")), "write_bytes", count)
    return uploads


def test_resume_drops_lines_beyond_the_restored_step(path):
    file = metrics_file(path)
    for step in (2, 4, 6):
        file.write(step, {"loss": float(step), "gates/dense": [0.0, 0.5]})
    file = metrics_file(path, restored_step=4)
    assert [row["step"] for row in logs.read(path)] == [2, 4]
    assert file.logged == {"step": 4, "loss": 4.0, "gates/dense": [0.0, 0.5]}
    file.write(6, {"loss": 60.0})
    assert logs.read(path)[1:] == [file.logged, {"step": 6, "loss": 60.0}]


def test_a_report_is_one_append_and_the_file_is_not_rewritten(path, monkeypatch):
    path.write_text('{"step": 1, "loss": 2.0}\n')
    before, written, write = path.stat(), [], os.write

    def count(file, data):
        written.append(bytes(data))
        return write(file, data)

    monkeypatch.setattr(os, "write", count)
    file = metrics_file(path, restored_step=1)
    for step in (2, 3):
        file.write(step, {"loss": float(step)})
    assert written == [b'{"step": 2, "loss": 2.0}\n', b'{"step": 3, "loss": 3.0}\n']
    assert os.stat(path).st_ino == os.stat(path).st_ino and before.length < path.stat().length


def test_file_is_plain_json(path):
    metrics_file(path).write(1, {"nll": float("nan"), "gates": [float("inf"), 1.0]})
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "nll": None, "gates": [None, 1.0]}


GOOD = b'{"step": 1, "loss": 2.0}'
DAMAGED = {
    "half": b'{"step": 2, "lo',
    "zeros": b"\0\0\0",
    "no object": b"[3]",
    "no step": b'{"loss": 3.0}',
    "step of text": b'{"step": "1", "loss": 3.0}',
    "number of text": b'{"step": 1, "loss": "abc"}',
    "400 digits": b'{"step": 1, "skipped": ' + b"9" * 400 + b"}",
    "600 brackets": b'{"step": 1, "loss": ' + b"[" * 600 + b"]" * 600 + b"}",
    "not UTF-8": b'{"step": 1, "lo\xff\xfe": 1.0}',
    "a flipped bit": b'{"step": 1, "loss"; 2.0}',
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_damaged_line_stops_nothing_and_is_counted_and_kept(path, damaged, place):
    lines = [GOOD, b'{"step": 2, "loss": 1.0}']
    lines.insert(["first", "middle", "last"].index(place), damaged)
    path.write_bytes(b"\n".join(lines) + (b"" if place == "last" else b"\n"))
    assert [row["step"] for row in logs.read(path)] == [1, 2]
    said = []
    metrics_file(path, 2, said).write(3, {"loss": 1.0})
    assert path.read_bytes() == GOOD + b'\n{"step": 2, "loss": 1.0}\n{"step": 3, "loss": 1.0}\n'
    assert (path.parent / "metrics.jsonl.damaged").read_bytes() == damaged + b"\n"
    assert len(said) == 1 and "had 1 damaged lines" in said[0]


@pytest.mark.parametrize("skipped", ["NaN", "1e999", "[1]", "null"])
def test_a_number_of_skipped_updates_that_is_none_counts_as_none(path, skipped):
    path.write_text('{"step": 1, "skipped": 2}\n{"step": 2, "skipped": ' + skipped + "}\n")
    assert metrics_file(path, 2).skipped == 2


def test_the_last_line_without_its_end_is_kept_if_it_is_whole(path):
    path.write_bytes(GOOD)
    metrics_file(path, 1).write(2, {"loss": 1.0})
    assert path.read_bytes() == GOOD + b'\n{"step": 2, "loss": 1.0}\n'


@pytest.mark.parametrize(
    "made", ["empty", "directory", "device", "pipe", "loop", "link", "unreadable"]
)
def test_what_is_in_the_place_of_the_file_stops_nothing(path, made, monkeypatch):
    said = []
    if made == "empty":
        path.write_bytes(b"")
    elif made == "directory":
        (path / "x").mkdir(parents=True)
    elif made == "device":
        os.symlink("/dev/zero", path)  # has no end
    elif made == "pipe":
        os.mkfifo(path)
    elif made == "loop":
        os.symlink(path, path)
    elif made == "link":
        os.symlink("/nothing/metrics.jsonl", path)
    else:
        path.write_bytes(GOOD)
        broken = lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        monkeypatch.setattr(type(path), "read_bytes", broken)
    metrics_file(path, 1, said).write(2, {"loss": 1.0})
    monkeypatch.undo()
    assert path.read_bytes() == b'{"step": 2, "loss": 1.0}\n'
    assert len(said) == (made != "empty")
    aside = list(path.parent.glob("metrics.jsonl.unreadable-*"))
    assert len(aside) == (made != "empty")


def test_damaged_lines_stay_where_the_side_file_cannot_be_written(path):
    (path.parent / "metrics.jsonl.damaged").mkdir()
    path.write_bytes(b"[3]\n" + GOOD)
    said = []
    metrics_file(path, 1, said).write(2, {"loss": 1.0})
    assert [row["step"] for row in logs.read(path)] == [1, 2]
    assert b"[3]\n" in path.read_bytes() and "They stay there" in said[0]


def test_no_report_is_lost_on_a_disk_that_is_full_for_a_while(path, monkeypatch):
    """The disk takes a part of a line, then nothing, then all."""
    write, states = os.write, iter([7, None, None])

    def full(file, data):
        state = next(states, len(data))
        if state is None:
            raise OSError(28, "No space left on device")
        return write(file, data[:state])

    monkeypatch.setattr(os, "write", full)
    said = []
    log = Logs([metrics_file(path)], said.append)
    for step in (1, 2, 3):
        log(step, {"loss": float(step)})
    for _ in range(3):
        log.flush()
    assert [row["loss"] for row in logs.read(path)] == [1.0, 2.0, 3.0]
    log.close()
    assert len(said) == 1 and "No space left" in said[0] and "metrics.jsonl" in said[0]


def test_what_was_not_written_at_the_end_is_counted_in_one_line(path, monkeypatch):
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.3)
    broken = lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    monkeypatch.setattr(paths, "append", broken)
    said = []
    log = Logs([metrics_file(path)], said.append)
    for step in (1, 2, 3):
        log(step, {"loss": 1.0})
    log.flush()
    log.close()
    assert len(said) == 2, said
    assert "3 reports were not written" in said[1] and "Read-only" in said[1]


class Sink:
    """Fails or blocks on request."""

    name, num_unsafe = "TensorBoard", 0

    def __init__(self):
        self.written, self.go_on, self.error = [], threading.Event(), None
        self.go_on.set()

    def write(self, step, numbers):
        assert self.go_on.wait(60)
        if self.error:
            raise self.error
        self.written.append(step)

    def sync(self, *, now):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("fault", ["blocks", "fails"])
def test_a_log_that_blocks_or_fails_stops_neither_training_nor_metrics(path, fault, monkeypatch):
    """Waits for no clock: the reports that a stuck log does not take are dropped and counted."""
    monkeypatch.setattr(logs, "_MOST_WAITING", 10)
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.5)
    sink, said = Sink(), []
    if fault == "blocks":
        sink.go_on.clear()
    else:
        sink.error = RuntimeError("the library has its own errors")
    log = Logs([metrics_file(path), sink], said.append)
    for step in range(1, 101):
        log(step, {"loss": 1.0})
    log.flush()
    log.close()
    assert len(logs.read(path)) == 100
    assert [line.split(" ")[0].rstrip(":") for line in said].count("TensorBoard") == len(said) == 2
    assert "TensorBoard: 100 reports were not written" in said[-1]
    sink.go_on.set()


def test_a_log_that_blocks_is_named_before_it_drops_anything(path, monkeypatch):
    monkeypatch.setattr("flamingo_jax.training.background.STUCK_SECONDS", -1.0)
    monkeypatch.setattr(logs, "CLOSE_SECONDS", 0.0)
    said = []
    log = Logs([metrics_file(path)], said.append)
    log(1, {"loss": 1.0})
    log.close()
    assert len(said) == 1 and "metrics.jsonl cannot be written: it does not answer" in said[0]


def test_the_bytes_that_are_uploaded_grow_with_the_file_and_not_with_its_square(path, bucket):
    """A checkpoint after each 20 reports, as with log_every 50 and save_every 1,000."""
    file = metrics_file(path)
    for step in range(1, 1_001):
        file.write(step, {"loss": 1.0})
        file.sync(now=step % 20 == 0)
    size = path.stat().length
    assert len(logs.read(path)) == 1_000 and file.num_unsafe == 0
    assert sum(bucket) < 26 * size  # half of 50 uploads


def test_a_log_on_an_object_store_is_repaired_and_whole_after_a_checkpoint(path, bucket):
    path.write_bytes(GOOD + b'\n[3]\n{"step": 9}')
    file = metrics_file(path, 1)
    file.write(2, {"loss": 1.0})
    assert [row["step"] for row in logs.read(path)] == [1] and file.num_unsafe == 1
    file.sync(now=True)
    assert [row["step"] for row in logs.read(path)] == [1, 2] and file.num_unsafe == 0
    assert (path.parent / "metrics.jsonl.damaged").read_bytes() == b"[3]\n"


def test_all_logs_know_what_the_restored_step_has(path):
    path.write_text(
        '{"step": 2, "skipped": 1}\n{"step": 4, "loss": 1.0, "skipped": 2}\n'
        '{"step": 4, "until/nll": null}\n{"step": 6, "skipped": 9}\n'
    )
    options = {"steps": 8, "title": "x", "others": lambda: (), "progress": False}
    with all_logs(path.parent, 4, report=pytest.fail, **options) as log:
        assert set(log.logged) == {"step", "loss", "skipped", "until/nll"}
        assert log.skipped == 3
        log(6, {"loss": 2.0})
    assert [row["step"] for row in logs.read(path)] == [2, 4, 4, 6]
