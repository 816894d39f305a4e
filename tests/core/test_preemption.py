"""Signals reach their handler in a thread, and leave no trace."""

import hashlib
import os
import signal
import threading
import time

import pytest

from flamingo_jax.core import preemption
from flamingo_jax.core.preemption import SIGNALS, receiving


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_comes_to_a_thread_and_ends_nothing(number):
    got, known = [], threading.Event()

    def handle(received):
        got.append((received, threading.current_thread() is threading.main_thread()))
        known.set()

    before = [signal.getsignal(each) for each in SIGNALS]
    with receiving(handle):
        os.kill(os.getpid(), number)
        assert known.wait(60)
    assert got == [(number, False)]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_is_handled_while_the_main_thread_runs_no_python():
    """Hashing stands for a compilation: one call into C, which a signal does not interrupt."""
    handled = []
    with receiving(lambda number: handled.append(time.perf_counter())):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)
        end = time.perf_counter()
        while not handled:
            time.sleep(0.01)
    assert handled[0] < end


def test_a_signal_that_is_ignored_stays_so():
    """A script that starts it with `&`, or nohup, makes a program ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with receiving(lambda number: pytest.fail("was handled")):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_to_end_as_asked_is_no_error():
    assert not issubclass(preemption.EndedAsAsked, (RuntimeError, ValueError, OSError))
