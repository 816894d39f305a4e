"""What a process does, for how long, and who waits for whom."""

import math

import jax
import jax.numpy as jnp
import pytest

from flamingo_jax.core import phases
from flamingo_jax.core.phases import Activity, AwakeClock, Phase, Watchdog


@pytest.fixture
def time(monkeypatch):
    """A clock that the test sets: time.now."""

    class Time:
        now = 100.0

        def monotonic(self):
            return self.now

    faked = Time()
    monkeypatch.setattr(phases, "time", faked)
    return faked


def test_a_suspended_machine_is_not_late(time):
    clock = AwakeClock()
    for _ in range(5):
        time.now += 1
        clock.tick()
    assert clock.seconds == 5
    time.now += 10_000  # it slept
    assert clock.tick() == 5 + phases._LONGEST_TICK
    time.now -= 50  # not a clock that anyone sets, but even then
    clock.tick()
    time.now += 1
    assert clock.tick() < 10


def of_updates(time, seconds, *, count, stuck=10.0):
    dog = Watchdog(AwakeClock())
    dog.watch(stuck)
    for step in range(count):
        dog.at(Phase.READING, step)
        dog.at(Phase.UPDATING, step)
        time.now += seconds
        dog.at(Phase.MEASURING, step + 1)
    return dog


def limit(dog, phase):
    dog.at(phase, 100)
    return dog.activity().limit


def test_another_run_in_the_same_process_starts_anew(time):
    """As in a search of fine-tuning: the next run has a first batch, and compiles again."""
    dog = of_updates(time, 0.1, count=20)
    dog.at(Phase.EXPORTING, 20)
    dog.watch(10.0)
    here = dog.activity()
    assert (here.phase, here.step, here.seconds) == (Phase.STARTING, 0, 0.0)
    assert limit(dog, Phase.READING) == 5 * 10
    dog.watch(0.0)
    assert dog.activity().limit == math.inf


def test_the_limit_of_an_update_follows_the_usual_time_above_a_floor(time):
    assert limit(of_updates(time, 0.1, count=20), Phase.UPDATING) == 10
    assert limit(of_updates(time, 0.1, count=20), Phase.READING) == 10
    assert limit(of_updates(time, 3, count=20), Phase.UPDATING) == pytest.approx(60)
    assert limit(of_updates(time, 3, count=20), Phase.READING) == pytest.approx(60)


def test_the_first_updates_and_other_phases_have_more_time(time):
    assert limit(of_updates(time, 0.1, count=0), Phase.UPDATING) == 600  # compiles
    assert limit(of_updates(time, 0.1, count=0), Phase.READING) == 50
    assert limit(of_updates(time, 0.1, count=2), Phase.UPDATING) == 50
    for phase in set(Phase) - {Phase.READING, Phase.UPDATING}:
        assert limit(of_updates(time, 0.1, count=20), phase) >= 150


def test_nothing_is_late_where_it_is_off(time):
    dog = of_updates(time, 1, count=9, stuck=0.0)
    assert limit(dog, Phase.UPDATING) == math.inf and not dog.activity().is_late


def test_a_phase_that_takes_too_long_is_late(time):
    clock = AwakeClock()
    dog = Watchdog(clock)
    dog.watch(10.0)
    dog.at(Phase.READING, 7)
    for _ in range(50):
        time.now += 1
        clock.tick()
    assert not dog.activity().is_late
    time.now += 1
    clock.tick()
    assert dog.activity().is_late
    assert dog.activity().words() == "at step 7, reading the next batch for 51 s"
    dog.at(Phase.UPDATING, 7)
    assert dog.activity().seconds == 0


def test_a_compilation_is_known_wherever_it_happens():
    dog = Watchdog(AwakeClock())
    dog.watch(10.0)
    dog.at(Phase.READING, 3)
    seen = []

    @jax.jit
    def traced(x):
        seen.append(dog.activity())
        return x + 1

    traced(jnp.ones(3))
    assert [(each.compiles, each.limit) for each in seen] == [(True, 600)]
    assert "compiling" in seen[0].words() and not dog.activity().compiles


def activity(phase, step, compiles=False):
    return Activity(phase, step, 1.0, 2.0, compiles)


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        (activity(Phase.READING, 49), activity(Phase.UPDATING, 50)),
        (activity(Phase.READING, 50), activity(Phase.UPDATING, 50)),
        (activity(Phase.UPDATING, 50, compiles=True), activity(Phase.UPDATING, 50)),
        (activity(Phase.STARTING, 0), activity(Phase.READING, 0)),
        (activity(Phase.CLOSING, 6), activity(Phase.ENDING, 6)),
    ],
)
def test_who_is_behind(behind, ahead):
    assert behind.is_behind(ahead) and not ahead.is_behind(behind)
    assert not ahead.is_behind(ahead)


@pytest.mark.parametrize("bound", [2.5, math.inf])
def test_an_activity_goes_to_another_process_and_back(bound):
    sent = Activity(Phase.SAVING, 6, 1.5, bound)
    assert Activity.from_json(sent.to_json()) == sent
