"""A run that is killed, stopped, starved and damaged a hundred times makes what it would have made.

The kinds are in disturbances.py, the moments in moments.py. tests/README.md has the counts of a
whole run.
"""

import itertools

import pytest

from tests.e2e import attempts, moments, torture
from tests.e2e.disturbances import KINDS
from tests.e2e.moments import MOMENTS

# (stage, processes, whether it evaluates, disturbances)
JOBS = [
    ("language_model", 1, False, 40),
    ("contrastive", 1, True, 30),
    ("language_model", 4, False, 30),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A world and its towers."""
    return attempts.inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes", "evaluates", "rounds"), JOBS)
def test_torture(stage, processes, evaluates, rounds, inputs, tmp_path, capsys):
    job = torture.make_job(stage, processes, *inputs, evaluates=evaluates)
    counts = torture.torture(job, tmp_path / "place", rounds=rounds, seed=1)
    with capsys.disabled():
        print(f"\n{stage}, {processes} processes\n{counts.table()}")
    assert not counts.problems, "\n".join(counts.problems)
    assert counts.rounds.total() == rounds
    assert counts.runs >= 1


def test_the_plan_has_every_kind_and_follows_from_the_seed():
    take = lambda seed, n: list(itertools.islice(torture.plan(seed, [*KINDS], [*MOMENTS]), n))
    every = [(name, moment) for name, kind in KINDS.items() for moment in kind.moments]
    whole = sum(kind.weight * len(kind.moments) for kind in KINDS.values())
    assert set(take(1, whole)) == set(every)
    assert take(1, whole) == take(1, whole) != take(2, whole)
    assert sum(rounds for *_, rounds in JOBS) >= 100
    assert {moment for _, moment in every} == set(MOMENTS)
    assert set(moments.AT_THE_END) <= set(MOMENTS)
