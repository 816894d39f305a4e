"""core.processes in one process; tests/distributed has several."""

import importlib.util
import io
import socket
import sys

import jax
import pytest

from flamingo_jax.core import devices, processes
from flamingo_jax.core.paths import Path
from flamingo_jax.core.processes import VARIABLES, Cluster


@pytest.fixture
def joins(monkeypatch):
    """The arguments of jax.distributed.initialize, which joins nothing here.

    The environment names no processes.
    """
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


def set_processes(monkeypatch, address="localhost:1234", count="4", index="2"):
    for name, value in zip(VARIABLES, (address, count, index), strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)


def enter(mode="auto"):
    with Cluster(mode) as cluster:
        return cluster.index, cluster.count


def test_one_machine_joins_nothing(joins):
    assert enter() == (0, 1)
    assert joins == []


def test_one_process_and_off_join_nothing(joins, monkeypatch):
    set_processes(monkeypatch, count="1", index="0")
    assert enter() == (0, 1)
    set_processes(monkeypatch)
    assert enter("off") == (0, 1)
    assert joins == []


def test_the_environment_names_the_processes(joins, monkeypatch):
    set_processes(monkeypatch)
    enter()
    collectives, ((address, count, index), timeouts) = joins
    assert collectives == ("jax_cpu_collectives_implementation", "gloo")
    assert (address, count, index) == ("localhost:1234", 4, 2)
    assert timeouts["heartbeat_timeout_seconds"] == processes.HEARTBEAT_SECONDS


def test_on_a_tpu_and_when_asked_to_jax_finds_the_others(joins, monkeypatch):
    enter("on")
    monkeypatch.setattr(processes, "_on_tpu", lambda: True)
    enter()
    assert [call[0] for call in joins if call[0] != "jax_cpu_collectives_implementation"] == [
        (None, None, None)
    ] * 2


@pytest.mark.parametrize(
    ("device", "platforms", "libtpu", "expected"),
    [
        ("accel0", None, True, True),
        ("vfio/0", "tpu,cpu", True, True),
        ("vfio/vfio", None, True, False),
        ("accel0", "cpu", True, False),
        ("accel0", None, False, False),
    ],
)
def test_a_tpu_is_known_by_its_devices(monkeypatch, tmp_path, device, platforms, libtpu, expected):
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    monkeypatch.setattr(devices, "Path", lambda _: Path(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if libtpu else None)
    monkeypatch.delenv("JAX_PLATFORMS")
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert processes._on_tpu() is expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"index": None}, "but not JAX_PROCESS_ID: set all three"),
        ({"address": None}, "but not JAX_COORDINATOR_ADDRESS"),
        (
            {"index": "4"},
            "JAX_PROCESS_ID=4 and JAX_NUM_PROCESSES=4; expected a count, and an index from 0",
        ),
        ({"count": "four"}, "JAX_NUM_PROCESSES=four"),
    ],
)
def test_an_incomplete_environment_is_one_message(joins, monkeypatch, variables, message):
    set_processes(monkeypatch, **variables)
    with pytest.raises(SystemExit, match=r"^ProcessError: The environment has .*") as caught:
        enter()
    assert message in str(caught.value)
    assert joins == []


@pytest.mark.parametrize("how", ["listens", "is no port"])
def test_a_port_that_is_taken_is_one_message(joins, monkeypatch, how):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = other.getsockname()[1] if how == "listens" else "x"
        set_processes(monkeypatch, address=f"localhost:{port}", index="0")
        with pytest.raises(SystemExit, match=f"^ProcessError: Cannot start as process 0.*{port}"):
            enter()
    assert joins == []


def test_what_cannot_be_joined_is_one_message(joins, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(
        SystemExit,
        match=r"^ProcessError: Cannot start as one of several processes: .*--distributed=off",
    ):
        enter("on")


def test_an_expected_error_is_its_message_and_another_goes_on(joins):
    with pytest.raises(SystemExit, match=r"^ValueError: wrong$"), Cluster(expected=(ValueError,)):
        raise ValueError("wrong")
    with pytest.raises(KeyError), Cluster(expected=(ValueError,)):
        raise KeyError("a bug")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 12 bytes wanted.\n==allocations=="),
            "RESOURCE_EXHAUSTED: 12 bytes wanted",
        ),
        (MemoryError(), "of this host"),
    ],
)
def test_no_memory_is_one_message(joins, error, what):
    with pytest.raises(SystemExit) as caught, Cluster():
        raise error
    assert str(caught.value).startswith(f"Out of memory: {what}. Give smaller batches")
    assert "\n" not in str(caught.value)
    with pytest.raises(jax.errors.JaxRuntimeError), Cluster():  # another one is a bug
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_the_first_process_alone_tells(joins, capsys):
    with Cluster() as cluster:
        cluster.report("a line")
        cluster.index = 1
        cluster.report("another")
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize("has_room_later", [False, True])
def test_a_disk_that_is_full_for_the_reports_stops_nothing(
    joins, monkeypatch, tmp_path, has_room_later
):
    class Disk(io.FileIO):
        is_full = True

        def write(self, data):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(data)

    disk = Disk(str(tmp_path / "log"), "w")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(disk)))
    with Cluster() as cluster:
        cluster.report("a line")
        if has_room_later:
            disk.is_full = False
            cluster.report("another")
    disk.is_full = False
    sys.stdout.close()  # as the interpreter does at its end
    assert (tmp_path / "log").read_text() == ("a line\nanother\n" if has_room_later else "")
