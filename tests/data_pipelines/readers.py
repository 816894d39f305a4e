"""Readers for the tests of `collect`. Worker processes import them by name."""

import os
import signal

from data_pipelines import near_duplicates, watchdog
from data_pipelines.collect import Found
from data_pipelines.page import Reject
from flamingo_jax.data.schema import Document


def numbers(unit):
    """Yields of unit "a" the documents "a 0" to "a 4".

    Number 2 has the same URL in all units, number 3 is rejected, number 4 drops an image.
    """
    for i in range(5):
        if i == 3:
            yield Reject("too_few_words", f"{unit}/{i}")
            continue
        if i == 4:
            yield Reject("image_too_small", f"{unit}/{i}.png", unit="image")
        yield Found(
            Document(f"{unit} {i}"), (f"url:{i if i == 2 else (unit, i)}", f"text:{unit}{i}")
        )


def damaged(unit):
    """Yields one damaged record for each good one."""
    yield Found(Document(unit))
    yield Reject("truncated_file", f"{unit} ends early", broken=True)


def with_clutter(unit):
    yield from (Reject(".DS_Store", unit, unit="file") for _ in range(2))
    yield Found(Document(unit))


def nothing(unit):
    yield Reject("no_text", unit)


def empty(unit):
    yield from ()


def process(unit):
    yield Found(Document(str(os.getpid())))


def bug(unit):
    yield Found(Document("fine"))
    raise ZeroDivisionError("a bug of the reader")


def texts(unit):
    """Yields the documents of a unit, which is a tuple of texts."""
    for text in unit:
        yield Found(Document(text), *near_duplicates.fingerprint(text))


def dies(unit):
    """Kills its process at the second record of unit "b"."""
    yield Found(Document(unit))
    if unit == "b":
        watchdog.at("the second")
        os.kill(os.getpid(), signal.SIGKILL)
