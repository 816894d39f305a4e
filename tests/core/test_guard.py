"""When a process ends, and with which words; tests/distributed has real processes."""

import signal
import subprocess
import sys
import threading
import time
from subprocess import PIPE

import pytest

from flamingo_jax.core import exit_status, guard, peers
from flamingo_jax.core.guard import Guard
from flamingo_jax.core.peers import Asked, Left, Peers
from flamingo_jax.core.phases import Activity, Phase

PATIENCE = 60


class Exited(BaseException):
    def __init__(self, status):
        self.status = status


@pytest.fixture(autouse=True)
def no_exit(monkeypatch):
    """os._exit raises Exited; JAX has no notice of its own."""

    def leave(status):
        raise Exited(status)

    monkeypatch.setattr(guard.os, "_exit", leave)
    monkeypatch.setattr(guard.multihost_utils, "reached_preemption_sync_point", lambda point: False)
    monkeypatch.setattr(guard, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr(guard.faulthandler, "dump_traceback", lambda **options: None)


class Store(dict):
    """The key-value store of jax.distributed, for the processes of a test."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self
        self[key] = value

    def key_value_dir_get(self, directory):
        return [(key, value) for key, value in list(self.items()) if key.startswith(directory)]


def pair(saves=True):
    """Returns the guards of process 0 (host0) and 1 (host1) of one run."""
    store, found = Store(), []
    for index in (0, 1):
        seen = Peers(index, 2, store)
        seen.host = f"host{index}"
        found.append(Guard(seen, saves=saves))
    return found


def test_all_processes_end_at_the_same_point_and_none_had_passed_it():
    """The second one is two updates ahead when the first is asked."""
    first, second = pair()
    assert [first.should_end() for _ in range(5)] == [False] * 5
    assert [second.should_end() for _ in range(7)] == [False] * 7
    asked = Asked(0, "host0", "SIGTERM")
    threads = [threading.Thread(target=each._agree, args=(asked,)) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [first.should_end() for _ in range(3)] == [False, False, True]
    assert second.should_end()
    assert str(second.ended_as_asked(8)) == (
        "Asked to end by SIGTERM to process 0: saved step 8; the same command goes on."
    )


def test_nobody_passes_a_point_while_the_processes_agree():
    first, second = pair()
    first.should_end(), second.should_end()
    asked = Asked(0, "host0", "SIGTERM")
    agreeing = threading.Thread(target=first._agree, args=(asked,))
    agreeing.start()
    while not second._peers.news().points:
        pass
    passed = []
    stepping = threading.Thread(target=lambda: passed.append(first.should_end()))
    stepping.start()
    stepping.join(0.3)
    assert passed == []
    second._agree(asked)
    agreeing.join(PATIENCE)
    stepping.join(PATIENCE)
    assert passed == [True] and second.should_end()


def test_a_process_that_is_killed_before_it_agrees_is_missed(clock_of, capsys):
    """A second signal may come at any moment, and SIGKILL too."""
    first, second = pair()
    first.should_end()
    second._peers.say_alive(1, second._watchdog.activity())
    turns = iter(range(100))

    def sleep(seconds):
        next(turns)
        first._clock.seconds += 1

    clock_of(guard, sleep=sleep)
    with pytest.raises(Exited) as ended:
        first._agree(Asked(1, "host1", "SIGTERM"))
    assert ended.value.status == exit_status.STUCK
    assert "process 1 (host1) gives no sign of life for 80 s" in capsys.readouterr().err
    with pytest.raises(Exited):  # the others are told
        second._follow(second._peers.news())


def test_a_process_that_waits_for_the_points_of_others_gives_signs_of_life():
    first, second = pair()
    first.should_end(), second.should_end()
    asked = Asked(0, "host0", "SIGTERM")
    waiting = threading.Thread(target=second._agree, args=(asked,), daemon=True)
    waiting.start()
    end = time.monotonic() + PATIENCE
    while second._peers.alive().get(1, (0,))[0] < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert second._peers.alive()[1][0] >= 3
    first._agree(asked)
    waiting.join(PATIENCE)
    assert first.should_end() and second.should_end()


def test_a_process_without_updates_to_save_ends_at_once_and_the_others_with_it(capsys):
    first, second = pair()
    second.should_end()
    with pytest.raises(Exited) as ended:
        first._agree(Asked(1, "host1", "SIGTERM"))
    assert ended.value.status == exit_status.ENDED_AS_ASKED
    with pytest.raises(Exited) as ended:
        second._follow(second._peers.news())
    assert ended.value.status == exit_status.ENDED_AS_ASKED
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "[process 0 of 2] Asked to end by SIGTERM to process 1: no update was done, so there is "
        "nothing to save; the same command goes on."
    )
    assert "ends because process 0 (host0) was asked to end by SIGTERM" in said[1]


def test_one_process_is_asked_and_ends_after_its_update(capsys):
    alone = Guard(None, saves=True)
    assert not alone.should_end()
    alone._ask(signal.SIGTERM)
    assert alone.should_end()
    assert str(alone.ended_as_asked(2)).startswith("Asked to end by SIGTERM: saved step 2;")
    with pytest.raises(Exited) as ended:  # the last update came first
        alone.is_saved("step 2, the last one, is saved, and only the export is left")
    assert ended.value.status == exit_status.ENDED_AS_ASKED
    assert "SIGTERM: step 2, the last one, is saved, and only" in capsys.readouterr().err


def test_before_the_first_update_a_signal_ends_a_run_at_once(capsys):
    with pytest.raises(Exited) as ended:
        Guard(None, saves=True)._ask(signal.SIGINT)
    assert ended.value.status == exit_status.ENDED_AS_ASKED
    assert "by SIGINT: no update was done, so there is nothing" in capsys.readouterr().err


@pytest.mark.parametrize("is_saved", [True, False])
def test_before_the_first_update_of_another_run_too(is_saved, capsys):
    """The run before it in a search has ended, or has diverged and saves nothing more."""
    alone = Guard(None, saves=True)
    alone.should_end()
    if is_saved:
        alone.is_saved("step 20, the last one, is saved, and only the export is left")
    alone.watch(0.0)
    with pytest.raises(Exited):
        alone._ask(signal.SIGTERM)
    assert "by SIGTERM: no update was done, so there is nothing" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_second_signal_ends_at_once(name, status, monkeypatch):
    alone = Guard(None, saves=True)
    alone.should_end()
    monkeypatch.setattr(alone, "_ask", lambda number: None)
    alone._on_signal(signal.SIGTERM)
    with pytest.raises(Exited) as ended:
        alone._on_signal(signal.Signals[name])
    assert ended.value.status == status


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            Left(1, "host1", peers.FAILED, "ConfigError: no."),
            "ends because process 1 (host1) failed: ConfigError: no. This one is at step 5, in the "
            "update for 0 s. See its log.",
        ),
        (
            Left(1, "host1", peers.LOST_ANOTHER, "process 7 (host7) is gone"),
            "ends because process 7 (host7) is gone. This one is",
        ),
    ],
)
def test_a_process_follows_one_that_failed_and_says_why(left, words, capsys):
    first, second = pair()
    second._peers.leave(left.how, left.why)
    first.at(Phase.UPDATING, 5)
    with pytest.raises(Exited) as ended:
        first._follow(first._peers.news())
    assert ended.value.status == exit_status.STUCK
    assert f"[process 0 of 2] {words}" in capsys.readouterr().err


def test_a_process_does_not_follow_itself_or_one_that_ended_with_all():
    first, second = pair()
    first._peers.leave(peers.FAILED, "a reason")
    second._peers.leave(peers.TOGETHER, "a reason")
    first._follow(first._peers.news())


def test_the_first_process_ends_when_another_gives_no_sign_of_life(capsys):
    first, second = pair()
    second.at(Phase.READING, 49)
    second._peers.say_alive(1, second._watchdog.activity())
    first._alive = first._peers.alive()
    first._look_for_lost(first._peers.news())
    first._clock.seconds += guard.LOST_SECONDS - 1
    first._look_for_lost(first._peers.news())
    first._clock.seconds += 2
    with pytest.raises(Exited) as ended:
        first._look_for_lost(first._peers.news())
    assert ended.value.status == exit_status.STUCK
    said = capsys.readouterr().err
    assert "process 1 (host1) gives no sign of life for 80 s: it is killed or stopped" in said
    assert "it was at step 49, reading the next batch" in said


def test_a_sign_of_life_counts_from_when_it_is_seen():
    first, second = pair()
    for beat in range(5):
        second._peers.say_alive(beat, second._watchdog.activity())
        first._alive = first._peers.alive()
        first._look_for_lost(first._peers.news())
        first._clock.seconds += guard.LOST_SECONDS - 1


def late(phase, step, **more):
    return Activity(phase, step, 100.0, 10.0, **more)


@pytest.mark.parametrize(
    ("other", "waits"),
    [
        (late(Phase.READING, 50), True),
        (late(Phase.UPDATING, 49), True),
        (late(Phase.UPDATING, 50, compiles=True), True),
        (late(Phase.UPDATING, 50), False),
        (late(Phase.MEASURING, 51), False),
    ],
)
def test_who_waits_leaves_it_to_the_one_that_is_behind(other, waits):
    first, _ = pair()
    first._alive = {1: (1, "host1", other)}
    assert first._must_wait(late(Phase.UPDATING, 50)) is waits
    assert not first._must_wait(late(Phase.READING, 50))


def test_what_is_stuck_is_named_with_what_the_others_do(capsys):
    _, second = pair()
    second._alive = {
        0: (1, "host0", Activity(Phase.UPDATING, 50, 119.0, 120.0)),
        1: (1, "host1", late(Phase.READING, 49)),
    }
    with pytest.raises(Exited) as ended:
        second._end_stuck(Activity(Phase.READING, 49, 121.0, 120.0))
    assert ended.value.status == exit_status.STUCK
    assert capsys.readouterr().err == (
        "[process 1 of 2] process 1 (host1) is stuck at step 49, reading the next batch for 121 s; "
        "the limit is 120 s. process 0 (host0) is at step 50, in the update for 119 s. The stacks "
        "of all threads are above. The same command goes on from the newest checkpoint.\n"
    )
    assert second._peers.news().left[1].why == "stuck at step 49, reading the next batch for 121 s"


def test_a_long_phase_is_mentioned_now_and_then(capsys):
    alone = Guard(None, saves=True)
    for seconds in range(0, 1000, 10):
        alone._remind(Activity(Phase.SAVING, 6, float(seconds), 1800.0))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "still at step 6, saving for 130 s (of at most 1800 s)"
    assert len(said) == 4


def test_a_program_that_saves_nothing_ends_at_once(capsys):
    _, evaluating = pair(saves=False)
    with pytest.raises(Exited) as ended:
        evaluating._ask(signal.SIGINT)
    assert ended.value.status == 130
    assert capsys.readouterr().err == "[process 1 of 2] Interrupted.\n"
    assert evaluating._peers.news().left[1].how == peers.FAILED


BUSY = """
import hashlib, sys
from flamingo_jax.core.processes import Cluster
with Cluster(saves=True) as cluster:
    if sys.argv[1] == "unsaved":
        cluster.guard.should_end()
    print("goes on", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # one call into C, as a compilation is
"""


@pytest.mark.parametrize(
    ("updates", "status", "said"),
    [
        ("saved", exit_status.ENDED_AS_ASKED, "Asked to end by SIGINT: no update was done, so"),
        ("unsaved", 130, "A second signal, SIGINT: ends at once, nothing is saved."),
    ],
)
def test_a_process_that_runs_no_python_ends_all_the_same(updates, status, said):
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, updates], stdout=PIPE, stderr=PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "goes on\n"
        process.send_signal(signal.SIGINT)
        if updates == "unsaved":
            assert "saves its state after this update" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == status
        (line,) = process.stderr.read().splitlines()
        assert line.startswith(said)
