"""A run that is killed several times has the losses and weights of an undisturbed run, to the bit.

The programs run as a user runs them. SIGKILL leaves them no time to clean up. The step that the
test waits for is drawn from a fixed seed. The moment within the step is different each time.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.checkpoint.store import steps as checkpoint_steps
from flamingo_jax.core.trees import flatten
from flamingo_jax.training import logs
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.training import small

STEPS, KILLS = 40, 3
PATIENCE = 240  # seconds that a program may take; far more than it needs


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command without its --workdir."""
    place = tmp_path_factory.mktemp("inputs")
    world = small.make_world(place / "world")
    towers = small.make_towers(place / "towers", world)
    flags = [
        "--config=tests/training/small.py:flamingo",
        f"--config.steps={STEPS}",
        *small.overrides("flamingo", world, towers),
    ]
    return [sys.executable, "-m", "flamingo_jax.train", *flags]


def start(command, workdir):
    environment = {**os.environ, "XLA_FLAGS": BASE_XLA_FLAGS}
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def finish(process, workdir):
    assert process.wait(timeout=PATIENCE) == 0, (
        workdir.parent / f"{workdir.name}.log"
    ).read_text()[-4000:]


def kill_after(process, workdir, step):
    """Kills a run as soon as it has reported `step`. Fails if the run ends by itself."""
    deadline = time.monotonic() + PATIENCE
    while not (rows := logs.read(workdir / "metrics.jsonl")) or rows[-1]["step"] < step:
        log = (workdir.parent / f"{workdir.name}.log").read_text()
        assert process.poll() is None, f"ended by itself with {process.returncode}:\n{log[-4000:]}"
        assert time.monotonic() < deadline, f"no step {step} in {PATIENCE} s:\n{log[-4000:]}"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=PATIENCE) == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    """(workdir of an undisturbed run, that of a run killed three times, steps where it began)."""
    place = tmp_path_factory.mktemp("runs")
    whole, killed = place / "whole", place / "killed"
    finish(start(command, whole), whole)  # first: the others find the step compiled
    rng, begun = np.random.default_rng(5), [0]
    for _ in range(KILLS):
        # Every second step is saved. When the fifth step from here is reported, the save of the
        # second is complete.
        kill_after(start(command, killed), killed, begun[-1] + int(rng.integers(5, 9)))
        begun.append(max(checkpoint_steps(killed), default=0))
    finish(start(command, killed), killed)
    return whole, killed, begun


def reports(workdir):
    rows = logs.read(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step_seconds"} for row in rows]


def test_the_run_really_went_on_from_checkpoints(runs):
    begun = runs[2]
    assert len(begun) == KILLS + 1
    assert begun == sorted(set(begun)), f"each part begins later than the one before: {begun}"


def test_losses_are_the_same_bits(runs):
    whole, killed, _ = runs
    assert [row["step"] for row in reports(whole)] == list(range(1, STEPS + 1))
    assert reports(killed) == reports(whole)


def test_weights_and_moments_are_the_same_bits(runs):
    whole, killed, _ = runs
    # the exported model, and the last checkpoint's
    for path in (lambda run: run / "export", lambda run: run):
        a, b = open_checkpoint(path(whole)), open_checkpoint(path(killed))
        assert a.step == b.step == STEPS
        assert set(flatten(a.params)) == set(flatten(b.params))
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    hashes = [
        json.loads((run / "export" / "model.json").read_text())["content_hash"]
        for run in (whole, killed)
    ]
    assert hashes[0] == hashes[1]
    moments = [arrays_of(run) for run in (whole, killed)]
    assert any("opt_state" in name for name in moments[0])
    jax.tree.map(np.testing.assert_array_equal, *moments)


def arrays_of(workdir):
    """Returns all arrays of the last checkpoint's state by name."""
    directory = workdir / "checkpoints" / str(STEPS) / "state"
    return arrays.read(directory, arrays.describe(directory))
