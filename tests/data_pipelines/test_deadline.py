"""The limit of CPU time: it interrupts in any thread, and never after its work has ended."""

import threading
import time

import pytest

from data_pipelines.deadline import TooSlow, cpu_limit


def busy(seconds):
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


def test_endless_work_is_interrupted_in_the_main_thread_and_in_another_one():
    raised = []

    def work():
        with pytest.raises(TooSlow, match="more than 0.05 seconds of CPU time"), cpu_limit(0.05):
            busy(30)
        raised.append(True)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 2


def test_work_in_time_and_waiting_are_not_interrupted():
    with cpu_limit(0.2):
        time.sleep(0.4)
        result = sum(range(1000))
    assert result == 499500


def test_work_that_catches_everything_is_too_slow_all_the_same():
    def stubborn():
        start = time.thread_time()
        while time.thread_time() - start < 1:
            try:
                busy(1)
            except Exception:  # noqa: BLE001
                return

    with pytest.raises(TooSlow), cpu_limit(0.05):
        stubborn()


def test_the_next_work_is_not_interrupted_for_the_one_before():
    for extra in range(20):  # the work ends at about the moment of the look at it
        try:
            with cpu_limit(0.01):
                busy(0.01 + 0.01 * extra)
        except TooSlow:
            pass
        busy(0.001)  # raises if an exception comes late


def test_an_error_of_the_work_is_not_changed():
    with pytest.raises(KeyError), cpu_limit(10):
        raise KeyError("x")
