"""Training on two nodes of a Slurm cluster, through launch/slurm.sh.

Slurm is replaced (tests/launch/slurm.py); the batch script, the two processes, their cluster and
the checkpoints are real.
"""

import os
import signal
import subprocess

import pytest

from flamingo_jax.training import logs as metrics
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.launch.slurm import Slurm, wait_until
from tests.training import small

SETTINGS = ["--config=tests/training/small.py:language_model", "--config.mesh.data=-1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a world, which all nodes see."""
    directory = tmp_path_factory.mktemp("slurm")
    small.make_world(directory / "world")
    return directory


def command(place, name, *settings):
    """Returns the command of the user that trains in the workdir `name`."""
    program = [*SETTINGS, *small.overrides("language_model", place / "world"), *settings]
    launcher = ["--pause=0", f"--logs={place / name}.logs"]
    script = ["sbatch", "--nodes=2", "launch/slurm.sh", "train", *launcher]
    return [*script, "--", *program, f"--workdir={place / name}"]


def cluster(place, name):
    slurm = Slurm(place / f"{name}.slurm")
    slurm.variables |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "XLA_FLAGS": BASE_XLA_FLAGS,
    }
    return slurm


def reports(workdir):
    rows = metrics.read(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step_seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(place):
    """A run of six updates that nothing disturbs; returns (workdir, what the script said)."""
    said = cluster(place, "whole").run(*command(place, "whole"), cwd=ROOT)
    return place / "whole", said


def test_two_processes_train_and_one_speaks(whole, place):
    workdir, said = whole
    assert "has ended on all nodes" in said
    assert [row["step"] for row in reports(workdir)] == [1, 2, 3, 4, 5, 6]
    logs = [(place / "whole.logs" / f"log.{i}").read_text() for i in (0, 1)]
    assert ["mesh replica 1 x data 2 x model 1" in log for log in logs] == [True, False]
    assert (workdir / "export").is_dir()


@pytest.mark.slow  # the process that is left notices it after some time, and both start again
def test_a_killed_process_leaves_no_trace_in_the_losses(whole, place):
    slurm, workdir = cluster(place, "killed"), place / "killed"
    with slurm.start(*command(place, "killed"), cwd=ROOT) as batch:
        wait_until(lambda: metrics.read(workdir / "metrics.jsonl"), seconds=240)
        found = subprocess.run(
            ["pgrep", "-f", f"flamingo_jax.train .*--workdir={workdir}$"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(max(pids_of_process_1(found.stdout.split())), signal.SIGKILL)
        said = batch.communicate(timeout=400)[0]
    assert batch.returncode == 0, said[-4000:]
    assert "process 1 ended first, with 137" in said and "starts again (restart 1 of 3" in said
    assert reports(workdir) == reports(whole[0])


def pids_of_process_1(pids):
    """Returns those of the Python processes that JAX_PROCESS_ID names as the second one."""
    for pid in pids:
        with open(f"/proc/{pid}/environ", "rb") as file:
            is_second = b"JAX_PROCESS_ID=1\0" in file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            is_python = b"python" in file.read().split(b"\0")[0]
        if is_second and is_python:
            yield int(pid)
