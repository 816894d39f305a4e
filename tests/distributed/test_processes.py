"""Two processes on one machine: one that fails, sticks or is asked to end ends the other.

Two processes train and evaluate a Flamingo as one does.
"""

import json
import os
import re
import signal

import numpy as np
import pytest

from flamingo_jax.checkpoint.store import steps
from flamingo_jax.core import exit_status
from flamingo_jax.training import logs
from tests.conftest import BASE_XLA_FLAGS
from tests.distributed.processes import PATIENCE, finish, run_processes, start_processes
from tests.training import small

FAILING = """
import sys
import jax
from flamingo_jax.core.processes import Cluster
with Cluster(expected=(LookupError,)) as cluster:
    total = jax.jit(lambda x: x.sum())
    def everywhere():
        from jax.experimental import multihost_utils
        return multihost_utils.process_allgather(jax.numpy.ones(()))
    cluster.report(f"joined {cluster.count}, {int(everywhere().sum())}")
    if sys.argv[1] == "expected" and cluster.index == 1:
        raise LookupError("no such thing")
    if sys.argv[1] == "bug" and cluster.index == 1:
        raise ZeroDivisionError("a bug")
    everywhere()
    cluster.report("not reached by a job that failed")
"""


@pytest.mark.parametrize(("kind", "lines"), [("expected", 1), ("bug", None)])
def test_a_process_that_fails_ends_the_others(kind, lines):
    first, second = finish(start_processes(["-c", FAILING, kind], count=2))
    assert (first[0], second[0]) == (exit_status.STUCK, exit_status.ERROR)
    reason = "LookupError: no such thing" if kind == "expected" else "ZeroDivisionError: a bug"
    (followed,) = [line for line in first[2].splitlines() if line.startswith("[process 0 of 2] ")]
    assert re.search(rf"ends because process 1 \(\S+\) failed: {reason}\. This one is", followed)
    assert "joined 2, 2" in first[1] and "not reached" not in first[1] + second[1]
    marked = said(second)
    assert marked and (lines is None or len(marked) == lines)
    assert marked[-1].endswith(reason)
    assert ("Traceback" in "".join(marked)) == (kind == "bug")


def test_processes_that_end_well_end_together():
    first, second = run_processes(["-c", FAILING, "nothing"], count=2)
    assert first.splitlines()[-1] == "not reached by a job that failed"
    assert "joined" not in second


SAVING = """
import resource
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.store import Store
from flamingo_jax.core.processes import Cluster
with Cluster(expected=(CheckpointError,)) as cluster:
    values = np.random.default_rng(0).normal(size=(2, 10_000))
    rows = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
    x = jax.make_array_from_callback(values.shape, rows, lambda index: values[index])
    with Store(sys.argv[1], {}) as store:
        store.save(1, {"x": x}, {})
        store.wait()
        if sys.argv[2] == str(cluster.index):
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        store.save(2, {"x": x}, {})
        store.wait()
        raise AssertionError("not reached")
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_save_ends_all(tmp_path, failing):
    """Orbax alone lets it wait for the others, which wait for it, for 20 minutes."""
    ended = finish(start_processes(["-c", SAVING, str(tmp_path), str(failing)], count=2))
    assert [each[0] for each in ended] == [
        exit_status.ERROR if index == failing else exit_status.STUCK for index in (0, 1)
    ]
    message = f"Cannot save to {tmp_path}/checkpoints: .*File too large.* go on from step 1 when"
    assert re.search(message, said(ended[failing])[-1])
    (followed,) = said(ended[1 - failing])
    followed_why = rf"process {failing} \(\S+\) failed: CheckpointError: {message}"
    assert re.search(f"ends because {followed_why}", followed)
    assert steps(tmp_path) == [1]


ALONE = """
from flamingo_jax.core import processes
processes.JOIN_SECONDS = 2
with processes.Cluster():
    pass
"""


def test_a_process_to_which_the_others_do_not_come_ends_with_one_line():
    """Two of three start. XLA's own report would come a minute later."""
    ended = finish(start_processes(["-c", ALONE], count=2, expected=3))
    for index, process in enumerate(ended):
        assert process[0] == exit_status.STUCK
        (line,) = process[2].splitlines()
        assert line.startswith(f"Cannot start as process {index} of 3 at localhost:")
        assert "not all processes came within" in line


REFUSED = """
import os
import jax
from flamingo_jax.core import processes
jax.distributed.initialize = lambda *args, **kwargs: os.abort()
with processes.Cluster():
    pass
"""


def test_a_process_that_xla_aborts_while_it_joins_ends_with_one_line():
    """XLA aborts one of two processes that join with the same number."""
    ((status, _, errors),) = finish(start_processes(["-c", REFUSED], count=1, expected=2))
    assert status == exit_status.STUCK
    (line,) = errors.splitlines()
    assert line.startswith("Cannot start as process 0 of 2 at localhost:")
    assert "another process has the same JAX_PROCESS_ID" in line


def going_on(what):
    """Starts tests/distributed/guarded.py; returns its processes when they go on."""
    started = start_processes(["-m", "tests.distributed.guarded", what], count=2)
    try:
        for process in started:
            lines = iter(process.stdout.readline, "")
            assert "goes on\n" in lines, process.communicate()  # the libraries write lines, too
    except BaseException:
        for process in started:
            process.kill()
            process.communicate()
        raise
    return started


def disturbed(what, *disturb):
    """Starts the program, and sends it signals when it goes on.

    Args:
        what: argument of the program.
        disturb: (process, signal), one after the other.

    Returns:
        (status, stdout from then on, stderr) of each process.
    """
    started = going_on(what)
    for index, number in disturb:
        started[index].send_signal(number)
    return finish(started)


def said(process):
    """Returns the lines on stderr of a process that has ended, without those of libraries."""
    return [line for line in process[2].splitlines() if line.startswith("[process ")]


def test_a_signal_to_one_process_ends_all_after_the_same_update():
    first, second = disturbed("saves", (1, signal.SIGTERM))
    assert first[0] == second[0] == exit_status.ENDED_AS_ASKED
    assert first[1] == second[1] and first[1].startswith("ended at step ")
    step = first[1].split()[-1]
    assert said(first) == [
        f"[process 0 of 2] Asked to end by SIGTERM to process 1: saved step {step}; the same "
        "command goes on."
    ]
    assert ["saves its state after this update" in line for line in said(second)] == [True]


@pytest.mark.slow
def test_a_notice_that_jax_has_of_its_platform_ends_all_alike():
    first, second = disturbed("noticed")
    assert first[0] == second[0] == exit_status.ENDED_AS_ASKED
    assert first[1] == second[1] and first[1].startswith("ended at step ")
    assert "Asked to end by a maintenance notice: saved step" in said(first)[0]


def test_a_program_that_saves_nothing_is_interrupted_in_all_processes():
    first, second = disturbed("evaluates", (0, signal.SIGINT))
    assert (first[0], second[0]) == (130, exit_status.STUCK)
    assert said(first) == ["[process 0 of 2] Interrupted."]
    assert "ends because process 0" in said(second)[0] and "SIGINT ended it" in said(second)[0]


def test_the_others_notice_that_the_first_process_was_killed():
    """It serves the key-value store. XLA may write its page of text first."""
    first, second = disturbed("saves", (0, signal.SIGKILL))
    assert (first[0], second[0]) == (-signal.SIGKILL, exit_status.STUCK)
    assert ["ends because process 0" in line for line in said(second)] == [True]


def test_a_process_that_dies_when_all_are_done_is_no_error_of_the_others():
    """XLA aborts them, after its page of text: process 0 serves the key-value store."""
    first, second = disturbed("done")
    assert (first[0], second[0]) == (-signal.SIGKILL, exit_status.DONE)
    assert not said(second)


def test_a_process_that_is_stuck_is_named_by_all():
    first, second = disturbed("stuck")
    assert first[0] == second[0] == exit_status.STUCK
    (line,) = said(second)
    assert re.search(r"process 1 \(.*\) is stuck at step 20, reading the next batch for ", line)
    assert "process 0 (" in line and "is at step 20, in the update for" in line
    assert "tests/distributed/guarded.py" in second[2]  # the stacks
    (line,) = said(first)
    assert re.search(r"because process 1 \(.*\) failed: stuck at step 20, reading the next", line)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_the_other_process_ends_when_one_is_stopped(index):
    """The program waits 10 s where others wait 80 s."""
    started = going_on("stopped")
    started[index].send_signal(signal.SIGSTOP)
    try:
        other = started[1 - index]
        _, errors = other.communicate(timeout=PATIENCE)
        assert other.returncode == exit_status.STUCK
        assert f"ends because process {index} " in errors
    finally:
        started[index].send_signal(signal.SIGCONT)
    started[index].communicate(timeout=PATIENCE)
    assert started[index].returncode in (exit_status.STUCK, -signal.SIGABRT)


@pytest.mark.slow
def test_a_flamingo_is_trained_and_evaluated_as_by_one_process(tmp_path, run_program):
    """Two datasets with images, frozen towers, a mesh of two by two.

    Sums have another order in training; evaluation gives the same bits.
    """
    world = small.make_world(tmp_path / "world")
    towers = small.make_towers(tmp_path / "towers", world)
    train = [
        *("-m", "flamingo_jax.train", "--config=tests/training/small.py:flamingo"),
        *("--config.mesh.data=2", "--config.mesh.model=2"),
        *("--config.evaluate.every=3", "--config.evaluate.n=8"),
        *("--config.evaluate.tasks=('format',)", f"--config.evaluate.data.world={world}"),
        *small.overrides("flamingo", world, towers),
    ]
    alone = {
        "XLA_FLAGS": f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count=4",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    run_processes([*train, f"--workdir={tmp_path / 'two'}"], count=2, devices=2)
    run_program(*train, f"--workdir={tmp_path / 'one'}", environment=alone)
    two, one = (logs.read(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert sum("evaluate/format/4/ranking" in row for row in two) == 2
    for a, b in zip(two, one, strict=True):
        if "loss" in a:
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)

    evaluate = [
        *("-m", "flamingo_jax.evaluate", "--config=configs/evaluate.py"),
        *(f"--checkpoint={tmp_path / 'one'}", f"--config.data.world={world}"),
        *("--task=format,bind2", "--shots=0,2", "--config.n=12", "--config.batch_size=8"),
    ]
    run_processes([*evaluate, f"--output={tmp_path / 'report2'}"], count=2, devices=2)
    run_program(
        *evaluate, "--config.mesh.data=-1", f"--output={tmp_path / 'report1'}", environment=alone
    )
    for name in ("results.json", "predictions.jsonl"):
        two, one = (tmp_path / report / name for report in ("report2", "report1"))
        assert two.read_text() == one.read_text()
    assert len(json.loads((tmp_path / "report1" / "results.json").read_text())) == 8
    assert os.listdir(tmp_path / "report2") == os.listdir(tmp_path / "report1")
