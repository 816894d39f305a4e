"""The limit of CPU time: it interrupts in any thread, and never after its work has ended."""

import threading
import time

import pytest

from data_pipelines import deadline, documents, m3w, mmc4, obelics, pairs, videos
from data_pipelines.deadline import TooSlow, cpu_limit
from data_pipelines.page import Reject


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


@pytest.mark.parametrize(
    "request_of",
    [
        documents.TextRequest,
        m3w.M3WRequest,
        mmc4.MMC4Request,
        obelics.ObelicsRequest,
        pairs.PairsRequest,
        videos.VideosRequest,
    ],
)
def test_every_pipeline_has_the_limit(request_of):
    assert request_of().max_record_seconds == deadline.SECONDS
    with pytest.raises(ValueError, match="--max_record_seconds=0.0, expected more than 0"):
        request_of(max_record_seconds=0.0)


def test_a_record_that_takes_too_long_is_counted_and_the_next_one_is_made():
    def make(record):
        while record == "slow":
            pass
        yield record.upper()

    broken = Reject("broken_row")
    found = deadline.each_in_time(["a", "slow", broken, "b"], make, seconds=0.3, place="x.jsonl")
    too_slow = Reject(
        "too_slow", "x.jsonl: record 1: more than 0.3 seconds of CPU time", broken=True
    )
    assert list(found) == ["A", too_slow, broken, "B"]
