"""Two processes on one machine: one that fails ends the other.

Two processes train and evaluate a Flamingo as one does.
"""

import json
import os

import numpy as np
import pytest

from flamingo_jax.training import logs
from tests.conftest import BASE_XLA_FLAGS
from tests.distributed.processes import finish, run_processes, start_processes
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
    assert first[0] != 0 and second[0] == 1
    assert "joined 2, 2" in first[1] and "not reached" not in first[1] + second[1]
    said = second[2].splitlines()
    marked = [line for line in said if line.startswith("[process 1 of 2] ")]
    assert marked and (lines is None or len(marked) == lines)
    assert marked[-1].endswith(
        "LookupError: no such thing" if kind == "expected" else "ZeroDivisionError: a bug"
    )
    assert ("Traceback" in "".join(marked)) == (kind == "bug")


def test_processes_that_end_well_end_together():
    first, second = run_processes(["-c", FAILING, "nothing"], count=2)
    assert first.splitlines()[-1] == "not reached by a job that failed"
    assert "joined" not in second


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
