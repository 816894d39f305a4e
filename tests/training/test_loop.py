"""The loop: reports, hooks, early stop, stop at NaN, and a resumed run equal to a whole one."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.preemption import GivenUp
from flamingo_jax.training import callbacks as hooks_lib
from flamingo_jax.training import loop, meter
from flamingo_jax.training.callbacks import Moment, below, every, measure, save
from flamingo_jax.training.not_finite import Origin, Skipped, keep_finite
from flamingo_jax.training.unreported import from_json, to_json
from tests.training import fake

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def run():
    return fake.Run()


class Log(list):
    def __call__(self, step, numbers):
        self.append((step, numbers))

    def steps(self):
        return [step for step, _ in self]


def train(run, *, start=0, state=None, steps=6, log_every=2, **options):
    log = options.pop("log", Log())
    batches = options.pop("batches", fake.batches(start))
    state = run.init() if state is None else state
    state, done, stopped, *_ = loop.run(
        run.step,
        state,
        batches,
        KEY,
        start=start,
        steps=steps,
        log_every=log_every,
        log=log,
        **options,
    )
    return state, done, stopped, log


def test_reports_come_every_so_often_and_at_the_end(run):
    state, done, stopped, log = train(run, steps=5)
    assert (int(state.step), done, stopped) == (5, 5, False)
    assert log.steps() == [2, 4, 5]


def test_loss_falls(run):
    log = train(run, steps=40, log_every=10)[-1]
    assert log[-1][1]["loss"] < 0.5 * log[0][1]["loss"]


def test_hooks_are_called_on_time_and_at_the_end(run):
    regular, final = [], []
    hooks = [
        every(2, lambda moment: regular.append(moment.step), at_end=False),
        every(4, lambda moment: final.append((moment.step, moment.is_last)), at_end=True),
        every(0, lambda moment: pytest.fail("never"), at_end=False),
    ]
    train(run, steps=5, hooks=hooks)
    assert regular == [2, 4]
    assert final == [(4, False), (5, True)]


def test_stop_ends_the_run_and_hooks_know_that_it_is_the_last_update(run):
    nll = {2: 0.5, 4: 0.2}
    probed, log, seen = [], Log(), []

    def probe(params):
        probed.append(set(params["fake"]))
        return {"nll": nll[2 * len(probed)]}

    stop = below(probe, log, print, metric="nll", bound=0.3, steps=2)
    _, done, stopped, _ = train(
        run, steps=100, log_every=50, log=log, stop=stop, hooks=[seen.append]
    )
    assert (done, stopped) == (4, True)
    assert [moment.is_last for moment in seen] == [False, False, False, True]
    assert probed == [{"tower", "head", "bias"}] * 2
    assert log[:2] == [(2, {"until/nll": 0.5}), (4, {"until/nll": 0.2})]
    assert log[2][0] == 4 and np.isfinite(log[2][1]["loss"])


def test_a_stopped_run_stays_stopped_when_it_is_resumed(run):
    stop = below(lambda params: {"nll": 0.2}, Log(), print, metric="nll", bound=0.3, steps=2)
    _, done, stopped, log = train(run, start=4, steps=100, stop=stop)
    assert (done, stopped, log) == (4, True, [])


def test_probe_without_the_metric_is_an_error():
    stop = below(lambda params: {"accuracy": 1.0}, Log(), print, metric="nll", bound=0.3, steps=1)
    with pytest.raises(
        ValueError, match=r"until.metric is 'nll'; the probe measures \['accuracy'\]"
    ):
        stop(Moment(1, fake.Run().init()))


def test_nan_stops_before_anything_is_saved(run):
    def batches():
        for step, batch in enumerate(fake.batches(0)):
            if step == 4:
                batch["pairs"]["x"][0, 0] = np.nan
            yield batch

    saved = []
    store = type(
        "Store",
        (),
        {"save": lambda self, step, state, positions, **more: saved.append((step, positions))},
    )()
    hook = every(2, save(store, lambda step: {"pages": step, "pairs": step}), at_end=True)
    with pytest.raises(NonFiniteError, match="step 5, dataset pairs"):
        train(run, steps=6, batches=batches(), hooks=[hook])
    assert saved == [(2, {"pages": 2, "pairs": 2}), (4, {"pages": 4, "pairs": 4})]


def test_bad_batches_are_skipped_and_the_rest_of_the_run_is_that_without_them():
    """The step, and so batches and learning rates, go on; the state is as if nothing was."""
    lines, log = [], Log()
    run = fake.Run(accept=keep_finite)

    def batches():
        for step, batch in enumerate(fake.batches(0)):
            if step in (2, 3):
                batch["pairs"]["x"][0, 0] = np.nan
            yield batch

    check = Skipped(Origin(), lines.append, before=0, most_in_a_row=3)
    state, *_ = train(run, steps=6, batches=batches(), log=log, check=check)
    assert [numbers["skipped"] for _, numbers in log] == [0, 2, 0]
    assert [set(numbers) for _, numbers in log][1] == {"skipped", "step_seconds"}
    assert len(lines) == 2 and "step 3, dataset pairs" in lines[0]
    good, expected = fake.batches(0), run.init()
    for step in range(6):
        batch = next(good)
        if step in (2, 3):
            schedule = expected.opt_state[-1]
            expected = dataclasses.replace(
                expected,
                step=expected.step + 1,
                opt_state=(*expected.opt_state[:-1], schedule._replace(count=schedule.count + 1)),
            )
        else:
            expected, _ = run.step(expected, batch, KEY)
    fake.assert_trees_equal(state, expected)


def test_bad_batches_in_a_row_end_the_run_that_skips_them():
    def batches():
        for step, batch in enumerate(fake.batches(0)):
            if step >= 2:
                batch["pairs"]["x"][0, 0] = np.nan
            yield batch

    saved = []
    check = Skipped(Origin(), lambda line: None, before=0, most_in_a_row=3)
    with pytest.raises(NonFiniteError, match="3 updates in a row"):
        train(
            fake.Run(accept=keep_finite),
            steps=20,
            log_every=1,
            batches=batches(),
            check=check,
            hooks=[lambda moment: saved.append(moment.step)],
        )
    assert saved == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("logged", "stops", "measured"),
    [
        ({}, False, 1),
        ({"until/nll": 0.2, "loss": 1.0}, True, 0),
        ({"until/nll": 0.5}, False, 0),
        ({"until/not_finite": 1.0}, False, 0),
        ({"until/nll": float("nan")}, False, 0),
        ({"until/accuracy": 1.0}, False, 1),
        ({"until/nll": [0.1, 0.2]}, False, 1),  # a damaged row
        ({"until/nll": 10**400}, False, 1),
    ],
)
def test_a_resumed_run_measures_what_is_not_logged_and_nothing_twice(run, logged, stops, measured):
    calls, log = [], Log()

    def probe(params):
        calls.append(1)
        return {"nll": 0.4}

    stop = below(probe, log, print, metric="nll", bound=0.3, steps=2, logged=logged)
    assert stop(Moment(4, run.init())) is stops
    assert len(calls) == measured and len(log) == measured
    assert stop(Moment(6, run.init())) is False
    assert len(calls) == measured + 1  # what was logged is of the first step alone


def test_no_compilation_counts_in_the_time_of_updates(run, clock_of):
    """With round_robin, batches of each dataset compile. By a clock that only the step moves."""
    clock = [0.0]
    clock_of(meter, perf_counter=lambda: clock[0])
    seen = set()

    def step(state, batch, rng):
        clock[0] += 1.0 if set(batch) & seen else 100.0
        seen.update(batch)
        return run.step(state, batch, rng)

    def batches():
        for number, batch in enumerate(fake.batches(0)):
            name = ("pages", "pairs")[number % 2]
            yield {name: batch[name]}

    log = Log()
    options = {"start": 0, "steps": 8, "log_every": 4, "log": log}
    loop.run(step, run.init(), batches(), KEY, **options)
    assert [numbers["step_seconds"] for _, numbers in log] == [0.5, 1.0]


@pytest.mark.parametrize("steps", [4, 6])
def test_hooks_at_the_start_see_the_restored_state(run, steps):
    seen = []
    train(
        run,
        start=4,
        steps=steps,
        at_start=[lambda moment: seen.append((moment.step, moment.is_last))],
    )
    assert seen == [(4, steps == 4)]


def test_measure_logs_what_a_task_measures(run):
    log = Log()
    measure(lambda params: {"format/4/exact_match": 0.75}, log, print)(Moment(7, run.init()))
    assert log == [(7, {"format/4/exact_match": 0.75})]


def test_a_measurement_of_nan_is_a_line_and_a_count_and_the_run_goes_on(run):
    """An evaluation may meet what the loss does not; hours of training must not end there."""
    log, lines, failing = Log(), [], {2, 4}

    def task(params):
        if len(log) + 1 in failing:
            raise NonFiniteError("Scores are not finite.")
        return {"format/4/exact_match": 0.75}

    hook = measure(task, log, lines.append)
    for step in (1, 2, 3, 4):
        hook(Moment(step, run.init()))
    good = {"format/4/exact_match": 0.75}
    assert [numbers for _, numbers in log] == [
        good,
        {"evaluate/not_finite": 1.0},
        good,
        {"evaluate/not_finite": 2.0},
    ]
    assert len(lines) == 2 and "at step 2, training goes on: Scores are not finite." in lines[0]


def test_a_probe_of_nan_does_not_stop_the_run(run):
    log, lines = Log(), []

    def probe(params):
        raise NonFiniteError("Losses are not finite.")

    stop = below(probe, log, lines.append, metric="nll", bound=0.3, steps=1)
    assert stop(Moment(1, run.init())) is False
    assert log == [(1, {"until/not_finite": 1.0})] and len(lines) == 1


def test_resumed_run_equals_the_whole_run_bit_for_bit(run):
    """No tolerance: the same program, batches and keys."""
    snapshots = {}

    def snapshot(moment):
        snapshots[moment.step] = jax.tree.map(np.array, moment.state)

    whole, *_, log = train(run, steps=8, hooks=[every(4, snapshot, at_end=False)])
    resumed, *_, log_after = train(
        run, start=4, state=jax.device_put(snapshots[4], run.layout.shardings), steps=8
    )
    fake.assert_trees_equal(whole, resumed)
    without_time = lambda rows: [
        (step, {k: v for k, v in row.items() if k != "step_seconds"}) for step, row in rows
    ]
    assert without_time(log)[2:] == without_time(log_after)


def test_a_run_that_is_asked_to_end_does_no_more_and_goes_on_with_the_same_reports(run):
    """Asked after 3 updates of 4 between two reports, and again after 5: no tolerance."""
    whole, *_, log = train(run, steps=8, log_every=4)
    state, start, unreported, rows, hooked = None, 0, (), [], []
    for stop_at in (3, 5, None):
        asked, part = iter(range(start + 1, 9)), Log()
        ended = loop.run(
            run.step,
            run.init() if state is None else state,
            fake.batches(start),
            KEY,
            start=start,
            steps=8,
            log_every=4,
            log=part,
            hooks=[lambda moment: hooked.append(moment.step)],
            should_end=lambda asked=asked, stop_at=stop_at: next(asked) == stop_at,
            unreported=unreported,
        )
        assert (ended.asked, ended.step) == (stop_at is not None, stop_at or 8)
        state, start, rows = ended.state, ended.step, rows + part
        unreported = from_json(json.loads(json.dumps(to_json(ended.unreported))))
        assert [step for step, _ in unreported] == {3: [1, 2, 3], 5: [5], None: []}[stop_at]
    fake.assert_trees_equal(whole, state)
    without_time = lambda rows: [
        (step, {k: v for k, v in row.items() if k != "step_seconds"}) for step, row in rows
    ]
    assert without_time(rows) == without_time(log)
    assert hooked == [1, 2, 4, 6, 7, 8]  # not after the updates at which it was asked


def test_an_evaluation_may_be_given_up_and_comes_again(run):
    """Asked during the evaluation after update 4 of 6: it is not logged, and not lost."""
    evaluated, asked = [], iter([False, True])

    def evaluate(moment):
        evaluated.append(moment.step)
        if next(asked, False):
            raise GivenUp

    hook = every(2, evaluate, at_end=True)
    options = {"steps": 6, "log_every": 3}
    first = loop.run(
        run.step, run.init(), fake.batches(0), KEY, start=0, log=Log(), hooks=[hook], **options
    )
    assert (first.asked, first.step, [step for step, _ in first.unreported]) == (True, 4, [4])
    again = loop.run(
        run.step,
        first.state,
        fake.batches(4),
        KEY,
        start=4,
        log=Log(),
        hooks=[hook],
        at_start=[hook],
        unreported=first.unreported,
        **options,
    )
    assert not again.asked and evaluated == [2, 4, 4, 6]


def test_a_probe_may_be_given_up_too(run):
    def stop(moment):
        raise GivenUp

    ended = loop.run(
        run.step,
        run.init(),
        fake.batches(0),
        KEY,
        start=0,
        steps=6,
        log_every=2,
        log=Log(),
        stop=stop,
    )
    assert (ended.asked, ended.step, ended.stopped) == (True, 0, False)


def test_a_state_that_is_not_finite_is_no_state_to_end_with(run):
    def batches():
        for step, batch in enumerate(fake.batches(0)):
            if step == 1:
                batch["pairs"]["x"][0, 0] = np.nan
            yield batch

    asked = iter([False, False, True])
    with pytest.raises(NonFiniteError, match="step 2, dataset pairs"):
        train(run, batches=batches(), log_every=6, should_end=lambda: next(asked))


def test_the_loop_says_what_it_does(run):
    said = []
    train(run, steps=2, at=lambda phase, step: said.append((phase.name, step)))
    assert said == [
        ("MEASURING", 0),
        *(("READING", 0), ("UPDATING", 0), ("MEASURING", 1)),
        *(("READING", 1), ("UPDATING", 1), ("MEASURING", 2)),
    ]


def test_a_checkpoint_stores_all_but_the_frozen_weights(run):
    assert set(run.init().saved()) == {"step", "trainable", "opt_state"}
    assert issubclass(hooks_lib.ProbeNotReached, RuntimeError)
