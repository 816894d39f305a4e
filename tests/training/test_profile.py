"""The trace of some updates: which are in it, and what happens where it cannot be written."""

import contextlib
import gzip
import json

import jax
import pytest
from etils import epath

from flamingo_jax.core.config import FieldError
from flamingo_jax.training import loop
from flamingo_jax.training.config import HooksConfig
from flamingo_jax.training.profile import Profile
from tests.training import fake


@pytest.fixture(scope="module")
def run():
    return fake.Run()


def train(run, profile, *, start=0, steps=6, hooks=(), **options):
    with contextlib.closing(profile):
        return loop.run(
            profile.named(run.step),
            run.init(),
            fake.batches(start),
            jax.random.key(0),
            start=start,
            steps=steps,
            log_every=2,
            log=lambda step, numbers: None,
            hooks=[profile.end, *hooks, profile.begin],
            at_start=[profile.begin],
            **options,
        )


def traced(directory):
    """Returns the numbers of the updates in the one trace of a directory."""
    (file,) = directory.glob("plugins/profile/*/*.trace.json.gz")
    assert len(list(file.parent.glob("*.xplane.pb"))) == 1
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    found = {event["args"]["step_num"] for event in events if event.get("name") == "update"}
    return sorted(map(int, found))


@pytest.mark.parametrize(
    ("updates", "options", "expected"),
    [
        ((3, 4), {}, [3, 4]),
        ((1, 2), {}, [1, 2]),
        ((5, 9), {}, [5, 6]),  # the run ends before
        ((2, 5), {"start": 3}, [4, 5]),  # a run that goes on
        ((2, 5), {"should_end": iter([False, False, True]).__next__}, [2, 3]),
    ],
)
def test_the_trace_has_the_updates_that_were_asked_for(run, tmp_path, updates, options, expected):
    lines = []
    directory = epath.Path(tmp_path) / "profile"
    start = options.get("start", 0)
    train(run, Profile(updates, directory, start, lines.append), **options)
    assert traced(directory) == expected
    assert lines == [f"Updates {expected[0]} to {expected[-1]} are traced in {directory}."]


def test_nothing_is_traced_by_default_or_after_the_last_of_them(run, tmp_path):
    directory, lines = epath.Path(tmp_path) / "profile", []
    never = Profile(HooksConfig().profile, directory, 0, lines.append)
    assert never.named(run.step) is run.step
    train(run, never, steps=2)
    train(run, Profile((1, 2), directory, 2, lines.append), start=2, steps=3)
    assert not directory.exists() and lines == []


def test_a_trace_that_cannot_be_written_is_a_line(run, tmp_path):
    lines, file = [], epath.Path(tmp_path) / "file"
    file.write_text("")
    ended = train(run, Profile((1, 2), file / "profile", 0, lines.append), steps=3)
    assert ended.step == 3
    assert len(lines) == 1 and "The trace of updates is not written: " in lines[0]


def test_a_trace_that_cannot_start_is_a_line(run, tmp_path, monkeypatch):
    """As if another trace runs. A real one with the calls of Python takes minutes to end here."""

    def refuse(*args, **kwargs):
        raise RuntimeError("Profile has already been started.")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    lines, directory = [], epath.Path(tmp_path) / "profile"
    ended = train(run, Profile((1, 2), directory, 0, lines.append), steps=3)
    assert ended.step == 3 and not directory.exists()
    assert len(lines) == 1 and "No trace of updates is written: RuntimeError" in lines[0]


@pytest.mark.parametrize("updates", [(3,), (4, 3), (1, 2, 3)])
def test_other_values_are_an_error(updates):
    with pytest.raises(FieldError, match=r"profile is .*expected \(first, last\)"):
        HooksConfig(profile=updates)
    with pytest.raises(FieldError, match=r"profile\[0\] is 0; expected a whole number from 1"):
        HooksConfig(profile=(0, 3))
