"""TensorBoard's event files: curves, order, errors, and how much is uploaded."""

import socket
import struct

import pytest
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event

from flamingo_jax.core.paths import Path
from flamingo_jax.training.loggers import tensorboard
from flamingo_jax.training.loggers.tensorboard import EventFiles


def events(data):
    """Yields the events of a file; a record that is cut off ends it."""
    while len(data) >= 12:
        (length,) = struct.unpack("Q", data[:8])
        if len(data) < 16 + length:
            return
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        yield event
        data = data[16 + length :]


def shown(files):
    """Returns {curve: {step: value}} as TensorBoard shows them.

    It reads files in the order of their names. A session that starts at a step hides what was read
    before of this and later steps.
    """
    curves = {}
    for _, data in sorted(files.items()):
        for event in events(data):
            if event.HasField("session_log"):
                curves = {
                    name: {step: value for step, value in curve.items() if step < event.step}
                    for name, curve in curves.items()
                }
            for value in event.summary.value:
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


def of_directory(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(directory, steps, restored_step=0, value=1.0):
    files = EventFiles(Path(directory), restored_step)
    for step in steps:
        files.write(step, {"loss": value})
        files.sync(now=False)
    files.close()
    return files


def test_there_is_a_curve_for_each_layer_and_odd_numbers_are_kept(tmp_path):
    files = EventFiles(Path(tmp_path) / "new", 0)
    files.write(3, {"loss": float("nan"), "gates/dense": [0.25, 0.75]})
    files.write(4, {"loss": float("inf")})
    files.sync(now=False)
    files.close()
    found = shown(of_directory(tmp_path / "new"))
    assert set(found) == {"loss", "gates/dense/0", "gates/dense/1"}
    assert str(found["loss"]) == "{3: nan, 4: inf}" and found["gates/dense/1"] == {3: 0.75}
    assert files.num_unsafe == 0


def test_points_survive_a_clock_that_is_an_hour_behind(tmp_path, clock_of):
    """The second attempt begins an hour earlier by its clock, and goes on from step 4."""
    clock = 1_800_000_000.0
    clock_of(tensorboard, time=lambda: clock)
    write(tmp_path, range(1, 7))
    clock -= 3600
    write(tmp_path, range(5, 9), restored_step=4, value=2.0)
    clock -= 3600
    write(tmp_path, range(9, 10), restored_step=8, value=3.0)
    files = of_directory(tmp_path)
    assert len(files) == 3
    expected = dict.fromkeys(range(1, 5), 1.0) | dict.fromkeys(range(5, 9), 2.0) | {9: 3.0}
    assert shown(files)["loss"] == expected
    walls = [event.wall_time for _, data in sorted(files.items()) for event in events(data)]
    assert walls == sorted(walls)


class Bucket:
    """What tensorboardX has for gs://: a file is uploaded whole at each flush and at its end."""

    def __init__(self):
        self.files, self.uploaded, self.fails = {}, 0, set()

    def open(self, path):
        return BucketFile(self, path)

    def directory_check(self, path):
        pass

    def maybe_fail(self, what):
        if what in self.fails:
            self.fails.remove(what)
            raise ConnectionError(f"503 Service Unavailable: {what}")


class BucketFile:
    def __init__(self, bucket, path):
        self.bucket, self.path, self.data = bucket, path, b""
        bucket.maybe_fail("open")

    def write(self, data):
        self.bucket.maybe_fail("write")
        self.data += data

    def flush(self):
        self.bucket.maybe_fail("flush")
        self.bucket.files[self.path] = self.data
        self.bucket.uploaded += len(self.data)

    def close(self):
        self.flush()

    def __del__(self):
        self.close()


@pytest.fixture
def bucket(monkeypatch):
    made = Bucket()
    monkeypatch.setitem(record_writer.REGISTERED_FACTORIES, "gs", made)
    return made


@pytest.mark.parametrize("fault", ["open", "write", "flush"])
def test_after_an_error_a_new_file_has_all_that_is_missing(bucket, fault):
    files = EventFiles(Path("gs://bucket/run"), 0)
    if fault != "open":
        files.write(1, {"loss": 1.0})
        files.sync(now=True)
        files.write(2, {"loss": 2.0})
    bucket.fails.add(fault)
    failed = 0
    for step in (1, 2, 3, 4) if fault == "open" else (3, 4):
        while True:  # as `Background` does
            try:
                files.write(step, {"loss": float(step)})
                break
            except ConnectionError:
                failed += 1
    while files.num_unsafe:
        try:
            files.sync(now=True)
        except ConnectionError:
            failed += 1
    assert failed == 1
    assert shown(bucket.files)["loss"] == {step: float(step) for step in range(1, 5)}


def test_an_event_file_is_not_uploaded_whole_at_each_report(bucket, monkeypatch, clock_of):
    """2,000 reports of 30 numbers, a minute apart, a checkpoint after each 20."""
    now = 0.0
    clock_of(tensorboard, monotonic=lambda: now)
    monkeypatch.setattr(tensorboard, "PART_BYTES", 16 << 10)
    files = EventFiles(Path("gs://bucket/run"), 0)
    for step in range(1, 401):
        now += 61.0
        files.write(step, {f"number/{i}": float(i) for i in range(10)})
        files.sync(now=step % 20 == 0)
    files.sync(now=True)
    files.close()
    size = sum(map(len, bucket.files.values()))
    assert len(bucket.files) > 5 and len(shown(bucket.files)["number/3"]) == 400
    assert bucket.uploaded < 8 * size, bucket.uploaded / size
    assert socket.gethostname() in min(bucket.files)


def test_reports_that_cannot_be_uploaded_are_not_kept_without_end(bucket, monkeypatch):
    monkeypatch.setattr(tensorboard, "_MOST_UNSAFE", 5)

    def fail(self):
        raise ConnectionError("503 Service Unavailable")

    monkeypatch.setattr(BucketFile, "flush", fail)
    files = EventFiles(Path("gs://bucket/run"), 0)
    for step in range(5):
        files.write(step, {"loss": 1.0})
    with pytest.raises(ConnectionError, match="503"):
        files.write(5, {"loss": 1.0})
    assert files.num_unsafe == 5


def test_a_missing_package_is_one_error(monkeypatch):
    monkeypatch.setattr(record_writer, "GCS_ENABLED", False)
    files = EventFiles(Path("gs://bucket/run"), 0)
    with pytest.raises(ImportError, match="needs the package google-cloud-storage: install it"):
        files.write(1, {"loss": 1.0})
